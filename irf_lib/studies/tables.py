"""The summary of a results folder: means over seeds, categories and roles, and differences, all with intervals."""

import numpy as np
import pandas as pd

from ..files import InputError
from ..metrics import METRICS
from .resampling import Interval, auroc_draws, bootstrap_counts, image_counts, percentile_interval

GROUP = ["dataset", "category"]
KEY = [*GROUP, "method", "metric"]
# Test labels of the development categories were seen when defaults were chosen; nothing was chosen on the others.
ROLES = dict.fromkeys([("mvtec_ad", "bottle"), ("mvtec_ad", "pill"), ("mvtec_ad", "screw")], "development")
ROLES |= dict.fromkeys([("mvtec_ad", "grid"), ("mpdd", "metal_plate")], "confirmation")
PULLS = {"AUPRO": "AUPRO pull", "P-AP": "P-AP pull"}  # columns of image_scores.csv: resampling.pixel_influences


def summarise(metrics: pd.DataFrame, scores: pd.DataFrame, method: str = "irf") -> pd.DataFrame:
    """Rows (dataset, category, method, metric, mean, sd, n_seeds, diff, lo, hi, mean_lo, mean_hi, n_categories, role).

    ``metrics`` has the columns dataset, category, seed, method and METRICS; ``scores`` dataset, category, seed, method,
    image, anomalous, score and those of PULLS, one row a test image. Category ``mean`` is the mean over a data set's
    categories; with dataset ``-``, ``mean of development`` and ``mean of confirmation`` are over those of this role.
    A method that lacks one of the categories has no mean, because it would be the mean of something else.

    ``diff`` is the mean of ``method`` minus the row's, over the categories and seeds that both have. Its 95 % bootstrap
    interval (lo, hi) and that of the mean draw test images within each category, and training seeds; for a difference
    the same for both. Only I-AUROC, AUPRO and P-AP have them. Raises InputError for methods that were scored on
    different images."""
    long = metrics.melt([*GROUP, "seed", "method"], list(METRICS), "metric")
    long["part"] = list(zip(long.dataset, long.category, strict=True))
    long["role"] = long.part.map(lambda part: ROLES.get(part, "-"))
    known = long[long.role != "-"]
    means = [long.assign(category="mean", role="-"), known.assign(dataset="-", category="mean of " + known.role)]
    every = pd.concat([long, *means]).groupby(KEY, sort=False)
    parts = every.part.unique()
    by_seed = every.obj.groupby([*KEY, "seed"], sort=False).value.mean()
    table = by_seed.groupby(KEY, sort=False).agg(mean="mean", sd="std", n_seeds="count")

    scores = scores.merge(metrics[[*GROUP, "seed", "method", *PULLS]], "left")
    draws = {(*place, *key): one for i, (place, part) in enumerate(scores.groupby(GROUP, sort=False))
             for key, one in _draws(part, seed=i).items()}  # fmt: skip
    nothing, intervals = pd.DataFrame(), []
    for *_, name, metric in table.index:
        theirs = [draws.get((*part, name, metric), nothing) for part in parts[(*_, name, metric)]]
        ours = [draws.get((*part, method, metric), nothing) for part in parts[(*_, name, metric)] if name != method]
        pairs = [one - other for one, other in zip(ours, theirs, strict=False)]
        intervals.append((*_interval(pairs), *_interval(theirs)[1:]))
    table[["diff", "lo", "hi", "mean_lo", "mean_hi"]] = np.array(intervals)
    table = table.assign(n_categories=parts.map(len), role=every.role.first()).reset_index()
    most = table.groupby([*GROUP, "metric"]).n_categories.transform("max")
    return table[table.n_categories == most].reset_index(drop=True)


def paired_difference(scores: pd.DataFrame, method: str, other: str) -> Interval:
    """``diff`` of :func:`summarise` in I-AUROC, in one category: (value, low, high)."""
    draws = _draws(scores[scores.method.isin([method, other])], seed=0)
    return _interval([draws[method, "I-AUROC"] - draws[other, "I-AUROC"]])


def _draws(scores: pd.DataFrame, seed: int) -> dict[tuple[str, str], pd.DataFrame]:
    """(method, metric): (1 + N_RESAMPLES, S), the metric in each resample of one category's images, a column a training
    seed; the first line is the observed one. Every method is drawn on the same images."""
    labels, found = scores.groupby("image").anomalous.first().astype(bool), {}
    counts = image_counts(labels.to_numpy(), seed)
    for (method, k), part in scores.groupby(["method", "seed"], sort=False):
        part = part.set_index("image").reindex(labels.index)
        if part.score.isna().any():
            raise InputError(f"{method} (seed {k}) and others were scored on different images; use the same test set")
        found.setdefault((method, "I-AUROC"), {})[k] = auroc_draws(part.score, labels.to_numpy(), counts)
        for metric, pull in PULLS.items():
            if {metric, pull} <= set(part):
                moved = (counts - 1) @ part[pull].to_numpy() / len(part)
                found.setdefault((method, metric), {})[k] = part[metric].iloc[0] + moved
    return {key: pd.DataFrame(by_seed) for key, by_seed in found.items()}


def _interval(frames: list[pd.DataFrame]) -> Interval:
    """The mean over categories (a frame of :func:`_draws` each) and seeds, which are drawn, too; NaN for none."""
    means = []
    for draws in (frame.dropna(axis=1).to_numpy() for frame in frames):
        if draws.size:
            seeds = bootstrap_counts(draws.shape[1], len(draws), np.random.default_rng(0))
            seeds[0] = 1  # the observed line
            means.append((draws * seeds).mean(axis=1))
    value, *resampled = np.mean(means, axis=0) if means else [np.nan] * 3
    return float(value), *map(float, percentile_interval(resampled))
