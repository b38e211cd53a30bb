"""What a reader would pick instead, by the same metrics on the same features; some on the very same trained network.

Each baseline gives an nll-like anomaly value per location, (N, s, s), high = anomalous, from standardised features
(N, C, s, s), so that metrics.py treats it exactly as it treats the field. None of them sees a test set's statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .detector import OneStepDetector
from .irf import inversion_path, inversion_step, predicted_x0, sigma
from .scorer import batch_size
from .scoring import FullGaussian, StandardNormal, image_score, location_vectors

# --- without a network --------------------------------------------------------------------------------------------


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
    squares = vectors.square().sum(dim=1)

    def distance_to(i: int) -> Tensor:
        # |v - c|^2 = |v|^2 - 2 v c + |c|^2: one pass over the vectors, where the difference itself would take several.
        squared = torch.addmv(squares + squares[i], vectors, vectors[i], alpha=-2).clamp_min_(0)
        squared[i] = 0
        return squared

    chosen = [int(torch.randint(len(vectors), (1,), generator=generator))]
    distance = distance_to(chosen[0])
    while len(chosen) < size:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, distance_to(chosen[-1]))
    return torch.tensor(chosen)


# --- on the same trained network ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InversionScorer:
    """InvAD (arXiv 2504.05662) on our network: three steps of DDIM inversion from the clean features, at t = 0, 500 and
    999; its last abar is 0, so its final latent is the third noise estimate.

    Map: L2 norm over channels. Image score: (max - min of the map) plus the nll under N(0, I), each brought to mean 0
    and standard deviation 1 on held-out normal images, in place of the official code's min-max over the test set,
    which lets every test image see all others.
    """

    detector: OneStepDetector
    centre: Tensor  # (2,)
    spread: Tensor  # (2,)
    timesteps = (0, 500, 999)

    @classmethod
    def fit(cls, detector: OneStepDetector, held_out_x0: Tensor) -> InversionScorer:
        """Calibrate the image score on held-out normal images (n, C, s, s). Raises ValueError for fewer than two."""
        if len(held_out_x0) < 2:
            raise ValueError(f"calibrating needs at least 2 held-out normal images, got {len(held_out_x0)}")
        terms = cls(detector, torch.zeros(2), torch.ones(2))._terms(held_out_x0)
        return cls(detector, terms.mean(dim=0), terms.std(dim=0).clamp_min(1e-12))

    @torch.no_grad()
    def latent(self, x0: Tensor) -> Tensor:
        """The noise estimate at the end of the path, (N, C, s, s): three evaluations of the network an image."""
        d = self.detector
        parts = (
            inversion_path(d.denoiser, x.to(d.device), self.timesteps, d.abar) for x in x0.split(batch_size(d.device))
        )
        return torch.cat([path[-1][1].float().cpu() for path in parts])

    def nll(self, x0: Tensor) -> Tensor:
        """The L2 norm of the latent at each location, (N, s, s)."""
        return self.latent(x0).norm(dim=1)

    def _terms(self, x0: Tensor) -> Tensor:
        latent = self.latent(x0)
        return torch.stack([image_score(latent.norm(dim=1), "spread"), StandardNormal().nll(latent).sum((1, 2))], dim=1)

    def scores(self, x0: Tensor) -> Tensor:
        """Image scores (N,)."""
        return ((self._terms(x0) - self.centre) / self.spread).sum(dim=1)


def reconstruction_error(detector: OneStepDetector, x0: Tensor, steps: int = 1) -> Tensor:
    """|x_0 - reconstruction|^2 / C at each location, (N, s, s): noise to the detector's t, then denoise.

    With one step the reconstruction is the network's estimate of x_0 (Eq. 15 of DDPM, arXiv 2006.11239); with more it
    is DDIM's deterministic path from t in ``steps`` equal steps, in the line of AnoDDPM (Wyatt et al. 2022) and DiAD
    (arXiv 2312.06607), without DiAD's conditioning. ``steps`` evaluations an image; one fixed noise draw for all.
    Raises ValueError if t does not have that many steps in it.
    """
    rebuilt = torch.cat(
        [reconstruction_path(detector, part, steps)[-1][1] for part in x0.split(batch_size(detector.device))]
    )
    return (rebuilt - x0).square().mean(dim=1)


def reconstruction_times(t: int, steps: int) -> list[int]:
    """The timesteps at which a reconstruction from ``t`` in ``steps`` equal steps asks the network, high to low.
    Raises ValueError if t does not have that many steps in it."""
    if not 1 <= steps <= t:
        raise ValueError(f"steps must lie between 1 and t = {t}, got {steps}")
    return [round(t * (steps - i) / steps) for i in range(steps)]


@torch.no_grad()
def reconstruction_path(detector: OneStepDetector, x0: Tensor, steps: int) -> list[tuple[int, Tensor]]:
    """The states of :func:`reconstruction_error` as (timestep, (N, C, s, s)): the noised features, those after each
    step, and last the reconstruction, at timestep 0. Raises ValueError as there."""
    times = reconstruction_times(detector.settings.t, steps)
    states = [(times[0], detector.network_input(x0, how="noised"))]
    for t, s in pairwise([*times, None]):
        x = states[-1][1].to(detector.device)
        eps_hat, abar = detector.denoiser(x, torch.full((len(x),), t, device=x.device)), detector.abar
        x = predicted_x0(x, eps_hat, abar[t]) if s is None else inversion_step(x, eps_hat, t, s, abar)
        states.append((s or 0, x.float().cpu()))
    return states


TIMES = (1, 10, 25, 50, 100, 150, 200, 300, 500, 700, 900)


def diffusion_time(detector: OneStepDetector, x0: Tensor, times: Sequence[int] = TIMES) -> Tensor:
    """log sigma of the noise that each location seems to carry, (N, s, s), after DTE (Livernoche et al., arXiv
    2305.18593), which trains a network for it; here the trained denoiser is asked.

    Read at its true noise level a noise estimate has mean square 1; read at a lower one it is larger, at a higher one
    smaller. So the level is where the mean square of the field along ``times`` last crosses 1, between two of them on a
    straight line in log sigma and log mean square. len(times) evaluations an image.
    """
    levels = sigma(detector.abar).log().cpu()[list(times)]
    energy = torch.stack([detector.fields(x0, t, "scaled").square().mean(dim=1) for t in times]).clamp_min(1e-30).log()
    # Outside of the grid: the level that the nearest end implies if the distance to the data stays what it is there.
    time = torch.where(energy[-1] > 0, levels[-1] + energy[-1] / 2, levels[0] + energy[0].clamp(max=0) / 2)
    for (low, high), (e, f) in zip(pairwise(levels), pairwise(energy), strict=True):
        crossing = low + (high - low) * e / (e - f)
        time = torch.where((e > 0) & (f <= 0), crossing, time)
    return time
