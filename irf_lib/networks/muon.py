"""Muon in the precision that the device computes in: torch's own orthogonalises in bf16 everywhere.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, arXiv 2502.16982.
"""

import math

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """:class:`torch.optim.Muon` for matrices (m, n), orthogonalised in ``dtype``; with bf16 equal to it bit for bit.
    A CPU that emulates bf16 is thirty times slower in it than in fp32."""

    def __init__(
        self, params, lr: float, weight_decay: float = 0.1, momentum: float = 0.95, dtype: torch.dtype = torch.bfloat16
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype  # in no group: a checkpoint must not carry it to another device

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One Nesterov step with decoupled weight decay."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = orthogonalised(parameter.grad.lerp(buffer, momentum).to(self.dtype))
                parameter.mul_(1 - lr * group["weight_decay"])
                rows, columns = parameter.shape
                parameter.add_(update, alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly U V^T of the singular value decomposition U S V^T of ``matrix`` (m, n), in its dtype: five steps of a
    quintic Newton-Schulz iteration, with torch's coefficients, which push all singular values near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x
