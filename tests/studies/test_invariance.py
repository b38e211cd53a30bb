"""Agreement between timesteps, on cases with a known answer."""

import numpy as np
import pytest
from scipy import stats

from irf_lib.studies import invariance


@pytest.fixture
def fields():
    """Three timesteps of four images: the second is twice the first, the third at right angles to it."""
    one = np.random.default_rng(0).standard_normal((4, 3, 5, 5))
    other = np.random.default_rng(1).standard_normal(one.shape)
    scale = (one * other).sum(axis=(1, 2, 3)) / (one**2).sum(axis=(1, 2, 3))
    return [one, 2 * one, other - scale[:, None, None, None] * one]


def test_cosine_and_relative_change(fields):
    gram = invariance.field_gram(fields)
    cosine, change = invariance.cosine_similarity(gram), invariance.relative_change(gram)
    assert gram.shape == cosine.shape == change.shape == (4, 3, 3)
    assert cosine[:, 0, 1] == pytest.approx(1) and cosine[:, 0, 2] == pytest.approx(0, abs=1e-12)
    assert change[:, 0, 1] == pytest.approx(1) and change[:, 1, 0] == pytest.approx(0.5), "a share of the row's field"
    direct = np.linalg.norm((fields[2] - fields[0]).reshape(4, -1), axis=1)
    assert change[:, 0, 2] == pytest.approx(direct / np.linalg.norm(fields[0].reshape(4, -1), axis=1))
    assert np.einsum("nii->ni", change) == pytest.approx(0, abs=1e-7)


def test_spearman_matrix_equals_scipy():
    scores = np.random.default_rng(2).integers(0, 8, (3, 30)).astype(float)  # with ties
    value, low, high = invariance.spearman_matrix(scores, seed=0)
    for i in range(3):
        for j in range(3):
            assert value[i, j] == pytest.approx(stats.spearmanr(scores[i], scores[j]).statistic)
    assert (low <= value + 1e-12).all() and (value <= high + 1e-12).all() and np.diagonal(low) == pytest.approx(1)
    _, low, high = invariance.spearman_matrix(np.stack([scores[0], np.ones(30)]), seed=0)
    assert np.isnan(low).all() and np.isnan(high).all(), "nothing to rank"


def test_pixel_rankings_are_inside_each_image():
    nll = np.random.default_rng(4).random((2, 4, 4))
    shifted = nll + np.array([0.0, 100.0])[:, None, None]  # an offset of an image leaves its own ranking alone
    agreement = invariance.pixel_spearman([nll, shifted, -nll])
    assert agreement.shape == (2, 3, 3)
    assert agreement[:, 0, 1] == pytest.approx(1) and agreement[:, 0, 2] == pytest.approx(-1)
