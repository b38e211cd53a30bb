"""From scores to verdicts: split conformal thresholds and p-values, from good images that were held out.

If calibration and future good images are exchangeable, a good image is flagged with probability at most alpha, whatever
the scores' distribution and for every n (Vovk et al. 2005; Lei et al. 2018, Theorem 2.2).
"""

import itertools
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .files import InputError
from .scoring import anomaly_map


@dataclass(frozen=True)
class Scores:
    """What a detector says of N images under one reading. Values are in nats; high is anomalous."""

    nll: Tensor  # (N, s, s) on the CPU: -log density of the field at each location
    scores: np.ndarray  # (N,) float64
    calibration: np.ndarray  # (n,) scores of the held-out good images
    image_size: int
    reading: Any  # how they were read, a settings.Reading whose t is a number

    @cached_property
    def maps(self) -> np.ndarray:
        """Anomaly maps (N, image_size, image_size) float32."""
        return anomaly_map(self.nll, self.image_size).numpy()

    @property
    def p_values(self) -> np.ndarray:
        """(N,) in (0, 1], conformal, each valid for one good image."""
        return conformal_p_values(self.calibration, self.scores)

    def threshold(self, alpha: float = 0.05) -> float:
        """The conformal threshold at the false-alarm rate ``alpha``; +inf, with a warning, where the held-out images
        cannot promise it. Raises ValueError unless 0 < alpha < 1."""
        limit, n = conformal_threshold(self.calibration, alpha), len(self.calibration)
        if math.isinf(limit):
            least = math.ceil(1e4 / (n + 1)) / 1e4  # rounded up: what is printed here must work
            warnings.warn(
                f"a false-alarm rate of {alpha} needs {images_needed(alpha)[0]} held-out good images, there are {n}: "
                f"nothing will be flagged. Fit on more images, or take an alpha of {least:g} or more.",
                stacklevel=2,
            )
        return limit

    def flagged(self, alpha: float = 0.05) -> np.ndarray:
        """(N,) bool: which images are called defective; a good one is with probability at most ``alpha``."""
        return self.scores > self.threshold(alpha)


def calibration_split(
    n: int, share: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to fit on and of those held out for the threshold, both sorted; disjoint, covering 0..n-1.

    The held-out part is ``share`` of them, and at least 20 of 30 or more (the fewest that can promise a 5 % false-alarm
    rate is 19); of fewer than 30 it is a third. Images of one of ``groups`` (n,), numbered from 0, stay together where
    half of all, or two more than asked for, suffice; a warning says where few groups are. InputError for fewer than 3.
    """
    if n < 3:
        raise InputError(f"fitting needs at least 3 good images, and about 20 to be of use; there are {n}. Add some.")
    groups, wanted, taken = np.arange(n) if groups is None else groups, _held_out(n, share), []
    size = np.bincount(groups)
    for group in np.random.default_rng(seed).permutation(len(size)):
        if size[taken].sum() < wanted and size[taken].sum() + size[group] <= max(wanted + 2, n // 2):
            taken.append(group)
    held_out = np.isin(groups, taken)
    if held_out.sum() < wanted:  # most images are of one group, which must lie on both sides then
        held_out = np.isin(np.arange(n), calibration_split(n, share, seed)[1])
    different = len(np.unique(groups[held_out]))
    if different < 0.9 * held_out.sum():
        warnings.warn(
            f"many good images are near-duplicates: the threshold rests on {different} different parts, not on "
            f"{held_out.sum()}. Take images of more parts for the false-alarm rate that you ask for.",
            stacklevel=3,
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def near_duplicates(features: Tensor, alike: float = 0.8) -> np.ndarray:
    """The group (N,) of each of N images, numbered from 0: images that are chained by near-duplicates share one.

    Two are near-duplicates if what is their own correlates above ``alike``: their ``features`` (N, C, s, s) less the
    mean, and less the three directions in which the set varies most, such as light and position (one for each ten
    images where there are fewer than thirty)."""
    scale = features.std(dim=(0, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    vectors = (features / scale).flatten(1)
    vectors -= vectors.mean(dim=0)
    values, basis = torch.linalg.eigh((vectors @ vectors.T).double())  # in ascending order
    kept = len(values) - min(3, len(values) // 10)
    own = (basis[:, :kept] * values[:kept]) @ basis[:, :kept].T
    size = own.diagonal().clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return connected_components((own / size / size[:, None] > alike).numpy())[1]


def _held_out(n: int, share: float) -> int:
    return max(20, min(round(share * n), n // 3)) if n >= 30 else n // 3


def images_needed(alpha: float, share: float = 0.1) -> tuple[int, int]:
    """(held-out images that a false-alarm rate of ``alpha`` needs, images in all whose split holds out so many).

    No threshold from n held-out images can promise less than 1 / (n + 1)."""
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    return needed, next(n for n in itertools.count(needed) if _held_out(n, share) >= needed)


def conformal_threshold(calibration: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n held-out normal scores; flag an image if its score is above it.

    With n < 1/alpha - 1 no finite threshold can promise alpha, and the answer is +inf. Raises ValueError unless
    0 < alpha < 1 and all scores are finite."""
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
