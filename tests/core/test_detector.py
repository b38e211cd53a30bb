"""Detector end to end on small images: it finds what it should, keeps its promise, trains once, survives a file, and
its exported graph says the same."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from irf_lib import Detector, Reading, Settings
from irf_lib import detector as detector_module
from irf_lib.export import export_onnx
from irf_lib.files import InputError, load_tensors, save_tensors
from irf_lib.networks.backbones import build_backbone
from irf_lib.networks.denoisers import gaussian_optimum
from irf_lib.scoring import DENSITIES, FullGaussian

SETTINGS = Settings(
    backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=60, lr=1e-3, precision="fp32"
)


def surfaces(n, seed, defect=False):
    """Smooth grey gradients of varying tint; a defect is a patch of a colour that no tint has."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.2, 0.8, 32)
    images = np.empty((n, 3, 32, 32), np.float32)
    for image in images:
        image[:] = ramp + 0.1 * rng.standard_normal((3, 1, 1))
        image += 0.02 * rng.standard_normal(image.shape)
        if defect:
            r, c = rng.integers(0, 24, 2)
            image[:, r : r + 8, c : c + 8] += rng.choice([-0.3, 0.3]) * np.array([1, -1, 1])[:, None, None]
    return images.clip(0, 1)


def changed(**changes):
    return Settings(**(SETTINGS.model_dump() | changes))


@pytest.fixture(scope="module")
def detector():
    return Detector(SETTINGS, seed=3, device="cpu").fit(surfaces(60, seed=0), progress=None)


def test_it_detects_and_localises(detector):
    good, bad = surfaces(30, seed=1), surfaces(30, seed=2, defect=True)
    result = detector.read(np.concatenate([good, bad]))
    labels = np.repeat([False, True], 30)
    assert roc_auc_score(labels, result.scores) > 0.95
    assert result.maps.shape == (60, 32, 32) and result.maps.dtype == np.float32
    flagged = result.flagged(0.05)
    assert (flagged == (result.p_values <= 0.05)).all()
    assert flagged[labels].mean() > 0.8 and flagged[~labels].mean() < 0.3
    tint = bad[:, 1] - bad[:, [0, 2]].mean(axis=1)
    odd = np.abs(tint - np.median(tint, axis=(1, 2), keepdims=True)) > 0.3
    near = ndimage.maximum_filter(odd, (1, 9, 9)).reshape(30, -1)
    assert near[range(30), result.maps[30:].reshape(30, -1).argmax(axis=1)].all(), "the hottest place is at the patch"


@pytest.mark.parametrize("how", ["scaled", "noised"])
def test_a_score_does_not_depend_on_its_batch(detector, how):
    images, reading = surfaces(40, seed=4), Reading(input=how)
    together = detector.read(images, reading).scores
    alone = np.concatenate([detector.read(images[i : i + 1], reading).scores for i in (0, 39, 17)])
    assert alone == pytest.approx(together[[0, 39, 17]], rel=1e-4)


def test_same_seed_same_detector_and_a_second_fit_is_not_more_training():
    first, again = (Detector(changed(steps=8), seed=3, device="cpu") for _ in range(2))
    for one in (first, again, again):
        one.fit(surfaces(30, seed=0), progress=None)
        assert np.array_equal(one.read(surfaces(5, seed=5)).scores, first.read(surfaces(5, seed=5)).scores)
    assert again.threshold(0.3) == first.threshold(0.3) < np.inf


def test_the_timestep_is_where_the_network_is_furthest_ahead(detector):
    """A network that is the Gaussian optimum at t = 300 and knows nothing elsewhere is ahead, by 0, at 300 alone."""
    optimum = gaussian_optimum(detector.good[0])
    other = detector.with_network(lambda x, t: optimum(x, t) * (t == 300).view(-1, 1, 1, 1))
    assert other._choose_t() == 300
    assert detector.reading.t == detector.best_t == detector._choose_t() and detector.asked.t == "auto"
    assert detector.read(surfaces(1, seed=5)).reading == detector.reading
    assert detector.with_reading(Reading(t=7)).reading.t == 7


