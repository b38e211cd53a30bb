"""Bootstrap over images: right on average, and simultaneous where it says so."""

import numpy as np
import pytest

from irf_lib.resampling import bootstrap_counts, mean_interval, percentile_interval, simultaneous_band


def test_counts_are_resamples():
    counts = bootstrap_counts(7, 500, np.random.default_rng(0))
    assert counts.shape == (500, 7) and (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_percentile_interval_by_hand():
    low, high = percentile_interval(np.arange(101.0)[:, None] * [1.0, -2.0], level=0.8)
    assert low == pytest.approx([10, -180]) and high == pytest.approx([90, -20])


def test_mean_interval_covers_the_truth_at_its_level():
    rng = np.random.default_rng(1)
    inside = [_covers(rng) for _ in range(200)]
    assert 0.87 < np.mean(inside) <= 0.99
    value, low, high = mean_interval(rng.random((10, 3, 2)), seed=0)
    assert value.shape == low.shape == high.shape == (3, 2) and (low <= value).all() and (value <= high).all()


def _covers(rng):
    _, low, high = mean_interval(rng.standard_normal(40) + 3, seed=0, n_resamples=300)
    return low <= 3 <= high


def test_no_image_is_refused_and_one_has_no_interval():
    value, low, high = mean_interval(np.ones((1, 2)), seed=0)
    assert value.tolist() == [1, 1] and np.isnan(low).all() and np.isnan(high).all()
    with pytest.raises(ValueError, match="at least one image"):
        mean_interval(np.empty((0, 2)), seed=0)


def test_a_simultaneous_band_holds_whole_curves():
    curves = np.random.default_rng(2).standard_normal((2000, 50)) * np.linspace(1, 3, 50)
    low, high = simultaneous_band(curves)
    new = np.random.default_rng(3).standard_normal((2000, 50)) * np.linspace(1, 3, 50)
    whole = ((new >= low) & (new <= high)).all(axis=1).mean()
    assert 0.93 < whole < 0.97
    pointwise = percentile_interval(curves)
    assert ((new >= pointwise[0]) & (new <= pointwise[1])).all(axis=1).mean() < 0.2, "pointwise bands do not"
