"""The summary against numbers by hand, and its paired interval against an unpaired one."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from irf_lib.metrics import METRICS
from irf_lib.studies.resampling import auroc_difference_interval
from irf_lib.studies.tables import paired_difference, summarise


@pytest.fixture
def tables():
    """Two categories, two seeds; ``other`` is ``irf`` with noise added, so it is worse."""
    rng = np.random.default_rng(0)
    metrics, scores = [], []
    for category in ("a", "b"):
        labels = np.arange(60) >= 20
        for seed in (0, 1):
            good = rng.normal(size=60) + 2 * labels
            for method, values in {"irf": good, "other": good + 2 * rng.normal(size=60)}.items():
                head = {"dataset": "d", "category": category, "seed": seed, "method": method}
                metrics.append(head | dict.fromkeys(METRICS, 0.5) | {"I-AUROC": roc_auc_score(labels, values)})
                scores.append(pd.DataFrame({**head, "image": np.arange(60), "anomalous": labels, "score": values}))
    return pd.DataFrame(metrics), pd.concat(scores, ignore_index=True)


def test_means_and_deviations(tables):
    metrics, _ = tables
    table = summarise(*tables).set_index(["category", "method", "metric"])
    expected = metrics[(metrics.category == "a") & (metrics.method == "irf")]["I-AUROC"]
    row = table.loc[("a", "irf", "I-AUROC")]
    assert row["mean"] == pytest.approx(expected.mean()) and row.sd == pytest.approx(expected.std(ddof=1))
    assert row.n_seeds == 2 and np.isnan(row["diff"])
    by_seed = metrics[metrics.method == "other"].groupby("seed")["I-AUROC"].mean()
    whole = table.loc[("mean", "other", "I-AUROC")]
    assert whole["mean"] == pytest.approx(by_seed.mean()) and whole.sd == pytest.approx(by_seed.std(ddof=1))


def test_differences(tables):
    metrics, scores = tables
    table = summarise(*tables).set_index(["category", "method", "metric"])
    by_method = metrics[metrics.category == "b"].groupby("method")["I-AUROC"].mean()
    row = table.loc[("b", "other", "I-AUROC")]
    assert row["diff"] == pytest.approx(by_method["irf"] - by_method["other"])
    assert 0 < row.lo < row["diff"] < row.hi
    both = [table.loc[(name, "other", "I-AUROC")]["diff"] for name in ("a", "b")]
    assert table.loc[("mean", "other", "I-AUROC")]["diff"] == pytest.approx(np.mean(both))
    assert table.loc[("b", "other", "AUPRO")].isna()[["diff", "lo", "hi"]].all()
    again = summarise(metrics, scores.sample(frac=1, random_state=1))["diff"].dropna()
    assert again.to_numpy() == pytest.approx(table["diff"].dropna()), "the order of the images does not matter"


def test_one_seed_is_the_plain_paired_interval(tables):
    part = tables[1][lambda one: (one.category == "a") & (one.seed == 0)]
    wide = part.pivot(index="image", columns="method", values="score")
    expected = auroc_difference_interval(wide["irf"], wide["other"], np.arange(60) >= 20, seed=0)
    assert paired_difference(part, "irf", "other") == pytest.approx(expected)


def test_means_have_intervals_and_roles_stay_apart(tables):
    metrics, scores = tables
    places = {"a": ("mvtec_ad", "grid"), "b": ("mpdd", "metal_plate")}
    metrics[["dataset", "category"]], scores[["dataset", "category"]] = (
        np.array([places[name] for name in one.category]) for one in tables
    )
    same = [one[one.category == "grid"].assign(dataset="mpdd") for one in tables]
    table = summarise(*(pd.concat(pair) for pair in zip(tables, same, strict=True)))
    assert dict(table.groupby(["dataset", "category"]).role.first()) == {
        ("mvtec_ad", "grid"): "confirmation", ("mpdd", "metal_plate"): "confirmation", ("mpdd", "grid"): "-",
        ("mvtec_ad", "mean"): "-", ("mpdd", "mean"): "-", ("-", "mean of confirmation"): "confirmation",
    }  # fmt: skip
    table = table[table.metric == "I-AUROC"].set_index(["dataset", "category", "method"])
    whole, grid = table.loc[("-", "mean of confirmation", "other")], table.loc[("mvtec_ad", "grid", "other")]
    assert whole.n_categories == 2 and whole.mean_lo < whole["mean"] < whole.mean_hi and 0 < whole.lo < whole["diff"]
    assert whole.hi - whole.lo < grid.hi - grid.lo, "two categories are known better than one"


def test_pixel_metrics_have_intervals_where_images_say_how_they_pull(tables):
    metrics, scores = tables
    metrics["AUPRO"] = np.where(metrics.method == "irf", 0.9, 0.8)
    scores["AUPRO pull"] = np.where(scores.method == "irf", 1, 2) * np.tile(np.linspace(-1, 1, 60), 8)
    row = summarise(metrics, scores).set_index(["category", "method", "metric"]).loc[("a", "other", "AUPRO")]
    assert row["diff"] == pytest.approx(0.1) and 0.1 < row.hi < 0.5 and row.mean_lo < 0.8 < row.mean_hi
    assert row.mean_hi - row.mean_lo == pytest.approx(2 * (row.hi - row.lo)), "the same images for both"


def test_scores_of_different_images_are_refused(tables):
    part = tables[1][lambda one: one.category == "a"]
    with pytest.raises(ValueError, match="different images"):
        paired_difference(part[(part.method == "irf") | (part.image > 0)], "irf", "other")
