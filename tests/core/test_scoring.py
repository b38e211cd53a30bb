"""Densities against scipy, the conformal promise by simulation, image scores by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from irf_lib.conformal import calibration_split, conformal_p_values, conformal_threshold, images_needed, near_duplicates
from irf_lib.scoring import DENSITIES, anomaly_map, image_score, location_vectors


@pytest.fixture(scope="module")
def fields():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(40, 5, 4, 4, generator=generator, dtype=torch.float64)
    return torch.einsum("dc,nchw->ndhw", mixing, z) + torch.arange(5.0, dtype=torch.float64).view(1, 5, 1, 1)


def test_densities_equal_scipy(fields):
    vectors = location_vectors(fields)
    mean, cov = vectors.mean(0).numpy(), torch.cov(vectors.T).numpy()
    expected = {
        "standard": stats.multivariate_normal(np.zeros(5), np.eye(5)),
        "diagonal": stats.multivariate_normal(mean, np.diag(np.diag(cov))),
        "full": stats.multivariate_normal(mean, cov),
    }
    for name, oracle in expected.items():
        nll = DENSITIES[name].fit(fields, shrinkage=0.0).nll(fields)
        assert nll.shape == (40, 4, 4)
        assert torch.allclose(nll.flatten(), torch.from_numpy(-oracle.logpdf(vectors.numpy())), rtol=1e-6)


def test_location_density_knows_its_place(fields):
    moved = fields.clone()
    moved[:, :, 0, 0] += 10  # every training image is bright in this corner
    nll = DENSITIES["location"].fit(moved).nll(fields[:1])  # this one is not
    assert nll[0, 0, 0] > 3 * nll[0, 1:, 1:].max()


def test_constant_channel_and_few_samples():
    fields = torch.zeros(2, 8, 2, 2)
    fields[:, :4] = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    for density in DENSITIES.values():
        assert torch.isfinite(density.fit(fields).nll(fields + 0.1)).all()


def test_anomaly_map_is_bilinear():
    nll = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])
    expected = torch.tensor([[0, 0.5, 1.5, 2], [1, 1.5, 2.5, 3], [3, 3.5, 4.5, 5], [4, 4.5, 5.5, 6]])
    assert torch.allclose(anomaly_map(nll, 4)[0], expected)


def test_image_scores(refused):
    nll = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert [float(image_score(nll, rule)) for rule in ("max", "mean", "spread", "top2", "top10")] == [6, 3, 5, 4.5, 3]
    for wrong in ("median", "top", "top0", "top-1"):
        refused("unknown image score", image_score, nll, wrong, kind=ValueError)


def test_threshold_by_hand(refused):
    scores = np.arange(1, 20)  # n = 19: the fewest for alpha = 0.05
    assert conformal_threshold(scores, 0.05) == 19
    assert conformal_threshold(scores[:-1], 0.05) == math.inf
    assert conformal_threshold(scores, 0.1) == 18
    assert conformal_threshold(np.arange(1, 40), 0.05) == 38  # (40)(0.95) is 38 exactly, not 38.0000000001
    assert conformal_p_values(scores, np.array([0, 19, 20])) == pytest.approx([1, 0.1, 0.05])
    refused("1 of 3 scores are not finite", conformal_threshold, np.array([1, np.nan, 2]), 0.1, kind=ValueError)
    refused("between 0 and 1", conformal_threshold, np.arange(3), 1.5, kind=ValueError)


def test_p_value_and_threshold_are_one_decision():
    rng = np.random.default_rng(0)
    for n in (5, 19, 20, 57):
        calibration = np.round(rng.standard_normal(n), 1)  # with ties
        scores = np.round(rng.standard_normal(500) + 1, 1)
        for alpha in (0.01, 0.05, 0.1, 0.3):
            flagged = scores > conformal_threshold(calibration, alpha)
            assert (flagged == (conformal_p_values(calibration, scores) <= alpha + 1e-12)).all()


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (30, 0.1), (50, 0.2)])
def test_conformal_coverage(n, alpha):
    # Heavy-tailed scores: the guarantee may not depend on the distribution.
    rng = np.random.default_rng(1)
    draws = rng.standard_t(2, size=(20000, n + 1))
    flagged = [row[-1] > conformal_threshold(row[:-1], alpha) for row in draws]
    expected = (n + 1 - math.ceil(round((n + 1) * (1 - alpha), 9))) / (n + 1)  # exact for continuous scores
    assert expected <= alpha
    assert np.mean(flagged) == pytest.approx(expected, abs=4 * math.sqrt(alpha / 20000))


@pytest.mark.parametrize(("n", "held_out"), [(3, 1), (29, 9), (30, 20), (60, 20), (209, 21), (1000, 100)])
def test_split(n, held_out, refused):
    fit, calibration = calibration_split(n, 0.1, seed=0)
    assert len(calibration) == held_out
    assert sorted([*fit, *calibration]) == list(range(n))
    refused("at least 3 good images", calibration_split, 2, 0.1, 0)


def test_near_duplicates_stay_on_one_side():
    """Fourteen parts, each taken five times, with a little noise; and images that are all of one part."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(14, 6, 8, 8, generator=generator).repeat_interleave(5, dim=0)
    features = parts + 0.1 * torch.randn(parts.shape, generator=generator)
    groups = near_duplicates(features)
    assert np.array_equal(groups, np.repeat(np.arange(14), 5))
    assert len(set(near_duplicates(torch.randn(14, 6, 8, 8, generator=generator)))) == 14
    fit, calibration = calibration_split(70, 0.1, 0, groups)
    assert set(groups[fit]).isdisjoint(groups[calibration]) and len(calibration) == 20
    with pytest.warns(UserWarning, match="rests on 1 different parts, not on 20"):
        alike = calibration_split(70, 0.1, 0, np.zeros(70, int))
    assert all(map(np.array_equal, alike, calibration_split(70, 0.1, 0))), "a single group cannot be kept together"


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2, 0.3])
def test_the_number_of_images_that_a_rate_needs_is_the_smallest(alpha):
    needed, images = images_needed(alpha, 0.1)
    assert conformal_threshold(np.arange(needed), alpha) < math.inf == conformal_threshold(np.arange(needed - 1), alpha)
    assert len(calibration_split(images, 0.1, 0)[1]) >= needed > len(calibration_split(images - 1, 0.1, 0)[1])
