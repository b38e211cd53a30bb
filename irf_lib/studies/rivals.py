"""What a reader would pick instead, by the same metrics on the same features; some on the very same trained network.

Each rival is one class of one shape. Called with a detector it learns from the detector's good images alone;
``nll(x0)`` gives an anomaly value per location, (N, s, s) on the CPU, high = anomalous, from standardised features
(N, C, s, s).
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..detector import Detector, Reading
from ..irf import inversion_path, inversion_step, predicted_x0, sigma
from ..networks.fast import FoldedSteps
from ..scoring import DENSITIES, location_vectors


class Rival:
    """Base of every rival: a new one is a class like those below with its own ``nll``. ``reading``: how it reads, as
    columns of a result: input, t, density (None where it has none), and the image score, the detector's."""

    evaluations: int = 0  # of the network, per image

    def __init__(self, detector: Detector, input: str | None = None, t: int | None = None, density: str | None = None):
        self.detector = detector
        self.reading = {"input": input, "t": t, "density": density, "image_score": detector.reading.image_score}

    def _batches(self, x0: Tensor) -> Iterator[Tensor]:
        return (part.to(self.detector.device) for part in x0.split(self.detector.batch_size))


class FeatureGaussian(Rival):
    """A full-covariance Gaussian of the features, one for all locations: Gaussian-AD (Rippel et al. 2021, arXiv
    2005.14140) at every location; PaDiM (Defard et al. 2021, arXiv 2011.08785) without its per-location fit."""

    def __init__(self, detector: Detector, density: str = "full"):
        super().__init__(detector, density=density)
        self.nll = DENSITIES[density].fit(detector.good[0]).nll


class NearestNeighbour(Rival):
    """Distance to the nearest of a coreset of normal feature vectors: PatchCore (Roth et al. 2022, arXiv 2106.08265)
    without pooling of neighbours and reweighting of scores, so that it sees the vectors that the field is made of."""

    def __init__(self, detector: Detector, size: int = 1000, seed: int = 0):
        super().__init__(detector)
        vectors = location_vectors(detector.good[0])
        self.bank = vectors[greedy_coreset(vectors, size, seed)]  # (M, C)

    def nll(self, x0: Tensor) -> Tensor:
        nearest = [torch.cdist(chunk, self.bank).amin(dim=1) for chunk in location_vectors(x0).split(8192)]
        return torch.cat(nearest).view(len(x0), *x0.shape[2:])


def greedy_coreset(vectors: Tensor, size: int, seed: int, projected: int = 64) -> Tensor:
    """Indices (min(size, n),) of rows of ``vectors`` (n, d): k-centre greedy, on a random projection (PatchCore's
    Algorithm 1). A random subset would let the common background own the whole bank."""
    generator = torch.Generator().manual_seed(seed)
    if vectors.shape[1] > projected:
        projection = torch.randn(vectors.shape[1], projected, generator=generator, dtype=vectors.dtype)
        vectors = vectors @ (projection / projected**0.5)
    squares, distance = vectors.square().sum(dim=1), torch.full((len(vectors),), torch.inf, dtype=vectors.dtype)
    chosen = [i := int(torch.randint(len(vectors), (1,), generator=generator))]
    while len(chosen) < min(size, len(vectors)):
        # |v - c|^2 = |v|^2 - 2 v c + |c|^2 takes one pass over the vectors; the difference itself would take several.
        to_last = torch.addmv(squares + squares[i], vectors, vectors[i], alpha=-2).clamp_min_(0)
        to_last[i] = 0
        distance = torch.minimum(distance, to_last)
        chosen.append(i := int(distance.argmax()))
    return torch.tensor(chosen)


