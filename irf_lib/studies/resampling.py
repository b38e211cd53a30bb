"""Bootstrap intervals over images: the image is the unit, because the values inside one are not independent.

A resample is written as a vector of weights over the images, so that every statistic which is a function of sums over
images (means, moments, histograms, rank matrices) is resampled by one matrix product. Efron & Tibshirani 1993, Ch. 13.
"""

import math

import numpy as np

from ..files import InputError
from ..metrics import FPR_LIMIT, overlap_weights

N_RESAMPLES = 1000
Interval = tuple[float, float, float]  # value, low, high


def bootstrap_counts(n: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``n`` images is drawn in each resample: (n_resamples, n) ints, rows summing to n."""
    return rng.multinomial(n, np.full(n, 1 / n), n_resamples)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the central ``level`` of ``draws`` (n_resamples, ...) along the first axis."""
    tail = (1 - level) / 2
    return tuple(np.quantile(draws, [tail, 1 - tail], axis=0))


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
    Where the two are separated perfectly no resample differs, and the interval has no width: that is no certainty."""
    return auroc_difference_interval(scores, None, labels, seed)


def auroc_difference_interval(scores: np.ndarray, others: np.ndarray | None, labels: np.ndarray, seed: int) -> Interval:
    """AUROC of ``scores`` minus AUROC of ``others`` (None: 0) on the same images, as :func:`auroc_interval`, *paired*:
    every resample draws the same images for both, so what makes an image hard for both cancels. Scores are (N,)."""
    labels = np.asarray(labels).astype(bool)
    if labels.all() or not labels.any():
        return math.nan, math.nan, math.nan
    counts = image_counts(labels, seed)
    draws = auroc_draws(scores, labels, counts) - (0 if others is None else auroc_draws(others, labels, counts))
    return float(draws[0]), *map(float, percentile_interval(draws[1:]))


def image_counts(labels: np.ndarray, seed: int) -> np.ndarray:
    """How often each image is drawn: (1 + N_RESAMPLES, N), good and anomalous images apart. The first line is the test
    set as it is, so that every statistic of these lines begins with its observed value. labels (N,) bool."""
    rng, counts = np.random.default_rng(seed), np.ones((1 + N_RESAMPLES, len(labels)), dtype=int)
    for kind in (labels, ~labels):
        counts[1:, kind] = bootstrap_counts(int(kind.sum()), N_RESAMPLES, rng)
    return counts


def auroc_draws(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The AUROC of scores (N,) in each line of :func:`image_counts`. It is the mean over all pairs of an anomalous and
    a good image (1 where the first scores higher, 1/2 for a tie), so that one table of pairs serves every resample."""
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise InputError(f"{(~np.isfinite(scores)).sum()} of {scores.size} image scores are NaN or infinite")
    pairs = np.heaviside(scores[labels, None] - scores[None, ~labels], 0.5)
    return np.einsum("ri,ij,rj->r", counts[:, labels], pairs, counts[:, ~labels], optimize=True) / pairs.size


def pixel_influences(maps: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """How far each image of maps and masks (N, H, W) pulls AUPRO and P-AP: {metric: (N,)}, (N - 1) times the metric of
    all minus that without this one (Efron & Tibshirani 1993, Ch. 11). To first order a resample's metric is that of
    all plus ``((counts - 1) @ influences) / N``. The curves run over 400 quantiles of the defect pixels."""
    levels = np.unique(np.quantile(maps[masks], np.linspace(0, 1, 400)))
    edges, weights = np.concatenate([[-np.inf], levels, [np.inf]]), np.zeros(masks.shape)
    weights[masks] = overlap_weights(masks)
    each = []
    for one, mask, weight in zip(maps, masks, weights, strict=True):
        normal = one[::2, ::2][~mask[::2, ::2]]  # every fourth, because there are many and they are smooth
        above = [np.histogram(values, edges, weights=of)[0][::-1].cumsum()
                 for values, of in ((normal, None), (one[mask], None), (one[mask], weight[mask]))]  # fmt: skip
        each.append(above)
    sums = np.concatenate([[np.sum(each, axis=0)], np.sum(each, axis=0) - each])  # of all images, then without each
    fpr, recall, overlap = np.moveaxis(sums / sums[..., -1:], 1, 0)
    precision = sums[:, 1] / (sums[:, 1] + 4 * sums[:, 0]).clip(1)
    found = {"P-AP": (np.diff(recall, prepend=0) * precision).sum(axis=1),
             "AUPRO": np.trapezoid(overlap, fpr.clip(max=FPR_LIMIT), axis=1) / FPR_LIMIT}  # fmt: skip
    return {name: (len(maps) - 1) * (value[0] - value[1:]) for name, value in found.items()}
