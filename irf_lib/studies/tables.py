"""The summary of a results folder: mean and standard deviation over seeds, and differences between methods."""

from __future__ import annotations

import pandas as pd

from ..files import InputError
from ..metrics import METRICS
from .resampling import auroc_difference_interval

GROUP = ["dataset", "category"]


def summarise(metrics: pd.DataFrame, scores: pd.DataFrame, method: str = "irf") -> pd.DataFrame:
    """Rows (dataset, category, method, metric, mean, sd, n_seeds, diff, lo, hi), one for each of METRICS.

    ``metrics`` has the columns dataset, category, seed, method and METRICS; ``scores`` dataset, category, seed, method,
    image, anomalous and score, one row a test image. ``sd`` is over seeds. ``diff`` is :func:`paired_difference` of
    ``method`` and the row's; NaN for metrics other than I-AUROC, and for a method without scores. Category ``mean`` is
    the mean over a data set's categories; its sd is that of the categories' mean seed by seed, its difference has no
    interval.
    """
    long = metrics.melt([*GROUP, "seed", "method"], list(METRICS), "metric")
    whole = long.groupby(["dataset", "seed", "method", "metric"], sort=False).value.mean().reset_index()
    long = pd.concat([long, whole.assign(category="mean")])
    grouped = long.groupby([*GROUP, "method", "metric"], sort=False).value
    table = grouped.agg(mean="mean", sd="std", n_seeds="count").reset_index()
    rows = [
        (*place, other, "I-AUROC", *paired_difference(part, method, other))
        for place, part in scores.groupby(GROUP, sort=False)
        for other in part.method.unique()
        if other != method and method in set(part.method)
    ]
    each = pd.DataFrame(rows, columns=[*GROUP, "method", "metric", "diff", "lo", "hi"])
    whole = each.groupby(["dataset", "method", "metric"])[["diff"]].mean().reset_index().assign(category="mean")
    table = table.merge(pd.concat([each, whole]), how="left")  # on what the two have in common
    return table.astype(dict.fromkeys(["diff", "lo", "hi"], float))  # without any difference they would be objects


def paired_difference(scores: pd.DataFrame, method: str, other: str) -> tuple[float, float, float]:
    """I-AUROC of ``method`` minus that of ``other`` in one category, mean over the seeds both have: (value, low, high),
    a 95 % paired bootstrap interval over images. Raises InputError if they were scored on different images."""
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
