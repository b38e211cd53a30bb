"""What a reader would pick instead, on the same features and by the same image score.

Each baseline gives an nll-like anomaly value per location, (N, s, s), high = anomalous, from raw standardised
features (N, C, s, s), so that metrics.py treats it exactly as it treats the field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scoring import FullGaussian, StandardNormal, location_vectors


def gaussian(features: Tensor) -> FullGaussian:
    """A full-covariance Gaussian of the raw features, one for all locations: Gaussian-AD (Rippel et al. 2021, arXiv
    2005.14140) at every location; PaDiM (Defard et al. 2021, arXiv 2011.08785) without its per-location fit."""
    return FullGaussian.fit(features)


def standard_normal(features: Tensor) -> StandardNormal:
    """N(0, I) on the raw standardised features: the paper's density without its network."""
    return StandardNormal.fit(features)


@dataclass(frozen=True)
class NearestNeighbour:
    """Distance to the nearest of a coreset of normal feature vectors: PatchCore (Roth et al. 2022, arXiv 2106.08265)
    without its neighbourhood pooling and score reweighting, so that it sees the very vectors the field is made of.

    ``bank``: (M, C).
    """

    bank: Tensor

    @classmethod
    def fit(cls, features: Tensor, size: int = 1000, seed: int = 0) -> NearestNeighbour:
        vectors = location_vectors(features)
        return cls(vectors[greedy_coreset(vectors, size, seed)])

    def nll(self, features: Tensor) -> Tensor:
        vectors = location_vectors(features)
        nearest = [torch.cdist(chunk, self.bank).amin(dim=1) for chunk in vectors.split(8192)]
        return torch.cat(nearest).view(len(features), *features.shape[2:])


def greedy_coreset(vectors: Tensor, size: int, seed: int, projected: int = 64) -> Tensor:
    """Indices of ``size`` rows of ``vectors`` (n, d) by farthest-point sampling (k-centre greedy, Algorithm 1 of
    PatchCore), on a random projection to ``projected`` dimensions as there. A random subset instead lets the common
    background own the whole bank. Returns (min(size, n),) long."""
    generator = torch.Generator().manual_seed(seed)
    if vectors.shape[1] > projected:
        projection = torch.randn(vectors.shape[1], projected, generator=generator, dtype=vectors.dtype)
        vectors = vectors @ (projection / projected**0.5)
    size = min(size, len(vectors))
    chosen = [int(torch.randint(len(vectors), (1,), generator=generator))]
    distance = (vectors - vectors[chosen[0]]).square().sum(dim=1)
    while len(chosen) < size:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (vectors - vectors[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen)
