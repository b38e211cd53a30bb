"""From a field to a verdict: Gaussian density, anomaly map, image score, conformal threshold and p-value.

Fields are (N, C, s, s). A density gives the negative log-likelihood (nll, in nats) of the C-vector at each location,
(N, s, s); high means anomalous. Nothing here ever sees a test set's statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)


def location_vectors(fields: Tensor) -> Tensor:
    """(N, C, s, s) -> (N s s, C): every location of every image as one vector."""
    return fields.permute(0, 2, 3, 1).reshape(-1, fields.shape[1])


# --- densities: each is fitted on normal fields and is a plain container of tensors -----------------------------


@dataclass(frozen=True)
class StandardNormal:
    """N(0, I): what the forward process's noise is, and what an ideal noise estimate of normal data would be."""

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 0.0) -> StandardNormal:
        return cls()

    def nll(self, fields: Tensor) -> Tensor:
        """-log N(z; 0, I) = (|z|^2 + C log 2 pi) / 2 at each location; (N, C, s, s) -> (N, s, s)."""
        return 0.5 * (fields.square().sum(dim=1) + fields.shape[1] * LOG_2PI)


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mu, diag(var)), one for all locations. ``mean`` and ``var``: (1, C, 1, 1)."""

    mean: Tensor
    var: Tensor

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 1e-3) -> DiagonalGaussian:
        var, mean = torch.var_mean(fields, dim=(0, 2, 3), keepdim=True)
        return cls(mean, _shrunk_variance(var, shrinkage))

    def nll(self, fields: Tensor) -> Tensor:
        return 0.5 * ((fields - self.mean).square() / self.var + self.var.log() + LOG_2PI).sum(dim=1)


@dataclass(frozen=True)
class LocationGaussian:
    """N(mu_ij, diag(var_ij)), one for each location: for parts that always lie the same way.

    ``mean`` and ``var``: (1, C, s, s). Each variance is drawn towards the one of all locations, because N images give
    only N samples a location.
    """

    mean: Tensor
    var: Tensor

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 0.1) -> LocationGaussian:
        var, mean = torch.var_mean(fields, dim=0, keepdim=True, correction=0)
        pooled = var.mean(dim=(2, 3), keepdim=True)
        return cls(mean, _shrunk_variance((1 - shrinkage) * var + shrinkage * pooled, 1e-3))

    def nll(self, fields: Tensor) -> Tensor:
        return 0.5 * ((fields - self.mean).square() / self.var + self.var.log() + LOG_2PI).sum(dim=1)


@dataclass(frozen=True)
class FullGaussian:
    """N(mu, S), one for all locations: nll is half the squared Mahalanobis distance plus a constant.

    ``mean``: (C,), ``whitener``: (C, C) = L^-1 with S = L L^T, ``log_det``: () = log |S|.
    """

    mean: Tensor
    whitener: Tensor
    log_det: Tensor

    @classmethod
    def fit(cls, fields: Tensor, shrinkage: float = 1e-3) -> FullGaussian:
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
        return cls(mean.to(fields.dtype), whitener.to(fields.dtype), log_det.to(fields.dtype))

    def nll(self, fields: Tensor) -> Tensor:
        whitened = (location_vectors(fields) - self.mean) @ self.whitener.T  # (N s s, C)
        squared = whitened.square().sum(dim=1).view(len(fields), *fields.shape[2:])
        return 0.5 * (squared + self.log_det + fields.shape[1] * LOG_2PI)


def _shrunk_variance(var: Tensor, shrinkage: float) -> Tensor:
    # A channel that never moves on normal data must not divide by zero: it borrows a little of the others' variance.
    floor = torch.finfo(torch.float32).tiny
    return (1 - shrinkage) * var + shrinkage * var.mean(dim=1, keepdim=True).clamp_min(floor)


Density = StandardNormal | DiagonalGaussian | LocationGaussian | FullGaussian
DENSITIES: dict[str, type[Density]] = {
    "standard": StandardNormal,
    "diagonal": DiagonalGaussian,
    "full": FullGaussian,
    "location": LocationGaussian,
}


# --- anomaly map and image score --------------------------------------------------------------------------------


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


# --- the decision: split conformal, one-sided -------------------------------------------------------------------


def conformal_threshold(calibration: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n held-out normal scores; flag an image if its score is above it.

    If calibration and future normal images are exchangeable, a normal image is flagged with probability at most
    alpha, whatever the scores' distribution and for every n (Vovk et al. 2005; Lei et al. 2018, Theorem 2.2). With
    n < 1/alpha - 1 no finite threshold can promise that, and the answer is +inf. Raises ValueError unless 0 < alpha < 1
    and all scores are finite.
    """
    scores = np.sort(_finite(calibration))
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a false-alarm rate between 0 and 1, got {alpha}")
    # As a float, (n + 1)(1 - alpha) can land just above an integer, as 90 * (1 - 0.3) does above 63: round first.
    rank = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


def conformal_p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """p = (1 + #{calibration >= score}) / (n + 1), in (0, 1]; p <= alpha exactly where the threshold is exceeded."""
    ordered = np.sort(_finite(calibration))
    at_least = len(ordered) - np.searchsorted(ordered, _finite(scores), side="left")
    return (1 + at_least) / (len(ordered) + 1)


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64).ravel()
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return scores
