"""Bootstrap over images: right on average, paired where it says so, and simultaneous where it says so."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from irf_lib.files import InputError
from irf_lib.metrics import pixel_metrics
from irf_lib.studies import resampling
from irf_lib.studies.resampling import auroc_difference_interval, auroc_interval, mean_interval, percentile_interval


def test_counts_are_resamples():
    counts = resampling.bootstrap_counts(7, 500, np.random.default_rng(0))
    assert counts.shape == (500, 7) and (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_mean_interval_covers_the_truth_at_its_level():
    rng = np.random.default_rng(1)
    found = (mean_interval(rng.standard_normal(40) + 3, seed=0, n_resamples=300) for _ in range(200))
    assert 0.87 < np.mean([low <= 3 <= high for _, low, high in found]) <= 0.99
    value, low, high = mean_interval(rng.random((10, 3, 2)), seed=0)
    assert value.shape == low.shape == high.shape == (3, 2) and (low <= value).all() and (value <= high).all()
    value, low, high = mean_interval(np.ones((1, 2)), seed=0)
    assert value.tolist() == [1, 1] and np.isnan(low).all() and np.isnan(high).all(), "one image has no interval"
    with pytest.raises(InputError, match="at least one image"):
        mean_interval(np.empty((0, 2)), seed=0)


def test_a_simultaneous_band_holds_whole_curves():
    curves, new = np.random.default_rng(2).standard_normal((2, 2000, 50)) * np.linspace(1, 3, 50)
    (low, high), pointwise = resampling.simultaneous_band(curves), percentile_interval(curves)
    assert 0.93 < ((new >= low) & (new <= high)).all(axis=1).mean() < 0.97
    assert ((new >= pointwise[0]) & (new <= pointwise[1])).all(axis=1).mean() < 0.2, "pointwise bands do not"


def test_auroc_interval():
    rng = np.random.default_rng(6)
    labels = np.repeat([0, 1], [40, 60])
    scores = np.round(rng.standard_normal(100) + labels, 1)  # with ties
    value, low, high = auroc_interval(scores, labels, seed=0)
    assert value == pytest.approx(roc_auc_score(labels, scores))
    # DeLong's standard error is about 0.045 here; the bootstrap must agree with it.
    assert low < value < high and 3 * 0.03 < high - low < 5 * 0.055
    assert auroc_interval(scores, labels, seed=0) == (value, low, high)
    assert np.isnan(auroc_interval(scores, np.ones(100), seed=0)[0])
    with pytest.raises(InputError, match="1 of 100 image scores"):
        auroc_interval(np.where(np.arange(100) == 3, np.nan, scores), labels, seed=0)


def test_auroc_difference_interval_is_paired():
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], [40, 60])
    hard = rng.standard_normal(100)  # what makes an image hard for both
    one, other = (hard + shift * labels + 0.1 * rng.standard_normal(100) for shift in (1.0, 0.8))
    value, low, high = auroc_difference_interval(one, other, labels, seed=0)
    assert value == pytest.approx(roc_auc_score(labels, one) - roc_auc_score(labels, other))
    _, one_low, one_high = auroc_interval(one, labels, seed=0)
    assert low < value < high and high - low < 0.5 * (one_high - one_low), "what both share cancels"
    assert auroc_difference_interval(one, one, labels, seed=0) == (0, 0, 0)


def test_pixel_influences_resample_as_the_metrics_themselves_do():
    rng = np.random.default_rng(0)
    maps, masks = rng.normal(size=(24, 32, 32)), np.zeros((24, 32, 32), dtype=bool)
    for i in range(16):
        y, x, size = rng.integers((20, 20, 4), endpoint=True) + (0, 0, 3)
        masks[i, y : y + size, x : x + size] = True
        maps[i][masks[i]] += rng.uniform(0.5, 3.5)
    counts = resampling.image_counts(masks.any(axis=(1, 2)), seed=0)[1:101]
    exact = [pixel_metrics(*(np.repeat(one, drawn, axis=0) for one in (maps, masks))) for drawn in counts]
    for metric, pulls in resampling.pixel_influences(maps, masks).items():
        linear = pixel_metrics(maps, masks)[metric] + (counts - 1) @ pulls / 24
        direct = np.array([one[metric] for one in exact])
        assert np.corrcoef(linear, direct)[0, 1] > 0.97 and 0.8 < linear.std() / direct.std() < 1.25, metric
