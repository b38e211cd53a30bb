"""Is the field Gaussian? Effect sizes first, tests second, verdicts by limits that are written down before looking.

Fields are (N, C, s, s). The unit of analysis is the image: pixels of one image depend on each other, so a p-value over
pixels rejects true Gaussian fields, and every interval here resamples images. An *effect* is an interval: (value, low,
high), 95 % bootstrap.

With z the pooled values, Q their quantile function, Phi that of N(0, 1), and rho = corr(Q(U), Phi^-1(U)) the
probability-plot correlation (Filliben 1975), the Wasserstein-2 distance to N(0, 1) takes apart into location, scale and
shape:   W2^2 = int (Q - Phi^-1)^2 = mean^2 + (sd - 1)^2 + 2 sd (1 - rho).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

from ..files import InputError
from .resampling import N_RESAMPLES, Interval, bootstrap_counts, percentile_interval, simultaneous_band

# What still counts as Gaussian: the neutral value, the largest deviation from it, and what it is called if the whole
# interval lies below or above. The limits are conventions, set before any field was looked at.
_JUDGED = {
    "mean": (0.0, 0.05, "shifted down", "shifted up"),
    "sd": (1.0, 0.1, "too narrow", "too wide"),
    "skew": (0.0, 0.2, "skewed left", "skewed right"),
    "excess_kurtosis": (0.0, 0.5, "light tails", "heavy tails"),
    "w2": (0.0, 0.15, "", "far from the standard normal"),
    "norm_mean": (1.0, 0.1, "short vectors", "long vectors"),
    "norm_dispersion": (1.0, 0.5, "norms too even", "norms uneven"),
    "autocorrelation": (0.0, 0.1, "neighbours opposed", "not white"),
}
LIMITS: dict[str, tuple[float, float]] = {name: row[:2] for name, row in _JUDGED.items()}
SIGNATURES: dict[str, tuple[str, str]] = {name: row[2:] for name, row in _JUDGED.items()}
# Bin edges as probabilities: logistic spacing, so that tails down to 1e-7 are resolved as finely as the middle.
_EDGES = special.expit(np.linspace(-16, 16, 801))
Effects = Callable[[np.ndarray], dict[str, np.ndarray]]  # weights (R, N), rows summing to 1 -> name: (R,)


def _bootstrapped(effects: Effects, n: int, seed: int) -> dict[str, Interval]:
    point = effects(np.full((1, n), 1 / n))
    draws = effects(bootstrap_counts(n, N_RESAMPLES, np.random.default_rng(seed)) / n)
    return {name: (float(point[name][0]), *map(float, percentile_interval(draws[name]))) for name in point}


def marginal_effects(values: np.ndarray, seed: int) -> dict[str, Interval]:
    """How far the values of N images, (N, K), pooled, are from N(0, 1): name -> (value, low, high).

    ``mean``, ``sd``, ``skew``, ``excess_kurtosis``; ``ppcc``: probability-plot correlation, 1 for any Gaussian; ``w2``:
    Wasserstein-2 distance to N(0, 1), in standard deviations; ``tail3``, ``tail4``: how many times more values lie
    beyond 3 and 4 than under N(0, 1). Every one follows from sums over images, so that a matrix product resamples it.
    Raises InputError for fewer than 2 images."""
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    if len(values) < 2:
        raise InputError(f"an interval over images needs at least 2 of them, got {len(values)}")
    powers = np.stack([(values**k).sum(axis=1) for k in (1, 2, 3, 4)], axis=1)  # (N, 4)
    beyond = np.stack([(np.abs(values) > k).sum(axis=1) for k in (3, 4)], axis=1)  # (N, 2)
    pooled = np.sort(values, axis=None)
    edges = np.unique(pooled[np.round(_EDGES[1:-1] * (pooled.size - 1)).astype(int)])
    bins = np.searchsorted(edges, values, side="right")  # (N, K) in 0..len(edges): quantiles of the pooled values
    counts = np.stack([np.bincount(row, minlength=len(edges) + 1) for row in bins])  # (N, bins)
    sums = np.bincount(bins.ravel(), weights=values.ravel(), minlength=len(edges) + 1)
    centres = sums / np.maximum(counts.sum(axis=0), 1)

    def effects(weights: np.ndarray) -> dict[str, np.ndarray]:
        m1, m2, m3, m4 = (weights @ powers / values.shape[1]).T
        variance = m2 - m1**2
        sd, share = np.sqrt(variance), weights @ counts / values.shape[1]  # share: (R, bins), summing to 1
        edge = stats.norm.pdf(stats.norm.ppf(np.clip(np.cumsum(share, axis=1), 0, 1)))
        # int over a bin of Phi^-1(p) dp = pdf(lower edge) - pdf(upper edge), in z
        cross = (centres * -np.diff(edge, axis=1, prepend=0.0)).sum(axis=1)  # E[Q(U) Phi^-1(U)]
        tails = (weights @ beyond / values.shape[1]).T / (2 * stats.norm.sf([[3.0], [4.0]]))
        return {
            "mean": m1,
            "sd": sd,
            "skew": (m3 - 3 * m1 * m2 + 2 * m1**3) / sd**3,
            "excess_kurtosis": (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2 - 3,
            "ppcc": np.minimum(cross / sd, 1.0),
            "w2": np.sqrt(np.maximum(m2 + 1 - 2 * cross, 0.0)),
            "tail3": tails[0],
            "tail4": tails[1],
        }

    return _bootstrapped(effects, len(values), seed)


def squared_norms(fields: np.ndarray) -> np.ndarray:
    """|z|^2 of the C-vector at each location, (N, C, s, s) -> (N, s s): chi-square with C degrees under N(0, I)."""
    return np.square(fields, dtype=np.float64).sum(axis=1).reshape(len(fields), -1)


def norm_effects(squared: np.ndarray, dof: int, seed: int) -> dict[str, Interval]:
    """Squared norms (N, L) against chi-square(``dof``): ``norm_mean`` = mean / dof, and ``norm_dispersion``, their
    coefficient of variation over that of chi-square, (sd / mean) / sqrt(2 / dof), which no scale moves. Both are 1 for
    N(0, I). A dispersion above 1 means correlated channels, or vectors that are long in some places or images and short
    in others; in fitted coordinates, where channels are uncorrelated, only the second."""
    sums = np.stack([squared.mean(axis=1), np.square(squared).mean(axis=1)], axis=1)  # (N, 2)

    def effects(weights: np.ndarray) -> dict[str, np.ndarray]:
        first, second = (weights @ sums).T
        sd = np.sqrt(np.maximum(second - first**2, 0.0))
        return {"norm_mean": first / dof, "norm_dispersion": sd / first * np.sqrt(dof / 2)}

    return _bootstrapped(effects, len(squared), seed)


def radial_autocorrelation(fields: np.ndarray, max_lag: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlation of values ``lag`` locations apart, around zero, averaged over directions, channels and images.

    (N, C, s, s) -> (value, low, high), each (max_lag + 1,); 1 at lag 0, and 0 at all others for a white field. Lags are
    distances rounded to whole locations; products are summed by FFT with zero padding, so that nothing wraps around."""
    height, width = fields.shape[2:]
    shape = (2 * height, 2 * width)
    power = np.square(np.abs(np.fft.rfft2(fields, shape))).mean(axis=1)  # (N, 2h, w + 1)
    products = np.fft.irfft2(power, shape)  # sums over pairs, by displacement
    pairs = np.fft.irfft2(np.square(np.abs(np.fft.rfft2(np.ones((height, width)), shape))), shape)  # how many pairs
    dy, dx = (np.minimum(np.arange(size), size - np.arange(size)) for size in shape)
    rings = [np.round(np.hypot(dy[:, None], dx[None, :])) == lag for lag in range(max_lag + 1)]
    covariance = np.stack([products[:, ring].sum(axis=1) / pairs[ring].sum() for ring in rings], axis=1)
    draws = bootstrap_counts(len(covariance), N_RESAMPLES, np.random.default_rng(seed)) @ covariance
    total = covariance.sum(axis=0)
    return total / total[0], *percentile_interval(draws / draws[:, :1])


