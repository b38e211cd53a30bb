"""A trained denoiser at one timestep: the same function of x, with everything that depends on t alone worked out once.

Scoring evaluates the network at a single t, so its timestep embedding and every modulation that comes from it (adaLN,
Peebles and Xie 2023, arXiv 2212.09748) are constants. The same holds for the Gaussian term of a :class:`Preconditioned`
network, which becomes one matrix. Equal to the denoiser up to rounding.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..irf import Denoiser
from .denoisers import DiT, Preconditioned


class FixedModulation(nn.Module):
    """The adaptive norm of a DiT's block at one timestep: what diffusers' AdaLayerNormZero returns, asked without t."""

    def __init__(self, adaptive: nn.Module, t: int):
        super().__init__()
        time = torch.full((1,), t, dtype=torch.long, device=adaptive.linear.weight.device)
        embedding = adaptive.emb(time, torch.zeros_like(time), hidden_dtype=torch.float32)
        self.norm, self.emb = adaptive.norm, lambda *_, **__: embedding  # the DiT's last layer asks for it, too
        self.register_buffer("modulations", adaptive.linear(F.silu(embedding)))  # (1, 6 D)

    def forward(self, x: Tensor, *_, **__) -> tuple[Tensor, ...]:
        shift, scale, *others = self.modulations.chunk(6, dim=1)
        return self.norm(x) * (1 + scale) + shift, *others


class FoldedPreconditioned(nn.Module):
    """A preconditioned denoiser at one timestep: A (x - sqrt(abar_t) mu) + c_t F(x), A one symmetric matrix (C, C)."""

    def __init__(self, denoiser: Preconditioned, t: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        basis = denoiser.basis.double()
        matrix = basis * denoiser.gain[t].double() @ basis.T
        offset = denoiser.root_abar[t].double() * (matrix @ denoiser.mu.double())
        self.register_buffer("matrix", matrix.float())
        self.register_buffer("offset", offset.float())
        self.rest = float(denoiser.rest[t])
        self.net = None if denoiser.net is None else fold(denoiser.net, t, dtype)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        rows = x.permute(0, 2, 3, 1)  # (B, s, s, C)
        estimate = (rows @ self.matrix - self.offset).permute(0, 3, 1, 2)
        return estimate if self.net is None else estimate.add_(self.net(x), alpha=self.rest)


@torch.no_grad()
def fold(denoiser: Denoiser, t: int, dtype: torch.dtype = torch.float32) -> Denoiser:
    """``denoiser`` at ``t`` as a function of x, (B, C, s, s) -> (B, C, s, s) float32; a timestep is disregarded.

    In float32 it shares the denoiser's weights; fold again after training. With ``dtype`` bfloat16 it computes under
    autocast. A denoiser with nothing to work out, such as a UNet, is asked at ``t`` as it is."""
    if isinstance(denoiser, Preconditioned):
        return FoldedPreconditioned(denoiser, t, dtype)
    if isinstance(denoiser, DiT):
        weights = {id(one): nn.Parameter(one.detach().to(dtype), requires_grad=False) for one in denoiser.parameters()}
        trained, denoiser = denoiser, copy.deepcopy(denoiser, weights)  # which takes these in place of copies
        for block, original in zip(denoiser.net.transformer_blocks, trained.net.transformer_blocks, strict=True):
            block.norm1 = FixedModulation(original.norm1, t)

    def at_t(x: Tensor, _: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return denoiser(x, x.new_full(x.shape[:1], t, dtype=torch.long)).float()

    return at_t


class FoldedSteps:
    """A denoiser for a few timesteps that are known beforehand, each folded once: what a multi-step method deserves.
    Called as any denoiser is, with one of these timesteps for the whole batch."""

    def __init__(self, denoiser: Denoiser, timesteps: Sequence[int]):
        self.at = {t: fold(denoiser, t) for t in set(timesteps)}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.at[int(t[0])](x)
