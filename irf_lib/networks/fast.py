"""A trained denoiser at one timestep: the same function of x, with everything that depends on t alone worked out once.

Scoring evaluates the network at a single t, so its timestep embedding and every modulation that comes from it (adaLN,
Peebles and Xie 2023, arXiv 2212.09748) are constants, and constants go into the weights beside them. The same holds for
the Gaussian term of a :class:`Preconditioned` network, which becomes one matrix. Equal to the denoiser up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..irf import Denoiser
from .denoisers import DiT, Preconditioned


class FoldedLinear(nn.Module):
    """Rows (..., n) -> (..., m): ``gate`` * (W (``scale`` * x + ``shift``) + bias), one affine map in ``dtype``."""

    def __init__(self, layers: list[nn.Linear], scale=1.0, shift=0.0, gate=1.0, dtype=torch.float32):
        super().__init__()
        weight, bias = (torch.cat([getattr(one, name) for one in layers]).float() for name in ("weight", "bias"))
        gate = torch.as_tensor(gate, device=weight.device)
        self.register_buffer("weight", (gate.view(-1, 1) * weight * scale).to(dtype))
        self.register_buffer("bias", (gate * (bias + (weight * shift).sum(dim=1))).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class FoldedBlock(nn.Module):
    """One transformer block of a DiT with its six modulations folded in; tokens (B, L, D) -> (B, L, D)."""

    def __init__(self, block: nn.Module, embedding: Tensor, dtype: torch.dtype):
        super().__init__()
        attention, first, last = block.attn1, block.ff.net[0].proj, block.ff.net[2]
        shift, scale, gate, shift_ff, scale_ff, gate_ff = block.norm1.linear(embedding)[0].chunk(6)
        self.heads, self.eps = attention.heads, block.norm1.norm.eps
        self.qkv = FoldedLinear([attention.to_q, attention.to_k, attention.to_v], 1 + scale, shift, dtype=dtype)
        self.out = FoldedLinear([attention.to_out[0]], gate=gate, dtype=dtype)
        self.first = FoldedLinear([first], 1 + scale_ff, shift_ff, dtype=dtype)
        self.last = FoldedLinear([last], gate=gate_ff, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(F.layer_norm(x, (width,), eps=self.eps))  # (B, L, 3 D)
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x (B, heads, L, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(attended)
        hidden = F.gelu(self.first(F.layer_norm(x, (width,), eps=self.eps)), approximate="tanh")
        return x + self.last(hidden)


class FoldedDiT(nn.Module):
    """A DiT at one timestep. (B, C, s, s) -> (B, C, s, s), laid out channels last. Like every folded denoiser it may be
    called with a timestep, as any denoiser is, and disregards it."""

    def __init__(self, dit: DiT, t: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        net, device = dit.net, dit.net.proj_out_2.weight.device
        label = torch.zeros(1, dtype=torch.long, device=device)
        time = torch.full((1,), t, dtype=torch.long, device=device)
        # As in diffusers' forward: every block has an embedder of its own, and the last layer takes the first block's.
        embeddings = [F.silu(b.norm1.emb(time, label, hidden_dtype=torch.float32)) for b in net.transformer_blocks]
        shift, scale = net.proj_out_1(embeddings[0])[0].chunk(2)
        self.embed = net.pos_embed
        self.blocks = nn.ModuleList(map(partial(FoldedBlock, dtype=dtype), net.transformer_blocks, embeddings))
        self.last = FoldedLinear([net.proj_out_2], 1 + scale, shift, dtype=dtype)
        self.patch, self.channels, self.eps = net.patch_size, net.out_channels, net.norm_out.eps

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        tokens = self.embed(x)  # (B, L, D)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.last(F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)).float()
        n, p = x.shape[-1] // self.patch, self.patch
        maps = tokens.view(-1, n, n, p, p, self.channels).transpose(2, 3).reshape(-1, n * p, n * p, self.channels)
        return maps.permute(0, 3, 1, 2)


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

    Fold again after training. A DiT's matrix products are computed in ``dtype``; a denoiser with nothing to fold, such
    as a UNet, is asked at ``t`` as it is, under autocast if ``dtype`` is bfloat16.
    """
    if isinstance(denoiser, Preconditioned):
        return FoldedPreconditioned(denoiser, t, dtype)
    if isinstance(denoiser, DiT):
        return FoldedDiT(denoiser, t, dtype)

    def at_t(x: Tensor, _: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return denoiser(x, torch.full((len(x),), t, dtype=torch.long, device=x.device)).float()

    return at_t


class FoldedSteps:
    """A denoiser for a few timesteps that are known beforehand, each folded once: what a multi-step method deserves.
    Called as any denoiser is, with one of these timesteps for the whole batch."""

    def __init__(self, denoiser: Denoiser, timesteps: Sequence[int]):
        self.at = {t: fold(denoiser, t) for t in set(timesteps)}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.at[int(t[0])](x)