def test_another_reading_or_alpha_never_trains_and_folds_once(detector, monkeypatch):
    monkeypatch.setattr(detector_module, "train", lambda *_, **__: pytest.fail("a network was trained"))
    folded = []
    monkeypatch.setattr(detector_module, "fold", lambda net, t, dtype, fold=detector_module.fold: (
        folded.append(t), fold(net, t, dtype))[1])  # fmt: skip
    fresh, images = detector.with_network(detector.denoiser), surfaces(5, seed=6, defect=True)
    first = fresh.read(images)
    for reading in (Reading(t=50), Reading(density="standard"), Reading(image_score="max"), Reading(t=50)):
        assert not np.array_equal(fresh.read(images, reading).scores, first.scores)
    assert folded == [fresh.reading.t, 50], "once for each timestep"
    assert first.flagged(0.5).sum() >= first.flagged(0.05).sum() and first.threshold(0.5) < first.threshold(0.05)


@pytest.mark.parametrize("density", DENSITIES)
def test_save_and_load(detector, tmp_path, monkeypatch, refused, density):
    reader = detector.with_reading(Reading(density=density))
    path, images = reader.save(tmp_path / "model.safetensors", {"note": 1}), surfaces(6, seed=6, defect=True)
    hub = []
    monkeypatch.setattr(
        detector_module, "build_backbone", lambda *given: hub.append(given[3]) or build_backbone(*given)
    )
    loaded = Detector.load(path, device="cpu")
    assert hub == [True], "local files only: no hub is asked"
    before, after = reader.read(images), loaded.read(images)
    for name in ("scores", "maps", "p_values"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert (loaded.settings, loaded.reading, loaded.seed, loaded.extra) == (SETTINGS, reader.reading, 3, {"note": 1})
    assert [s.loss for s in loaded.history] == [s.loss for s in detector.history]
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"], "one file"
    assert np.isfinite(loaded.read(images, Reading(density=density, image_score="max")).scores).all()
    refused("needs the good images", loaded.read, images, Reading(t=50))
    refused("60 good images, not on 3", loaded.attach, images[:3])
    loaded.attach(surfaces(60, seed=0))
    assert np.array_equal(loaded.read(images, Reading(t=50)).scores, detector.read(images, Reading(t=50)).scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.update(format=99), "format 99, this version reads"),
        (lambda meta: meta["settings"].update(width=8192, depth=16), "not those of its settings"),
        (lambda meta: meta["settings"].update(magic=1), "no detector of ours"),
        (lambda meta: meta.pop("seed"), "no detector of ours"),
        (lambda meta: meta.update(backbone_fingerprint="0"), "another rgb"),
    ],
)
def test_a_foreign_file_is_refused(detector, tmp_path, refused, change, message):
    path = detector.save(tmp_path / "model.safetensors")
    tensors, meta = load_tensors(path)
    change(meta)
    save_tensors(path, tensors, meta)
    refused(message, Detector.load, path, "cpu")


class Tiny(torch.nn.Module):
    """A denoiser of one's own: a convolution."""

    def __init__(self, channels, size, width, depth, patch):
        super().__init__()
        self.last_layer = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, t):
        return self.last_layer(x)


class Halved(FullGaussian):
    """A density of one's own."""

    def nll(self, fields):
        return super().nll(fields) / 2


def test_an_object_may_stand_in_place_of_a_name(tmp_path, refused):
    own = {"backbone": build_backbone("rgb", 8), "denoiser": Tiny}
    detector = Detector(changed(steps=3, **own), Reading(density=Halved), device="cpu")
    detector.fit(surfaces(30, seed=0), progress=None)
    path, images = detector.save(tmp_path / "own.safetensors"), surfaces(3, seed=1)
    refused("made with Backbone", Detector.load, path, "cpu")
    loaded = Detector.load(path, device="cpu", density=Halved, **own)
    assert np.array_equal(loaded.read(images).scores, detector.read(images).scores)


