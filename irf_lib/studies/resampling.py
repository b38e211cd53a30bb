"""Bootstrap intervals over images: the image is the unit, because the values inside one are not independent.

A resample is written as a vector of weights over the images, so that every statistic which is a function of sums over
images (means, moments, histograms, rank matrices) is resampled by one matrix product. Efron & Tibshirani 1993, Ch. 13.
"""

from __future__ import annotations

import math

import numpy as np

from ..files import InputError

N_RESAMPLES = 1000
Interval = tuple[float, float, float]  # value, low, high


def bootstrap_counts(n: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``n`` images is drawn in each resample: (n_resamples, n) ints, rows summing to n."""
    return rng.multinomial(n, np.full(n, 1 / n), n_resamples)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the central ``level`` of ``draws`` (n_resamples, ...) along the first axis."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def mean_interval(values: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES) -> tuple[np.ndarray, ...]:
    """(mean, low, high) over the images of ``values`` (N, ...), each (...), with a 95 % percentile interval.
    One image says nothing about others: its interval is NaN. Raises InputError for no images."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise InputError("a bootstrap interval needs at least one image")
    counts = bootstrap_counts(len(values), n_resamples, np.random.default_rng(seed))
    draws = (counts @ values.reshape(len(values), -1)) / len(values)
    low, high = percentile_interval(draws) if len(values) > 1 else np.full((2, draws.shape[1]), np.nan)
    return values.mean(axis=0), low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def simultaneous_band(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), each (m,): a band that holds 95 % of the *whole curves* ``draws`` (n, m): mean +- c sd at every
    point, with c the 95 % quantile over curves of their largest studentised distance."""
    centre, spread = draws.mean(axis=0), np.maximum(draws.std(axis=0), np.finfo(np.float64).tiny)
    reach = np.quantile(np.abs((draws - centre) / spread).max(axis=1), 0.95)
    return centre - reach * spread, centre + reach * spread


def auroc_interval(scores: np.ndarray, labels: np.ndarray, seed: int) -> Interval:
    """AUROC with a 95 % percentile bootstrap interval over images: (value, low, high).

    Good and anomalous images are drawn apart, so that every resample has both. NaN three times where one is missing.
    Where the two are separated perfectly no resample differs, and the interval has no width: that is no certainty.
    """
    return auroc_difference_interval(scores, None, labels, seed)


def auroc_difference_interval(scores: np.ndarray, others: np.ndarray | None, labels: np.ndarray, seed: int) -> Interval:
    """AUROC of ``scores`` minus AUROC of ``others`` (None: 0) on the same images, as :func:`auroc_interval`, *paired*:
    every resample draws the same images for both, so what makes an image hard for both cancels. Scores are (N,), or (S,
    N) for S training seeds: then it is the mean over seeds, and every resample draws the same images for all."""
    labels = np.asarray(labels).astype(bool)
    if labels.all() or not labels.any():
        return math.nan, math.nan, math.nan
    pairs = _wins(scores, labels) - (0 if others is None else _wins(others, labels))
    pairs, rng = pairs.mean(axis=0), np.random.default_rng(seed)  # the mean over seeds
    rows, columns = (bootstrap_counts(n, N_RESAMPLES, rng) for n in pairs.shape)
    resampled = np.einsum("ri,ij,rj->r", rows, pairs, columns, optimize=True) / pairs.size
    return float(pairs.mean()), *map(float, percentile_interval(resampled))


def _wins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(S, anomalous, good): 1 where the anomalous image scores higher, 1/2 where both score the same. AUROC is the mean
    over all pairs, so that one table of pairs serves every resample."""
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(scores).all():
        raise InputError(f"{(~np.isfinite(scores)).sum()} of {scores.size} image scores are NaN or infinite")
    return np.heaviside(scores[:, labels, None] - scores[:, None, ~labels], 0.5)


def representative_examples(scores: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """Which images to show, by a rule instead of an eye: rank -> index of the highest, median and lowest scoring
    anomalous image, and of the highest scoring good one. scores (N,), labels (N,) bool, with an image of each kind."""
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    order = np.argsort(scores, kind="stable")
    bad, good = order[labels[order]], order[~labels[order]]
    picks = {"highest": bad[-1], "median": bad[len(bad) // 2], "lowest": bad[0], "good: highest": good[-1]}
    return {rank: int(index) for rank, index in picks.items()}
