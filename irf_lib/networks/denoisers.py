"""Denoisers behind one call: diffusers' DiT and UNet, and the Gaussian optimum that they may start from.

Contract: ``denoiser(x, t) -> eps``, x and eps (B, C, s, s) float, t (B,) long in 0..T-1. A new kind is one class with
the constructor of :class:`DiT`, which may be passed in place of a name. diffusers is imported where a network is built.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..diffusion import T, alpha_bars
from ..irf import Denoiser
from ..scoring import location_vectors


class DiT(nn.Module):
    """diffusers' DiT: every ``patch`` x ``patch`` block of locations is a token. (B, C, s, s), (B,) -> (B, C, s, s)."""

    def __init__(self, channels: int, size: int, width: int, depth: int, patch: int = 1):
        from diffusers import DiTTransformer2DModel

        super().__init__()
        self.net = DiTTransformer2DModel(
            num_attention_heads=width // 64,
            attention_head_dim=64,
            in_channels=channels,
            num_layers=depth,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=1,  # one class, always 0: the model is unconditional
        )
        for block in self.net.transformer_blocks:
            # diffusers drops a tenth of the labels in training, from the global random state: a second "class" that
            # scoring never sees, and a source of randomness outside our generator.
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @staticmethod
    def check(size: int, width: int, depth: int, patch: int) -> None:
        """Raises ValueError for sizes that a DiT cannot have; Settings asks."""
        if width % 64:
            raise ValueError(f"the DiT's width must be a multiple of its head size 64, got {width}")
        if size % patch:
            raise ValueError(f"the DiT's patch_size must divide feature_size, got {patch} and {size}")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, timestep=t, class_labels=torch.zeros_like(t)).sample

    def at(self, x: Tensor, t: Tensor, keep: Tensor) -> Tensor:
        """The estimate at the tokens ``keep`` (B, K), which see no others: x and result (B, K, p p C)."""
        net, label, embed = self.net, torch.zeros_like(t), self.net.pos_embed
        hidden = nn.functional.linear(x, embed.proj.weight.permute(0, 2, 3, 1).flatten(1), embed.proj.bias)
        hidden = (hidden + embed.pos_embed[0, keep]).to(hidden.dtype)
        for block in net.transformer_blocks:
            hidden = block(hidden, timestep=t, class_labels=label)
        embedding = nn.functional.silu(net.transformer_blocks[0].norm1.emb(t, label, hidden_dtype=hidden.dtype))
        shift, scale = net.proj_out_1(embedding)[:, None].chunk(2, dim=2)
        return net.proj_out_2(net.norm_out(hidden) * (1 + scale) + shift)

    @property
    def tokens(self) -> int:
        return (self.net.config.sample_size // self.net.patch_size) ** 2

    def tokens_of(self, maps: Tensor) -> Tensor:
        """All tokens of ``maps`` (N, C, s, s), each a patch of p x p locations: (N, tokens, p p C)."""
        p, n = self.net.patch_size, maps.shape[2] // self.net.patch_size
        return maps.unflatten(3, (n, p)).unflatten(2, (n, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    @property
    def last_layer(self) -> nn.Module:
        return self.net.proj_out_2

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights of attention and feed-forward layers: what Muon is for. Not the modulations and the two ends."""
        parts = [part for block in self.net.transformer_blocks for part in (block.attn1, block.ff)]
        return [layer.weight for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]


class UNet(nn.Module):
    """diffusers' UNet: ``depth`` resolutions, attention at the coarsest. Same contract as :class:`DiT`; no patches."""

    def __init__(self, channels: int, size: int, width: int, depth: int, patch: int = 1):
        from diffusers import UNet2DModel

        super().__init__()
        self.net = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=tuple(width * min(i + 1, 2) for i in range(depth)),
            down_block_types=("DownBlock2D",) * (depth - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
            norm_num_groups=8,
        )

    @staticmethod
    def check(size: int, width: int, depth: int, patch: int) -> None:
        """Raises ValueError for sizes that a UNet cannot have; Settings asks."""
        if width % 8 or size % 2 ** (depth - 1):
            raise ValueError(
                "the UNet's width must be a multiple of 8, and depth - 1 halvings must divide feature_size, "
                f"got width {width}, depth {depth} and feature_size {size}"
            )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample

    @property
    def last_layer(self) -> nn.Module:
        return self.net.conv_out


class Preconditioned(nn.Module):
    """A denoiser that starts at the closed-form optimum of a Gaussian and learns only the rest.

        eps_theta(x, t) = sqrt(1 - abar_t) (abar_t S + (1 - abar_t) I)^{-1} (x - sqrt(abar_t) mu) + c_t F(x, t)

    at every location, with mu and S the mean and covariance of the training features' C-vectors, and c_t the RMS error
    that the Gaussian optimum leaves, so that F has targets of unit size at every t (EDM's preconditioning, Karras et
    al. 2022, arXiv 2206.00364, with a Gaussian in place of a scalar). F's last layer starts at zero: before training
    this *is* the Gaussian optimum, whose full-covariance score is (up to shrinkage) the Mahalanobis distance of the
    features at every t. What an untrained one detects is no merit of the diffusion model: each table has it as a row.
    """

    def __init__(self, net: nn.Module | None, channels: int):
        super().__init__()
        self.net = net  # None: the Gaussian optimum alone
        if net is not None:
            nn.init.zeros_(net.last_layer.weight)
            nn.init.zeros_(net.last_layer.bias)
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("basis", torch.eye(channels))  # eigenvectors of S, in columns
        self.register_buffer("gain", torch.zeros(T, channels))  # sqrt(1 - abar_t) / (abar_t s_i + 1 - abar_t)
        self.register_buffer("rest", torch.ones(T))  # c_t
        self.register_buffer("root_abar", alpha_bars().sqrt())

    def fit_gaussian(self, x0: Tensor) -> None:
        """Take mu and S from training features (N, C, s, s)."""
        vectors = location_vectors(x0).double()
        s, basis = torch.linalg.eigh(torch.cov(vectors.T))
        abar = alpha_bars(dtype=torch.float64)[:, None]  # (T, 1)
        noise_var = abar * s.clamp_min(0) + (1 - abar)  # (T, C)
        error = 1 - ((1 - abar) / noise_var).mean(dim=1)  # (T,) mean squared, between 0 and 1
        self.mu.copy_(vectors.mean(dim=0))
        self.basis.copy_(basis)
        self.gain.copy_((1 - abar).sqrt() / noise_var)
        self.rest.copy_(error.clamp_min(1e-6).sqrt())

    def hidden_matrices(self) -> list[nn.Parameter]:
        return self.net.hidden_matrices() if hasattr(self.net, "hidden_matrices") else []

    @property
    def tokens(self) -> int:
        return getattr(self.net, "tokens", 1)

    def tokens_of(self, maps: Tensor) -> Tensor:
        return self.net.tokens_of(maps)

    def gaussian(self, x: Tensor, t: Tensor) -> Tensor:
        """The first term alone, for x (B, C, ...)."""
        each = (-1, *[1] * (x.ndim - 1))
        with torch.autocast(x.device.type, enabled=False):  # a small matrix product that bf16 would make coarse
            centred = x.float() - self.root_abar[t].view(each) * self.mu.view(-1, *each[2:])
            rotated = torch.einsum("bc...,ck->bk...", centred, self.basis) * self.gain[t].view(len(t), -1, *each[2:])
            return torch.einsum("bk...,ck->bc...", rotated, self.basis)

    def at(self, x: Tensor, t: Tensor, keep: Tensor) -> Tensor:
        locations = x.view(len(x), -1, len(self.mu)).transpose(1, 2)  # (B, C, K p p)
        gaussian = self.gaussian(locations, t).transpose(1, 2).reshape(x.shape)
        return gaussian + self.rest[t].view(-1, 1, 1) * self.net.at(x, t, keep)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        gaussian = self.gaussian(x, t)
        return gaussian if self.net is None else gaussian + self.rest[t].view(-1, 1, 1, 1) * self.net(x, t)


def gaussian_optimum(x0: Tensor, device: torch.device | str = "cpu") -> Denoiser:
    """What a :class:`Preconditioned` network fitted on ``x0`` (N, C, s, s) is before training: the rival to beat."""
    model = Preconditioned(None, x0.shape[1])
    model.fit_gaussian(x0)
    return model.to(device)


DENOISERS: dict[str, Callable[..., nn.Module]] = {"dit": DiT, "unet": UNet}


def build_denoiser(
    kind: str | Callable[..., nn.Module], channels: int, size: int, width: int, depth: int, seed: int, patch: int = 1
) -> nn.Module:
    """A denoiser with weights drawn from ``seed`` alone; the caller's global random state is left as it was.
    ``kind`` is a name in DENOISERS, or a class of your own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (DENOISERS[kind] if isinstance(kind, str) else kind)(channels, size, width, depth, patch)
