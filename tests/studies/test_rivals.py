"""Rivals on cases with a known answer; those on a trained network with a denoiser that is known in closed form."""

import pytest
import torch

from irf_lib.scoring import DENSITIES
from irf_lib.studies import rivals

X0 = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def at_origin(tiny_detector):
    """The optimum of data that are all zero: whatever it is shown is noise."""
    return tiny_detector.with_network(lambda z, t: z / (1 - tiny_detector.abar[t]).sqrt().view(-1, 1, 1, 1))


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_every_rival_has_one_shape_and_asks_as_often_as_it_says(tiny_detector, name):
    asked, network = [], tiny_detector.denoiser
    rival = rivals.RIVALS[name](tiny_detector.with_network(lambda z, t: asked.append(len(z)) or network(z, t)))
    asked.clear()
    nll = rival.nll(X0)
    assert sum(asked) == 5 * rival.evaluations
    assert nll.shape == (5, 8, 8) and nll.isfinite().all() and nll.device.type == "cpu"
    assert set(rival.reading) == {"input", "t", "density", "image_score"} and rival.reading["image_score"] == "top10"
    assert (rival.reading["input"] is None) == (rival.evaluations == 0)
    if density := rival.reading["density"]:
        assert torch.equal(nll, DENSITIES[density].fit(tiny_detector.good[0]).nll(X0))


def test_nearest_neighbour_by_hand(tiny_detector):
    rival = rivals.NearestNeighbour(tiny_detector, size=12)
    assert rival.bank.shape == (12, 3)
    rival.bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    x = torch.tensor([0.0, 1.0, 3.0, 0.0]).view(1, 2, 2, 1)  # the vectors (0, 3) and (1, 0)
    assert rival.nll(x).flatten().tolist() == pytest.approx([3.0, 1.0])


def test_greedy_coreset_covers_what_a_random_bank_misses():
    generator = torch.Generator().manual_seed(0)
    background = torch.randn(5000, 8, generator=generator) * 0.1
    rare = torch.eye(8) * 10  # eight kinds of normal patch, seen once each
    chosen = set(rivals.greedy_coreset(torch.cat([background, rare]), 12, seed=0).tolist())
    assert set(range(5000, 5008)) <= chosen and len(chosen) == 12


def test_inversion_is_three_steps_to_the_last_noise_estimate(at_origin):
    # For this denoiser every inversion step only rescales, by sqrt(1 - abar_s) / sqrt(1 - abar_t).
    seen, network = [], at_origin.denoiser
    detector = at_origin.with_network(lambda z, t: seen.append(int(t[0])) or network(z, t))
    expected = X0.norm(dim=1) / (1 - at_origin.abar[0]).sqrt()
    assert torch.allclose(rivals.Inversion(detector).nll(X0), expected, rtol=1e-4) and seen == [0, 500, 999]


@pytest.mark.parametrize("steps", [1, 4])
def test_reconstruction_of_what_is_known(tiny_detector, at_origin, steps):
    error = rivals.Reconstruction(at_origin, steps).nll(X0)
    assert torch.allclose(error, X0.square().mean(dim=1), atol=1e-3), "it rebuilds the origin, whatever it is given"
    abar, t = tiny_detector.abar, tiny_detector.reading.t
    noised = rivals.Reconstruction(tiny_detector).path(X0)[0][1]
    noise = (noised - abar[t].sqrt() * X0) / (1 - abar[t]).sqrt()
    perfect = rivals.Reconstruction(tiny_detector.with_network(lambda z, t: noise), steps)
    assert perfect.nll(X0).abs().max() < 1e-6, "who knows the noise rebuilds x_0"
    path = perfect.path(X0)
    assert [s for s, _ in path] == [round(t * (steps - i) / steps) for i in range(steps + 1)]
    for s, state in path[:-1]:
        assert torch.allclose(state, abar[s].sqrt() * X0 + (1 - abar[s]).sqrt() * noise, atol=1e-5), "noised to s"


def test_an_early_t_has_room_for_few_steps(tiny_detector):
    for t, steps in {0: 1, 3: 3, 200: 5}.items():
        reading = tiny_detector.reading.model_copy(update={"t": t})
        rival = rivals.RIVALS["reconstruct5"](tiny_detector.with_reading(reading))
        assert rival.evaluations == len(rival.times) == steps and rival.reading["t"] == t


@pytest.mark.parametrize("distance", [1e-4, 0.05, 0.7, 3.0, 1e4])
def test_diffusion_time_is_the_distance_to_the_data(at_origin, distance):
    """Data at the origin: a location at root-mean-square distance r looks like noise of level r, on the grid or off."""
    x0 = distance * X0 / X0.square().mean(dim=1, keepdim=True).sqrt()
    assert torch.allclose(rivals.DiffusionTime(at_origin).nll(x0).exp(), torch.tensor(distance), rtol=1e-3)
