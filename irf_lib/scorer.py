"""Images in, anomaly maps and scores out: the one evaluation and what stands around it, with nothing kept in between.

A :class:`Scorer` is what is left of a detector when only scoring matters: the backbone, the denoiser folded at its
timestep, the density, all on one device. A few images at a time go all the way through, so that on a CPU every
intermediate result is still in the cache when the next step reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .features import Backbone
from .irf import network_input, predicted_x0
from .scoring import Density, anomaly_map, image_score


def batch_size(device: torch.device) -> int:
    """Images that go through the denoiser together: what stays in a CPU's cache, or enough to fill a GPU."""
    return 8 if device.type == "cpu" else 64


@dataclass(frozen=True)
class Scorer:
    """``scorer(images)`` -> (scores (N,), maps (N, image_size, image_size)), both on the scorer's device, in nats."""

    backbone: Backbone
    mean: Tensor  # (1, C, 1, 1), with ``std`` what standardises raw features
    std: Tensor
    denoiser: Callable[[Tensor], Tensor]  # x -> noise estimate at ``t``, see folding.fold
    density: Density
    abar: Tensor  # (T,)
    t: int
    input: str
    noise: Tensor | None  # (1, C, s, s), for the noised input only
    rule: str  # of the image score
    image_size: int

    @classmethod
    def on_device(cls, device: torch.device, **parts) -> Scorer:
        """A scorer whose tensors, its density's included, are on ``device``."""
        density = parts["density"]
        moved = {one.name: getattr(density, one.name).to(device) for one in fields(density)}
        parts = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in parts.items()}
        return cls(**{**parts, "density": replace(density, **moved)})

    @torch.no_grad()
    def nll(self, x0: Tensor) -> Tensor:
        """-log density of the field at each location, (N, s, s), in nats, from standardised features (N, C, s, s)."""
        parts = [self._nll(part.to(self.abar.device)) for part in x0.split(batch_size(self.abar.device))]
        return torch.cat(parts)

    def _nll(self, x0: Tensor) -> Tensor:
        z = network_input(x0, self.t, self.abar, self.input, self.noise)
        field = self.denoiser(z)
        estimate = predicted_x0(z, field, self.abar[self.t]) if self.density.reads_estimate else None
        return self.density.nll(field, estimate)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``images`` (N, 3, H, W) float in [0, 1]."""
        scores, maps = [], []
        for part in images.split(batch_size(self.abar.device)):
            raw = self.backbone(part.to(self.abar.device, torch.float32)).float()
            nll = self._nll((raw - self.mean) / self.std)
            scores.append(image_score(nll, self.rule))
            maps.append(anomaly_map(nll, self.image_size))
        return torch.cat(scores), torch.cat(maps)