def test_too_few_held_out_images_warn_and_flag_nothing():
    detector = Detector(changed(epochs=2, batch_size=7), device="cpu").fit(surfaces(29, seed=0), progress=None)
    assert len(detector.history) == 6, "17 images to fit on, 3 batches an epoch"
    result = detector.read(surfaces(5, seed=1, defect=True))
    with pytest.warns(UserWarning, match="needs 99 held-out good images, there are 12"):
        assert not result.flagged(0.01).any()


def test_misuse_is_explained(tmp_path, refused):
    fresh = Detector(SETTINGS, device="cpu")
    refused("at least 3 good images", fresh.fit, surfaces(2, seed=0))
    for call in (lambda: fresh.read(surfaces(1, seed=0)), fresh.density, lambda: fresh.save(tmp_path / "x")):
        with pytest.raises(InputError, match="has not been fitted|needs the good images"):
            call()
    for wrong in ({"image_score": "median"}, {"t": 1000}, {"t": True}, {"input": "dirty"}, {"density": "x"}, {"tt": 1}):
        with pytest.raises(ValidationError):
            Reading(**wrong)
    for wrong in ({"width": 100}, {"backbone": "resnet"}, {"steps": True}, {"alpha": 0.05}, {"patch_size": 3},
                  {"steps": 0}, {"lr": "fast"}, {"precision": "fp8"}, {"denoiser": "unet", "width": 12}):  # fmt: skip
        with pytest.raises(ValidationError):
            changed(**wrong)


def test_images_that_are_none_are_refused(detector, refused):
    refused("divide 8-bit pixels by 255", detector.read, np.full((2, 3, 32, 32), 200.0))
    refused("channels before height", detector.read, np.zeros((2, 32, 32, 3), np.float32))
    refused("at least 32 x 32", detector.read, np.zeros((2, 3, 1, 1), np.float32))
    refused("list the files", detector.read, "one.png")


def test_untrained_is_the_mahalanobis_distance_of_the_features_at_every_t(detector):
    test = detector.features(surfaces(20, seed=8, defect=True))
    expected = DENSITIES["full"].fit(detector.good[0], shrinkage=0.0).nll(test).flatten()
    untrained = detector.with_network(gaussian_optimum(detector.good[0]))
    for t in (1, 200, 800):
        nll = untrained.read(test, Reading(t=t)).nll.flatten()
        assert stats.spearmanr(nll, expected).statistic > 0.99
    assert detector.denoiser is not untrained.denoiser


READINGS = [
    (Reading(), "efficientnet-lite0"),
    (Reading(t=50, input="noised", density="diagonal", image_score="max"), "rgb"),
    (Reading(input="clean", density="location", image_score="spread"), "rgb"),
]


@pytest.mark.parametrize(("reading", "backbone"), READINGS)
def test_onnx_runtime_agrees_with_pytorch_on_batches_of_any_size(tmp_path, reading, backbone):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).random((36, 3, 64, 64), dtype=np.float32)
    settings = changed(backbone=backbone, image_size=64, depth=2, steps=3, batch_size=4)
    detector = Detector(settings, reading, device="cpu").fit(images[:30], progress=None)
    session = onnxruntime.InferenceSession(export_onnx(detector, tmp_path / "model.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "one file"
    for part in (images[30:], images[detector.fit_index[:1]]):  # a held-out image would tie with itself, up to rounding
        score, heat, p_value = session.run(["score", "map", "p_value"], {"image": part})
        expected = detector.read(part)
        assert score == pytest.approx(expected.scores, rel=1e-3)
        assert np.abs(heat - expected.maps).max() < 1e-3 * np.abs(expected.maps).max()
        assert p_value == pytest.approx(expected.p_values)


class Branching(FullGaussian):
    """A density that no graph can hold."""

    def nll(self, fields):
        return super().nll(fields) * (2 if float(fields.sum()) > 0 else 1)


def test_what_cannot_be_exported_says_so(tmp_path, tiny_detector, refused):
    pytest.importorskip("onnxscript")
    reader = tiny_detector.with_reading(Reading(density=Branching))
    refused("cannot be written as ONNX", export_onnx, reader, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
