"""Bootstrap intervals over images: the image is the unit, because the values inside one are not independent.

A resample is written as a vector of weights over the images, so that every statistic which is a function of sums over
images (means, moments, histograms, rank matrices) is resampled by one matrix product. Efron & Tibshirani 1993, Ch. 13.
"""

from __future__ import annotations

import numpy as np

N_RESAMPLES = 1000


def bootstrap_counts(n: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``n`` images is drawn in each resample: (n_resamples, n) ints, rows summing to n."""
    return rng.multinomial(n, np.full(n, 1 / n), n_resamples)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the central ``level`` of ``draws`` (n_resamples, ...) along the first axis."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def mean_interval(
    values: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high) over the images of ``values`` (N, ...), each (...), with a 95 % percentile interval.

    One image says nothing about others: its interval is NaN. Raises ValueError for no images.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("a bootstrap interval needs at least one image")
    counts = bootstrap_counts(len(values), n_resamples, np.random.default_rng(seed))
    draws = (counts @ values.reshape(len(values), -1)) / len(values)
    low, high = percentile_interval(draws) if len(values) > 1 else np.full((2, draws.shape[1]), np.nan)
    return values.mean(axis=0), low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def simultaneous_band(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), each (m,): a band that holds a share ``level`` of the *whole curves* ``draws`` (n, m).

    mean +- c sd at every point, with c the ``level`` quantile over curves of their largest studentised distance.
    Pointwise intervals would let far more than 1 - level of the curves leave them somewhere.
    """
    centre, spread = draws.mean(axis=0), draws.std(axis=0)
    spread = np.maximum(spread, np.finfo(np.float64).tiny)  # a point where all curves agree
    reach = np.quantile(np.abs((draws - centre) / spread).max(axis=1), level)
    return centre - reach * spread, centre + reach * spread
