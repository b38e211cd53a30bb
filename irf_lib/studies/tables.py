"""The summary of a results folder: means over seeds, categories and roles, and differences, all with intervals."""

from __future__ import annotations

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

    ``sd`` is over training seeds (of the categories' mean, seed by seed). The 95 % bootstrap intervals (mean_lo,
    mean_hi) and that of ``diff``, the mean of ``method`` minus the row's, draw test images within each category, and
    the training seeds. ``diff`` is paired: over the categories and seeds that both have, on the same draws. Both are
    there for I-AUROC, AUPRO and P-AP. Raises InputError for methods that were scored on different images.
    """
    long = metrics.melt([*GROUP, "seed", "method"], list(METRICS), "metric")
    long["part"] = list(zip(long.dataset, long.category, strict=True))
    long["role"] = long.part.map(lambda part: ROLES.get(part, "-"))
    known = long[long.role != "-"]
    means = [long.assign(category="mean", role="-"), known.assign(dataset="-", category="mean of " + known.role)]
    every = pd.concat([long, *means])
    parts = every.groupby(KEY, sort=False).part.unique()
    by_seed = every.groupby([*KEY, "role", "seed"], sort=False).value.mean()
    table = by_seed.groupby([*KEY, "role"], sort=False).agg(mean="mean", sd="std", n_seeds="count").reset_index()

    draws = {}
    for i, (place, part) in enumerate(scores.groupby(GROUP, sort=False)):
        measured = metrics[(metrics[GROUP] == place).all(axis=1)].set_index(["method", "seed"])
        draws |= {(place, *key): one for key, one in _draws(part, measured, i).items()}
    intervals = []
    for key in table[KEY].itertuples(index=False, name=None):
        *_, name, metric = key
        places = [place for place in parts[key] if (place, name, metric) in draws]
        theirs = [draws[place, name, metric] for place in places]
        ours = [draws.get((place, method, metric), theirs[0][[]]) for place in places if name != method]
        pairs = [one - other for one, other in zip(ours, theirs, strict=False)]
        intervals.append((*_interval(pairs), *_interval(theirs)[1:]))
    table[["diff", "lo", "hi", "mean_lo", "mean_hi"]] = np.array(intervals)
    table["n_categories"] = [len(parts[tuple(key)]) for key in table[KEY].to_numpy()]
    return table[[name for name in table if name != "role"] + ["role"]]


def paired_difference(scores: pd.DataFrame, method: str, other: str) -> Interval:
    """I-AUROC of ``method`` minus that of ``other`` in one category, mean over the seeds both have: (value, low, high),
    as ``diff`` in :func:`summarise`. Raises InputError if they were scored on different images."""
    draws = _draws(scores[scores.method.isin([method, other])], None, 0)
    return _interval([draws[method, "I-AUROC"] - draws[other, "I-AUROC"]])


def _draws(scores: pd.DataFrame, metrics: pd.DataFrame | None, seed: int) -> dict[tuple[str, str], pd.DataFrame]:
    """(method, metric): (1 + N_RESAMPLES, S), the metric in each resample of one category's images, a column a training
    seed; the first line is the observed one. Every method is drawn on the same images."""
    labels = scores.drop_duplicates("image").set_index("image").anomalous.astype(bool).sort_index()
    counts, found = image_counts(labels.to_numpy(), seed), {}
    for (method, k), part in scores.groupby(["method", "seed"], sort=False):
        part = part.set_index("image").reindex(labels.index)
        if part.score.isna().any():
            raise InputError(f"{method} (seed {k}) and others were scored on different images; use the same test set")
        found.setdefault((method, "I-AUROC"), {})[k] = auroc_draws(part.score, labels.to_numpy(), counts)
        for metric, pull in PULLS.items():
            if metrics is not None and pull in part:
                moved = (counts - 1) @ part[pull].to_numpy() / len(part)
                found.setdefault((method, metric), {})[k] = metrics[metric][method, k] + moved
    return {key: pd.DataFrame(by_seed) for key, by_seed in found.items()}


def _interval(frames: list[pd.DataFrame]) -> Interval:
    """The mean over categories (one frame of :func:`_draws` each) and seeds, which are drawn, too; NaN for none."""
    frames = [kept for frame in frames if (kept := frame.dropna(axis=1)).shape[1]]
    if not frames:
        return np.nan, np.nan, np.nan
    draws = 0
    for frame in frames:
        n = frame.shape[1]
        weights = np.vstack([np.ones(n), bootstrap_counts(n, len(frame) - 1, np.random.default_rng(0))])
        draws = draws + (frame.to_numpy() * weights).sum(axis=1) / n / len(frames)
    return float(draws[0]), *map(float, percentile_interval(draws[1:]))
