"""From a field to a score: Gaussian densities, anomaly map, image score.

Fields are (N, C, s, s). A density gives the negative log-likelihood (nll, in nats) of the C-vector at each location,
(N, s, s); high means anomalous. Nothing here ever sees a test set's statistics.

Every density is fitted by ``fit(fields, estimate)`` and read by ``nll(fields, estimate)``, where ``estimate`` (N, C, s,
s) is the network's denoised estimate that belongs to the fields. Only :class:`LocalScaleGaussian` looks at it, as its
``reads_estimate`` says. A new density is one class like these, which may be passed in place of a name.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)


def location_vectors(fields: Tensor) -> Tensor:
    """(N, C, s, s) -> (N s s, C): every location of every image as one vector."""
    return fields.permute(0, 2, 3, 1).reshape(-1, fields.shape[1])


class Density(nn.Module):
    """Base: what ``fit`` learnt are buffers; ``nll`` gives -log density at each location, (N, C, s, s) -> (N, s, s)."""

    reads_estimate: ClassVar[bool] = False

    def __init__(self, **buffers: Tensor):
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value)


class StandardNormal(Density):
    """N(0, I): what the forward process's noise is, and what an ideal noise estimate of normal data would be."""

    @classmethod
    def fit(cls, fields: Tensor, estimate: Tensor | None = None, shrinkage: float = 0.0) -> Self:
        return cls()

    def nll(self, fields: Tensor, estimate: Tensor | None = None) -> Tensor:
        """-log N(z; 0, I) = (|z|^2 + C log 2 pi) / 2 at each location."""
        return 0.5 * (fields.square().sum(dim=1) + fields.shape[1] * LOG_2PI)


class DiagonalGaussian(Density):
    """N(mu, diag(var)), one for all locations. ``mean`` and ``var``: (1, C, 1, 1)."""

    @classmethod
    def fit(cls, fields: Tensor, estimate: Tensor | None = None, shrinkage: float = 1e-3) -> Self:
        var, mean = torch.var_mean(fields, dim=(0, 2, 3), keepdim=True)
        return cls(mean=mean, var=_shrunk_variance(var, shrinkage))

    def nll(self, fields: Tensor, estimate: Tensor | None = None) -> Tensor:
        return 0.5 * ((fields - self.mean).square() / self.var + self.var.log() + LOG_2PI).sum(dim=1)


class LocationGaussian(DiagonalGaussian):
    """N(mu_ij, diag(var_ij)), one for each location: for parts that always lie the same way.

    ``mean`` and ``var``: (1, C, s, s). Each variance is drawn towards the one of all locations, because N images give
    only N samples a location.
    """

    @classmethod
    def fit(cls, fields: Tensor, estimate: Tensor | None = None, shrinkage: float = 0.1) -> Self:
        var, mean = torch.var_mean(fields, dim=0, keepdim=True, correction=0)
        pooled = var.mean(dim=(2, 3), keepdim=True)
        return cls(mean=mean, var=_shrunk_variance((1 - shrinkage) * var + shrinkage * pooled, 1e-3))


class FullGaussian(Density):
    """N(mu, S), one for all locations: nll is half the squared Mahalanobis distance plus a constant.

    ``mean``: (C,), ``whitener``: (C, C) = L^-1 with S = L L^T, ``log_det``: () = log |S|.
    """

    @classmethod
    def fit(cls, fields: Tensor, estimate: Tensor | None = None, shrinkage: float = 1e-3) -> Self:
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

    def nll(self, fields: Tensor, estimate: Tensor | None = None) -> Tensor:
        return 0.5 * (self.squared_distance(fields) + self.log_det + fields.shape[1] * LOG_2PI)


class LocalScaleGaussian(FullGaussian):
    """N(mu, v(h) S): a full covariance whose scale v depends on the content h of the location.

    h is the network's denoised estimate there, so it comes from the same evaluation, and a defect that the network
    removes does not raise its own allowance. log v is linear in h and h^2 (cut at 25): a heteroscedastic regression in
    the manner of Harvey 1976 (Econometrica 44), here by ridge on the log squared distance, with v then scaled so that
    the mean squared distance is C. ``weights`` (2 C,) and ``bias`` () give log v.
    """

    reads_estimate = True

    @classmethod
    def fit(cls, fields: Tensor, estimate: Tensor, shrinkage: float = 1e-3, ridge: float = 1e-3) -> Self:
        """``ridge`` is relative to the variance of each regressor. The intercept is not penalised: a penalty on it
        would make the score depend on the units of v."""
        full = FullGaussian.fit(fields, shrinkage=shrinkage)
        size = torch.finfo(fields.dtype).tiny
        target = (full.squared_distance(fields) / fields.shape[1]).clamp_min(size).double().log()  # (N, s, s)
        count, total, square, cross = 0, 0.0, 0.0, 0.0
        for h, y in zip(estimate.split(32), target.split(32), strict=True):  # a few images at a time, in float64
            a, y = _content(h).double(), y.flatten()
            count, total, square, cross = count + len(a), total + a.sum(0), square + a.T @ a, cross + a.T @ y
        centre, mean_y = total / count, target.mean()
        cov = square / count - torch.outer(centre, centre)
        sd = cov.diagonal().clamp_min(0).sqrt() + 1e-6
        gram = cov / torch.outer(sd, sd) + ridge * torch.eye(len(sd), dtype=cov.dtype)
        weights = torch.linalg.solve(gram, (cross / count - centre * mean_y) / sd) / sd
        fitted = cls(
            **dict(full.named_buffers()), weights=weights.to(fields), bias=(mean_y - centre @ weights).to(fields)
        )
        surplus = (target - fitted.log_scale(estimate)).exp().mean().log()
        fitted.bias += surplus.to(fields)
        return fitted

    def log_scale(self, estimate: Tensor) -> Tensor:
        """log v(h) at each location; (N, C, s, s) -> (N, s, s)."""
        linear, quadratic = self.weights.split(estimate.shape[1])
        vectors = location_vectors(estimate)
        log_v = vectors @ linear + _square(vectors) @ quadratic + self.bias
        return log_v.view(estimate.shape[0], *estimate.shape[2:])

    def nll(self, fields: Tensor, estimate: Tensor) -> Tensor:
        log_v, channels = self.log_scale(estimate), fields.shape[1]
        squared = self.squared_distance(fields) / log_v.exp()
        return 0.5 * (squared + channels * log_v + self.log_det + channels * LOG_2PI)


def _content(estimate: Tensor) -> Tensor:
    vectors = location_vectors(estimate)
    return torch.cat([vectors, _square(vectors)], dim=1)


def _square(vectors: Tensor) -> Tensor:
    # Squares grow without bound on an image that is unlike any good part; 25 is five standard deviations.
    return vectors.square().clamp_(max=25)


def _shrunk_variance(var: Tensor, shrinkage: float) -> Tensor:
    # A channel that never moves on normal data must not divide by zero: it borrows a little of the others' variance.
    floor = torch.finfo(torch.float32).tiny
    return (1 - shrinkage) * var + shrinkage * var.mean(dim=1, keepdim=True).clamp_min(floor)


DENSITIES: dict[str, type[Density]] = {
    "standard": StandardNormal,
    "diagonal": DiagonalGaussian,
    "full": FullGaussian,
    "location": LocationGaussian,
    "local": LocalScaleGaussian,
}


def density_class(density: str | type[Density]) -> type[Density]:
    """The class of a name in DENSITIES; a class is returned as it is."""
    return DENSITIES[density] if isinstance(density, str) else density


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