def qq_curve(values: np.ndarray, reference: stats.rv_continuous, seed: int) -> pd.DataFrame:
    """Quantiles of pooled ``values`` (N, K) against ``reference`` (a frozen scipy distribution): probability, expected
    (reference quantile), observed, with two simultaneous 95 % bands. ``low``, ``high``: around the observed curve,
    bootstrap over images. ``null_low``, ``null_high``: for the whole curve of as many *independent* draws from the
    reference, simulated exactly: uniform order statistics are ratios of gamma sums, so nothing of size N K is drawn."""
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    rng = np.random.default_rng(seed)
    # Evenly spaced in z rather than in probability, out to where a tail still holds about ten values.
    reach = min(4.0, float(stats.norm.isf(min(0.4, 10 / values.size))))
    probability = stats.norm.cdf(np.linspace(-reach, reach, 99))
    pooled, owner = np.sort(values, axis=None), np.argsort(values, axis=None) // values.shape[1]
    counts = bootstrap_counts(len(values), 400, rng)
    at = np.stack([np.searchsorted(np.cumsum(row[owner]), probability * values.size) for row in counts])
    low, high = simultaneous_band(pooled[np.minimum(at, values.size - 1)])
    rank = np.clip(np.round(probability * values.size).astype(int), 1, values.size)
    steps = np.diff(np.concatenate([[0], rank, [values.size + 1]]))
    gammas = np.cumsum(rng.standard_gamma(np.maximum(steps, 1e-12), (400, len(steps))), axis=1)
    null_low, null_high = simultaneous_band(reference.ppf(gammas[:, :-1] / gammas[:, -1:]))
    columns = {"probability": probability, "expected": reference.ppf(probability), "observed": pooled[rank - 1]}
    return pd.DataFrame(columns | {"low": low, "high": high, "null_low": null_low, "null_high": null_high})


class Judgement(NamedTuple):
    verdict: str
    signatures: tuple[str, ...]  # what is wrong, in words, for the effects whose interval lies outside its limit


def judge(effects: Mapping[str, Interval]) -> Judgement:
    """Hold ``effects`` against LIMITS (ppcc and tails have none): 'Gaussian' if every interval lies inside its limit,
    'not Gaussian' if some interval lies outside, 'undecided' otherwise."""
    signatures, inside = [], []
    for name in (name for name in LIMITS if name in effects):
        (_, low, high), (neutral, reach, below, above) = effects[name], _JUDGED[name]
        signatures += [below] * (high < neutral - reach) + [above] * (low > neutral + reach)
        inside.append(neutral - reach <= low and high <= neutral + reach)
    verdict = "not Gaussian" if signatures else "Gaussian" if all(inside) else "undecided"
    return Judgement(verdict, tuple(signatures))


def all_effects(fields: np.ndarray, seed: int) -> dict[str, Interval]:
    """Every judged effect of fields (N, C, s, s) whose claimed law is N(0, I): marginal, joint and whiteness."""
    lag1 = tuple(float(one[1]) for one in radial_autocorrelation(fields, 1, seed))
    joint = norm_effects(squared_norms(fields), fields.shape[1], seed)
    return marginal_effects(fields, seed) | joint | {"autocorrelation": lag1}
