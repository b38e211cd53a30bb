"""A folded denoiser is the denoiser, and a scorer is the plain path: up to rounding, at every t and in every layout."""

import numpy as np
import pytest
import torch

from irf_lib import diffusion
from irf_lib.detector import DetectorSettings, OneStepDetector
from irf_lib.folding import FoldedSteps, fold
from irf_lib.irf import network_input, predicted_x0
from irf_lib.scoring import DENSITIES, anomaly_map, image_score

C, S = 12, 8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stirred(denoiser, scale=0.3):
    """The denoiser with every weight moved off its initial value: adaLN and last layers start at or near zero."""
    with torch.no_grad():
        for i, weight in enumerate(denoiser.parameters()):
            weight.add_(
                scale * weight.std().nan_to_num(1).clamp_min(0.1) * torch.randn(weight.shape, generator=generator(i))
            )
    return denoiser.eval()


def preconditioned(net):
    model = diffusion.Preconditioned(net, C)
    model.fit_gaussian(
        torch.randn(20, C, S, S, generator=generator(7)) @ torch.randn(S, S, generator=generator(8)) + 0.5
    )
    return model


def denoisers():
    for patch in (1, 2):
        yield f"dit, patch {patch}", diffusion.build_denoiser("dit", C, S, 128, 2, 0, patch)
    yield "preconditioned", preconditioned(diffusion.build_denoiser("dit", C, S, 64, 2, 0, 2))
    yield "unet", diffusion.build_denoiser("unet", C, S, 16, 2, 0)
    yield "preconditioned unet", preconditioned(diffusion.build_denoiser("unet", C, S, 16, 2, 0))
    yield "gaussian optimum", diffusion.gaussian_optimum(torch.randn(20, C, S, S, generator=generator(9)))


@pytest.mark.parametrize("name, denoiser", list(denoisers()), ids=lambda one: one if isinstance(one, str) else "")
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
    denoiser = stirred(diffusion.build_denoiser("dit", C, S, 64, 2, 0))
    x = torch.randn(2, C, S, S, generator=generator())
    assert (fold(denoiser, 10)(x) - fold(denoiser, 900)(x)).abs().max() > 1e-3, "the modulations are not constants of t"
    steps = FoldedSteps(denoiser, [10, 900])
    assert torch.equal(steps(x, torch.tensor([900, 900])), fold(denoiser, 900)(x))
    with pytest.raises(KeyError):
        steps(x, torch.tensor([11, 11]))


IMAGES = np.random.default_rng(0).random((30, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("density", list(DENSITIES))
@pytest.mark.parametrize("how", ["clean", "scaled", "noised"])
def test_the_scorer_is_the_plain_path(density, how):
    settings = DetectorSettings(
        backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=8, alpha=0.5, density=density, input=how
    )
    detector = OneStepDetector(settings, 0, "cpu").fit(IMAGES[:20], progress=None)
    new = IMAGES[20:]
    # The plain path: raw features, the network as it was trained, the whole batch at once.
    x0 = (detector.store.backbone(torch.from_numpy(new)) - detector.mean) / detector.std
    z = detector.network_input(x0)
    with torch.no_grad():
        field = detector.denoiser(z, torch.full((len(z),), settings.t))
    nll = detector.density.nll(field, predicted_x0(z, field, detector.abar[settings.t]))
    if how != "noised":
        assert torch.allclose(z, network_input(x0, settings.t, detector.abar, how))
    scores, maps = detector.scorer()(torch.from_numpy(new))
    assert torch.allclose(scores, image_score(nll, settings.image_score), rtol=1e-4)
    assert torch.allclose(maps, anomaly_map(nll, 32), rtol=1e-4, atol=1e-5)  # nats near zero have no relative error
    result = detector.score(new)
    assert np.array_equal(result.scores, scores.double().numpy()) and np.array_equal(result.maps, maps.numpy())
    assert np.allclose(detector.score_features(x0).scores, result.scores, rtol=1e-6), "from features as from images"


def test_a_score_does_not_depend_on_its_batch():
    settings = DetectorSettings(backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=3, alpha=0.5)
    detector = OneStepDetector(settings, 0, "cpu").fit(IMAGES[:20], progress=None)
    together = detector.score(IMAGES[:11]).scores
    alone = [detector.score(IMAGES[i : i + 1]).scores[0] for i in range(11)]
    assert np.allclose(together, alone, rtol=1e-5)
