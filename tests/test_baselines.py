"""Baselines on cases with a known answer; those on a trained network with a denoiser that is known in closed form."""

import copy

import numpy as np
import pytest
import torch

from irf_lib import baselines
from irf_lib.detector import DetectorSettings, OneStepDetector
from irf_lib.scoring import DENSITIES


@pytest.fixture(scope="module")
def detector():
    settings = DetectorSettings(backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=2)
    images = np.random.default_rng(0).random((40, 3, 32, 32), dtype=np.float32)
    return OneStepDetector(settings, device="cpu").fit(images, progress=None)


def with_denoiser(detector, denoiser):
    other = copy.copy(detector)
    other.denoiser = denoiser
    return other


@pytest.fixture(scope="module")
def at_origin(detector):
    """The optimum of data that are all zero: whatever it is shown is noise."""
    return with_denoiser(detector, lambda z, t: z / (1 - detector.abar[t]).sqrt().view(-1, 1, 1, 1))


X0 = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_nearest_neighbour_by_hand():
    bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    x = torch.tensor([0.0, 1.0, 3.0, 0.0]).view(1, 2, 2, 1)  # the vectors (0, 3) and (1, 0)
    assert baselines.NearestNeighbour(bank).nll(x).flatten().tolist() == pytest.approx([3.0, 1.0])


def test_greedy_coreset_covers_what_a_random_bank_misses():
    generator = torch.Generator().manual_seed(0)
    background = torch.randn(5000, 8, generator=generator) * 0.1
    rare = torch.eye(8) * 10  # eight kinds of normal patch, seen once each
    chosen = baselines.greedy_coreset(torch.cat([background, rare]), 12, seed=0)
    assert set(range(5000, 5008)) <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == 12
    fitted = baselines.NearestNeighbour.fit(torch.cat([background, rare]).T.reshape(1, 8, 5008, 1), size=12)
    assert fitted.bank.shape == (12, 8)


def test_gaussian_baselines_are_the_densities():
    features = torch.randn(10, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = DENSITIES["full"].fit(features).nll(features)
    assert torch.equal(baselines.gaussian(features).nll(features), expected)
    assert torch.equal(baselines.standard_normal(features).nll(features), DENSITIES["standard"]().nll(features))


def test_inversion_is_three_steps_to_the_last_noise_estimate(at_origin):
    # For this denoiser every inversion step only rescales, by sqrt(1 - abar_s) / sqrt(1 - abar_t).
    seen = []

    def counted(z, t):
        seen.append(int(t[0]))
        return at_origin.denoiser(z, t)

    scorer = baselines.InversionScorer.fit(with_denoiser(at_origin, counted), X0)
    seen.clear()
    expected = X0.norm(dim=1) / (1 - at_origin.abar[0]).sqrt()
    assert torch.allclose(scorer.nll(X0), expected, rtol=1e-4) and seen == [0, 500, 999]
    assert scorer.scores(X0).mean().abs() < 1e-4, "calibrated on these very images"
    assert float(scorer.scores(2 * X0).min()) > float(scorer.scores(X0).max())
    assert torch.allclose(scorer.scores(X0[:1]), scorer.scores(X0)[:1], atol=1e-4), "no image sees another one"
    with pytest.raises(ValueError, match="at least 2"):
        baselines.InversionScorer.fit(at_origin, X0[:1])


@pytest.mark.parametrize("steps", [1, 4])
def test_reconstruction_of_what_is_known(detector, at_origin, steps):
    error = baselines.reconstruction_error(at_origin, X0, steps)
    assert torch.allclose(error, X0.square().mean(dim=1), atol=1e-3), "it rebuilds the origin, whatever it is given"
    abar = detector.abar
    noise = (detector.network_input(X0, how="noised") - abar[200].sqrt() * X0) / (1 - abar[200]).sqrt()
    perfect = with_denoiser(detector, lambda z, t: noise)
    assert baselines.reconstruction_error(perfect, X0, steps).abs().max() < 1e-6, "who knows the noise rebuilds x_0"
    path = baselines.reconstruction_path(perfect, X0, steps)
    assert [s for s, _ in path] == [round(200 * (steps - i) / steps) for i in range(steps + 1)]
    for s, state in path[:-1]:
        assert torch.allclose(state, abar[s].sqrt() * X0 + (1 - abar[s]).sqrt() * noise, atol=1e-5), "noised to s"


def test_reconstruction_needs_room_for_its_steps(detector):
    for steps in (0, 201):
        with pytest.raises(ValueError, match="between 1 and t = 200"):
            baselines.reconstruction_error(detector, X0, steps)


@pytest.mark.parametrize("distance", [1e-4, 0.05, 0.7, 3.0, 1e4])
def test_diffusion_time_is_the_distance_to_the_data(at_origin, distance):
    """Data at the origin: a location at root-mean-square distance r looks like noise of level r, on the grid or off."""
    x0 = distance * X0 / X0.square().mean(dim=1, keepdim=True).sqrt()
    assert torch.allclose(baselines.diffusion_time(at_origin, x0).exp(), torch.tensor(distance), rtol=1e-3)
