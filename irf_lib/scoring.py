"""From a field to a score: Gaussian densities, anomaly map, image score.

Fields are (N, C, s, s). A density gives the negative log-likelihood (nll, in nats) of the C-vector at each location,
(N, s, s); high means anomalous. Nothing here ever sees a test set's statistics.

Every density is fitted by ``fit(fields)`` and read by ``nll(fields)``. A new density is one class like these, which may
be passed in place of a name.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)


def location_vectors(fields: Tensor) -> Tensor:
    """(N, C, s, s) -> (N s s, C): every location of every image as one vector."""
    return fields.permute(0, 2, 3, 1).reshape(-1, fields.shape[1])


class Density(nn.Module):
    """Base: what ``fit`` learnt are buffers; ``nll`` gives -log density at each location, (N, C, s, s) -> (N, s, s)."""

    def __init__(self, **buffers: Tensor):
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value)


class StandardNormal(Density):
    """N(0, I): the law of the noise that the forward process adds; nothing is fitted."""

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 0.0) -> Self:
        return cls()

    def nll(self, fields: Tensor) -> Tensor:
        """-log N(z; 0, I) = (|z|^2 + C log 2 pi) / 2 at each location."""
        return 0.5 * (fields.square().sum(dim=1) + fields.shape[1] * LOG_2PI)


class DiagonalGaussian(Density):
    """N(mu, diag(var)), one for all locations. ``mean`` and ``var``: (1, C, 1, 1)."""

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 1e-3) -> Self:
        var, mean = torch.var_mean(fields, dim=(0, 2, 3), keepdim=True)
        return cls(mean=mean, var=_shrunk_variance(var, shrinkage))

    def nll(self, fields: Tensor) -> Tensor:
        return 0.5 * ((fields - self.mean).square() / self.var + self.var.log() + LOG_2PI).sum(dim=1)


class LocationGaussian(DiagonalGaussian):
    """N(mu_ij, diag(var_ij)), one for each location: for parts that always lie the same way.

    ``mean`` and ``var``: (1, C, s, s). Each variance is drawn towards the one of all locations, because N images give
    only N samples a location."""

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 0.1) -> Self:
        var, mean = torch.var_mean(fields, dim=0, keepdim=True, correction=0)
        pooled = var.mean(dim=(2, 3), keepdim=True)
        return cls(mean=mean, var=_shrunk_variance((1 - shrinkage) * var + shrinkage * pooled, 1e-3))


class FullGaussian(Density):
    """N(mu, S), one for all locations: nll is half the squared Mahalanobis distance plus a constant.

    ``mean``: (C,), ``whitener``: (C, C) = L^-1 with S = L L^T, ``log_det``: () = log |S|."""

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 1e-3) -> Self:
        """S is shrunk towards its mean variance: (1 - shrinkage) S + shrinkage tr(S)/C I, in float64."""
        z = location_vectors(fields).double()
        mean = z.mean(dim=0)
        centred = z - mean
        cov = centred.T @ centred / max(1, len(z) - 1)
        scale = cov.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        cov = (1 - shrinkage) * cov + shrinkage * scale * torch.eye(len(cov), dtype=cov.dtype)
        cholesky = torch.linalg.cholesky(cov)
        whitener = torch.linalg.solve_triangular(cholesky, torch.eye(len(cov), dtype=cov.dtype), upper=False)
        log_det = 2 * cholesky.diagonal().log().sum()
        return cls(mean=mean.to(fields), whitener=whitener.to(fields), log_det=log_det.to(fields))

    def squared_distance(self, fields: Tensor) -> Tensor:
        """The squared Mahalanobis distance at each location; (N, C, s, s) -> (N, s, s)."""
        whitened = (location_vectors(fields) - self.mean) @ self.whitener.T  # (N s s, C)
        return whitened.square().sum(dim=1).view(fields.shape[0], *fields.shape[2:])

    def nll(self, fields: Tensor) -> Tensor:
        return 0.5 * (self.squared_distance(fields) + self.log_det + fields.shape[1] * LOG_2PI)


def _shrunk_variance(var: Tensor, shrinkage: float) -> Tensor:
    # A channel that never moves on normal data must not divide by zero: it borrows a little of the others' variance.
    floor = torch.finfo(torch.float32).tiny
    return (1 - shrinkage) * var + shrinkage * var.mean(dim=1, keepdim=True).clamp_min(floor)


DENSITIES: dict[str, type[Density]] = {
    "standard": StandardNormal,
    "diagonal": DiagonalGaussian,
    "full": FullGaussian,
    "location": LocationGaussian,
}


def density_class(density: str | type[Density]) -> type[Density]:
    """The class of a name in DENSITIES; a class is returned as it is."""
    return DENSITIES.get(density, density)


def anomaly_map(nll: Tensor, size: int) -> Tensor:
    """(N, s, s) -> (N, size, size), bilinear; values stay in nats."""
    return F.interpolate(nll[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def image_score(nll: Tensor, rule: str = "top10") -> Tensor:
    """One number an image from its (N, s, s) map: ``max``, ``mean``, ``spread`` (max - min, as InvAD's code uses) or
    ``top<k>``, the mean of the k largest (k is cut to the map's size). Returns (N,). Raises ValueError otherwise."""
    flat = nll.flatten(1)
    if rule == "max":
        return flat.amax(dim=1)
    if rule == "mean":
        return flat.mean(dim=1)
    if rule == "spread":
        return flat.amax(dim=1) - flat.amin(dim=1)
    if rule.startswith("top") and rule[3:].isdigit() and int(rule[3:]) > 0:
        return flat.topk(min(int(rule[3:]), flat.shape[1]), dim=1).values.mean(dim=1)
    raise ValueError(f"unknown image score {rule!r}; known: max, mean, spread, top<k> such as top10")
