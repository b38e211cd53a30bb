"""A folded denoiser is the denoiser, and a reading is the plain path: up to rounding, at every t, in every layout."""

import numpy as np
import pytest
import torch

from irf_lib import Reading
from irf_lib.irf import network_input
from irf_lib.networks import denoisers
from irf_lib.networks.fast import FoldedSteps, fold
from irf_lib.scoring import DENSITIES, anomaly_map, image_score

C, S = 12, 8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def stirred(denoiser):
    """The denoiser with every weight moved off its initial value: adaLN and last layers start at or near zero."""
    for i, weight in enumerate(denoiser.parameters()):
        size = 0.3 * weight.std().nan_to_num(1).clamp_min(0.1)
        weight.add_(size * torch.randn(weight.shape, generator=generator(i)))
    return denoiser.eval()


def preconditioned(net):
    model = denoisers.Preconditioned(net, C)
    x0 = torch.randn(20, C, S, S, generator=generator(7)) @ torch.randn(S, S, generator=generator(8)) + 0.5
    model.fit_gaussian(x0)
    return model


def kinds():
    for patch in (1, 2):
        yield f"dit, patch {patch}", denoisers.build_denoiser("dit", C, S, 128, 2, 0, patch)
    yield "preconditioned", preconditioned(denoisers.build_denoiser("dit", C, S, 64, 2, 0, 2))
    yield "unet", denoisers.build_denoiser("unet", C, S, 16, 2, 0)
    yield "preconditioned unet", preconditioned(denoisers.build_denoiser("unet", C, S, 16, 2, 0))
    yield "gaussian optimum", denoisers.gaussian_optimum(torch.randn(20, C, S, S, generator=generator(9)))


@pytest.mark.parametrize("name, denoiser", list(kinds()), ids=lambda one: one if isinstance(one, str) else "")
@pytest.mark.parametrize("t", [0, 200, 999])
@torch.no_grad()
def test_folding_changes_nothing(name, denoiser, t):
    stirred(denoiser)
    x = torch.randn(5, C, S, S, generator=generator())
    expected = denoiser(x, torch.full((5,), t))
    folded = fold(denoiser, t)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=layout)
        found = folded(given)
        assert found.shape == x.shape and found.dtype == torch.float32
        assert (found - expected).norm() <= 1e-5 * expected.norm(), name
        assert torch.equal(given, x), "the input is left as it was"
    half = fold(denoiser, t, torch.bfloat16)(x)
    assert (half - expected).norm() <= 0.05 * expected.norm()
    assert half.dtype == torch.float32


@torch.no_grad()
def test_a_fold_depends_on_its_timestep_alone():
    denoiser = stirred(denoisers.build_denoiser("dit", C, S, 64, 2, 0))
    x = torch.randn(2, C, S, S, generator=generator())
    assert (fold(denoiser, 10)(x) - fold(denoiser, 900)(x)).abs().max() > 1e-3, "the modulations are not constants of t"
    with torch.enable_grad():
        assert not fold(denoiser, 10)(x).requires_grad
    steps = FoldedSteps(denoiser, [10, 900])
    assert torch.equal(steps(x, torch.tensor([900, 900])), fold(denoiser, 900)(x))
    with pytest.raises(KeyError):
        steps(x, torch.tensor([11, 11]))


@pytest.mark.parametrize("density", list(DENSITIES))
@pytest.mark.parametrize("how", ["clean", "scaled", "noised"])
def test_reading_is_the_plain_path(tiny_detector, tiny_images, density, how):
    reading, new = Reading(t=200, density=density, input=how), tiny_images[:10]
    # The plain path: raw features, the network as it was trained, the whole batch at once.
    x0 = (tiny_detector.backbone(torch.from_numpy(new)) - tiny_detector.mean) / tiny_detector.std
    z = tiny_detector.network_input(x0, reading)
    with torch.no_grad():
        field = tiny_detector.denoiser(z, torch.full((len(z),), reading.t))
    nll = tiny_detector.density(reading).nll(field)
    if how != "noised":
        assert torch.allclose(z, network_input(x0, reading.t, tiny_detector.abar, how))
    scores, maps = tiny_detector.with_reading(reading).scorer()(torch.from_numpy(new))
    assert torch.allclose(scores, image_score(nll, "top10"), rtol=1e-4)
    assert torch.allclose(maps, anomaly_map(nll, 64), rtol=1e-4, atol=1e-4)  # nats near zero have no relative error
    result = tiny_detector.read(new, reading)
    assert np.array_equal(result.scores, scores.double().numpy()) and np.array_equal(result.maps, maps.numpy())
    assert np.allclose(tiny_detector.read(x0, reading).scores, result.scores, rtol=1e-6), "from features as from images"
    known = tiny_detector.fields(x0, reading)
    assert np.allclose(tiny_detector.read(x0, reading, known).scores, result.scores, rtol=1e-6), "a field is a prefix"
