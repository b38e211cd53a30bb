"""Is the field the same at every timestep, and are the scores? Agreement between timesteps, with intervals over images.

The claim ("the IRF holds for any neighbouring time step") can mean, from the strongest to the weakest: the *fields*
agree (:func:`cosine_similarity`, :func:`relative_change`), the *rankings* of images or pixels agree
(:func:`spearman_matrix`, :func:`pixel_spearman`), the *detection* is equally good. T are timesteps, N images.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .resampling import bootstrap_counts, percentile_interval


def field_gram(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Inner products <f_t, f_t'> of each image's fields: T arrays (N, C, s, s) -> (N, T, T), summed in float64."""
    flat = [np.asarray(one).reshape(len(one), -1) for one in fields]
    gram = np.empty((len(flat[0]), len(flat), len(flat)))
    for i, a in enumerate(flat):
        for j in range(i, len(flat)):
            gram[:, i, j] = gram[:, j, i] = np.einsum("nk,nk->n", a, flat[j], dtype=np.float64)
    return gram


def cosine_similarity(gram: np.ndarray) -> np.ndarray:
    """<f_t, f_t'> / (|f_t| |f_t'|) for each image, (N, T, T), in [-1, 1]: agreement up to a scale."""
    norm = np.sqrt(np.einsum("nii->ni", gram))
    return gram / (norm[:, :, None] * norm[:, None, :])


def relative_change(gram: np.ndarray) -> np.ndarray:
    """|f_t' - f_t| / |f_t| for each image, (N, T, T): 0 is the same field, scale included. Rows are t, columns t'."""
    square = np.einsum("nii->ni", gram)
    distance = square[:, :, None] + square[:, None, :] - 2 * gram
    return np.sqrt(np.maximum(distance, 0.0) / square[:, :, None])  # rounding may leave -1e-16


def spearman_matrix(scores: np.ndarray, seed: int, n_resamples: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank correlation of image scores between timesteps: (value, low, high), each (T, T); scores (T, N), N >= 3.
    95 % bootstrap over images, each resample ranked again; one in which all scores tie is left out."""
    n = scores.shape[1]
    counts = bootstrap_counts(n, n_resamples, np.random.default_rng(seed))
    index = np.stack([np.repeat(np.arange(n), row) for row in counts])  # (R, n)
    draws = _rank_correlation(np.moveaxis(scores[:, index], 1, 0))  # (R, T, T)
    draws = draws[~np.isnan(draws).any(axis=(1, 2))]
    low, high = percentile_interval(draws) if len(draws) else np.full((2, *draws.shape[1:]), np.nan)
    return _rank_correlation(scores[None])[0], low, high


def _rank_correlation(scores: np.ndarray) -> np.ndarray:
    """(R, T, n) -> (R, T, T), Spearman with average ranks for ties."""
    ranks = stats.rankdata(scores, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        unit = ranks / np.sqrt((ranks**2).sum(axis=-1, keepdims=True))
    return np.clip(np.einsum("rtn,run->rtu", unit, unit), -1, 1)


def pixel_spearman(nll: Sequence[np.ndarray]) -> np.ndarray:
    """Rank correlation of the anomaly values inside each image: T arrays (N, s, s) -> (N, T, T)."""
    stacked = np.stack([np.asarray(one).reshape(len(one), -1) for one in nll], axis=1)  # (N, T, s s)
    return _rank_correlation(stacked)