class Inversion(Rival):
    """InvAD (arXiv 2504.05662) on our network: three steps of DDIM inversion from the clean features, at t = 0, 500 and
    999; its last abar is 0, so its final latent is the third noise estimate, whose L2 norm at each location is the map.
    """

    timesteps = (0, 500, 999)
    evaluations = len(timesteps)

    def __init__(self, detector: Detector):
        super().__init__(detector, input="clean")
        self.denoiser = FoldedSteps(detector.denoiser, self.timesteps)

    @torch.no_grad()
    def path(self, x0: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(x_t, noise estimate), each (B, C, s, s) on the device, at each of ``timesteps``."""
        return inversion_path(self.denoiser, x0, self.timesteps, self.detector.abar)

    def nll(self, x0: Tensor) -> Tensor:
        return torch.cat([self.path(part)[-1][1].float().norm(dim=1).cpu() for part in self._batches(x0)])


class Reconstruction(Rival):
    """|x_0 - reconstruction|^2 / C at each location: noise to the detector's t, by one fixed draw, then denoise in
    ``steps`` equal steps (t if that is less). One step gives the network's estimate of x_0 (Eq. 15 of DDPM); more are
    DDIM's path, in the line of AnoDDPM (Wyatt et al. 2022) and DiAD (arXiv 2312.06607) without its conditioning."""

    def __init__(self, detector: Detector, steps: int = 1):
        t = detector.reading.t
        super().__init__(detector, input="noised", t=t)
        self.evaluations = n = max(1, min(steps, t))
        self.times = [round(t * (n - i) / n) for i in range(n)]  # high to low
        self.denoiser = FoldedSteps(detector.denoiser, self.times)

    @torch.no_grad()
    def path(self, x0: Tensor) -> list[tuple[int, Tensor]]:
        """(timestep, state (B, C, s, s) on the device): noised, after each step, and rebuilt at timestep 0."""
        abar, x = self.detector.abar, self.detector.network_input(x0, Reading(t=self.times[0], input="noised"))
        states = [(self.times[0], x)]
        for t, s in pairwise([*self.times, None]):
            eps_hat = self.denoiser(x, torch.full((len(x),), t, device=x.device))
            x = (predicted_x0(x, eps_hat, abar[t]) if s is None else inversion_step(x, eps_hat, t, s, abar)).float()
            states.append((s or 0, x))
        return states

    def nll(self, x0: Tensor) -> Tensor:
        return torch.cat([(self.path(part)[-1][1] - part).square().mean(dim=1).cpu() for part in self._batches(x0)])


class DiffusionTime(Rival):
    """log sigma of the noise that each location seems to carry, after DTE (Livernoche et al., arXiv 2305.18593), which
    trains a network for it. At its true noise level a noise estimate has mean square 1, at a lower one more: so it is
    where the field's mean square along ``times`` last crosses 1, on log scales."""

    times = (1, 10, 25, 50, 100, 150, 200, 300, 500, 700, 900)
    evaluations = len(times)

    def __init__(self, detector: Detector):
        super().__init__(detector, input="scaled")

    def nll(self, x0: Tensor) -> Tensor:
        levels = sigma(self.detector.abar).log().cpu()[list(self.times)]
        fields = (self.detector.fields(x0, Reading(t=t, input="scaled")) for t in self.times)
        energy = torch.stack([field.square().mean(dim=1) for field in fields]).clamp_min(1e-30).log()
        # Outside of the grid: the level that the nearest end implies if the distance to the data stays as it is there.
        time = torch.where(energy[-1] > 0, levels[-1] + energy[-1] / 2, levels[0] + energy[0].clamp(max=0) / 2)
        for (low, high), (e, f) in zip(pairwise(levels), pairwise(energy), strict=True):
            time = torch.where((e > 0) & (f <= 0), low + (high - low) * e / (e - f), time)
        return time


RIVALS: dict[str, Callable[[Detector], Rival]] = {
    "gaussian": FeatureGaussian,
    "gaussian:standard": partial(FeatureGaussian, density="standard"),  # the field's simplest density, with no network
    "knn": NearestNeighbour, "invad3": Inversion, "reconstruct1": Reconstruction,
    "reconstruct5": partial(Reconstruction, steps=5), "dte": DiffusionTime,
}  # fmt: skip
