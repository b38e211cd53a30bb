"""The summary of a results folder: mean and standard deviation over seeds, and differences between methods."""

from __future__ import annotations

import math

import pandas as pd

from ..files import InputError
from ..metrics import METRICS
from .resampling import auroc_difference_interval

GROUP = ["dataset", "category"]


def summarise(metrics: pd.DataFrame, scores: pd.DataFrame, method: str = "irf") -> pd.DataFrame:
    """Rows (dataset, category, method, metric, mean, sd, n_seeds, diff, lo, hi), one for each of METRICS.

    ``metrics`` has the columns dataset, category, seed, method and METRICS; ``scores`` dataset, category, seed, method,
    image, anomalous and score, one row a test image. ``sd`` is over seeds (NaN for one). ``diff`` is I-AUROC of
    ``method`` minus that of the row's method, mean over the seeds that both have, with a 95 % paired bootstrap interval
    over test images; NaN for the other metrics, and for a method without scores. Category ``mean`` is the mean over a
    data set's categories; its sd is that of the categories' mean seed by seed, its difference has no interval.
    Raises InputError if two methods were scored on different images.
    """
    long = metrics.melt([*GROUP, "seed", "method"], list(METRICS), "metric")
    whole = long.groupby(["dataset", "seed", "method", "metric"], sort=False).value.mean().reset_index()
    long = pd.concat([long, whole.assign(category="mean")])
    grouped = long.groupby([*GROUP, "method", "metric"], sort=False).value
    table = grouped.agg(mean="mean", sd="std", n_seeds="count").reset_index()
    found = {
        (dataset, category, other): paired_difference(part, method, other)
        for (dataset, category), part in scores.groupby(GROUP, sort=False)
        for other in part.method.unique()
        if other != method and method in set(part.method)
    }
    for dataset, other in {(dataset, other) for dataset, _, other in found}:
        each = [one[0] for (d, _, o), one in found.items() if (d, o) == (dataset, other)]
        found[dataset, "mean", other] = sum(each) / len(each), math.nan, math.nan
    nothing = (math.nan, math.nan, math.nan)
    differences = [
        found.get((row.dataset, row.category, row.method), nothing) if row.metric == "I-AUROC" else nothing
        for row in table.itertuples()
    ]
    return table.join(pd.DataFrame(differences, columns=["diff", "lo", "hi"], index=table.index))


def paired_difference(scores: pd.DataFrame, method: str, other: str) -> tuple[float, float, float]:
    """I-AUROC of ``method`` minus that of ``other`` in one category, (value, low, high), over the seeds both have."""
    wide = {
        name: part.pivot(index="image", columns="seed", values="score")
        for name, part in scores[scores.method.isin([method, other])].groupby("method")
    }
    ours, theirs = wide[method], wide[other]
    seeds = sorted(set(ours) & set(theirs))
    if set(ours.index) != set(theirs.index):
        raise InputError(f"{method} and {other} were scored on different images; score them on the same test set")
    labels = scores.drop_duplicates("image").set_index("image").anomalous
    ours, theirs = ours[seeds], theirs.loc[ours.index, seeds]
    if not seeds or ours.isna().any(axis=None) or theirs.isna().any(axis=None):
        raise InputError(f"{method} and {other} share no seed with all images; run both with the same seeds")
    return auroc_difference_interval(ours.to_numpy().T, theirs.to_numpy().T, labels.loc[ours.index].to_numpy(), seed=0)
