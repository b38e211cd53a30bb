"""OneStepDetector end to end on small images: it finds what it should, keeps its promise, and survives a file."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from sklearn.metrics import roc_auc_score

from irf_lib.detector import DetectorSettings, OneStepDetector, calibration_split, milliseconds_per_image
from irf_lib.scoring import DENSITIES
from irf_lib.storage import StorageError

SETTINGS = DetectorSettings(
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


@pytest.fixture(scope="module")
def detector():
    return OneStepDetector(SETTINGS, seed=3, device="cpu").fit(surfaces(60, seed=0), progress=None)


def test_it_detects_and_localises(detector):
    good, bad = surfaces(30, seed=1), surfaces(30, seed=2, defect=True)
    result = detector.score(np.concatenate([good, bad]))
    labels = np.repeat([False, True], 30)
    assert roc_auc_score(labels, result.scores) > 0.95
    assert result.maps.shape == (60, 32, 32) and result.maps.dtype == np.float32
    assert (result.flagged == (result.p_values <= SETTINGS.alpha)).all()
    assert result.flagged[labels].mean() > 0.8 and result.flagged[~labels].mean() < 0.3
    for image, heat in zip(bad, result.maps[30:], strict=True):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        odd = np.abs(image[1] - image[[0, 2]].mean(axis=0) - np.median(image[1] - image[[0, 2]].mean(axis=0))) > 0.3
        near = odd[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5]
        assert near.any(), "the hottest place is at the patch"


def test_a_score_does_not_depend_on_its_batch(detector):
    images = surfaces(40, seed=4)
    for changes in ({}, {"input": "noised"}):
        x0 = detector.features(surfaces(60, seed=0))
        reader = detector.with_scoring(x0[detector.fit_index], x0[detector.calibration_index], **changes)
        together = reader.score(images).scores
        alone = np.concatenate([reader.score(images[i : i + 1]).scores for i in (0, 39, 17)])
        assert alone == pytest.approx(together[[0, 39, 17]], rel=1e-4)


def test_same_seed_same_detector(detector):
    again = OneStepDetector(SETTINGS, seed=3, device="cpu").fit(surfaces(60, seed=0), progress=None)
    images = surfaces(5, seed=5)
    assert np.array_equal(again.score(images).scores, detector.score(images).scores)
    assert again.threshold == detector.threshold


@pytest.mark.parametrize("density", DENSITIES)
def test_save_and_load(detector, tmp_path, density):
    x0 = detector.features(surfaces(60, seed=0))
    reader = detector.with_scoring(x0[detector.fit_index], x0[detector.calibration_index], density=density)
    reader.save(tmp_path, {"note": 1})
    loaded = OneStepDetector.load(tmp_path, device="cpu")
    images = surfaces(6, seed=6, defect=True)
    before, after = reader.score(images), loaded.score(images)
    assert np.array_equal(before.scores, after.scores) and np.array_equal(before.maps, after.maps)
    assert np.array_equal(before.p_values, after.p_values)
    assert loaded.settings == reader.settings and loaded.seed == 3
    assert [s.loss for s in loaded.history] == [s.loss for s in detector.history]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}, "no pickle"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.update(format=99), "format 99"),
        (lambda meta: meta["settings"].update(width=128), "does not describe"),
        (lambda meta: meta["settings"].update(width=100), "does not describe"),
        (lambda meta: meta["settings"].update(magic=1), "does not describe"),
        (lambda meta: meta.pop("seed"), "does not describe"),
        (lambda meta: meta.update(backbone_fingerprint="0"), "another rgb"),
    ],
)
def test_a_foreign_file_is_refused(detector, tmp_path, change, message):
    path = detector.save(tmp_path)
    content = json.loads(path.read_text())
    change(content["meta"])
    path.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=message):
        OneStepDetector.load(tmp_path, device="cpu")


def test_other_readings_share_the_network(detector):
    x0 = detector.features(surfaces(60, seed=0))
    fit, held_out = x0[detector.fit_index], x0[detector.calibration_index]
    other = detector.with_scoring(fit, held_out, t=50, density="standard", image_score="max")
    assert other.denoiser is detector.denoiser
    assert detector.settings.t == 200 and other.settings.t == 50
    assert not torch.equal(other.fields(x0[:2]), detector.fields(x0[:2]))
    with pytest.raises(ValueError, match="width cannot change without a new fit"):
        detector.with_scoring(fit, held_out, width=128)
    with pytest.raises(ValidationError):
        detector.with_scoring(fit, held_out, t=1000)


def test_too_few_calibration_images_warn_and_flag_nothing():
    settings = DetectorSettings(**(SETTINGS.model_dump() | {"steps": 3, "alpha": 0.01}))
    with pytest.warns(UserWarning, match="needs at least 99 held-out normal images, there are 10"):
        detector = OneStepDetector(settings, device="cpu").fit(surfaces(30, seed=0), progress=None)
    assert not detector.score(surfaces(5, seed=1, defect=True)).flagged.any()


@pytest.mark.parametrize(("n", "held_out"), [(3, 1), (30, 10), (60, 20), (209, 21), (1000, 100)])
def test_split(n, held_out):
    fit, calibration = calibration_split(n, 0.1, seed=0)
    assert len(calibration) == held_out
    assert sorted([*fit, *calibration]) == list(range(n))


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="at least 3 normal images, got 2"):
        OneStepDetector(SETTINGS, device="cpu").fit(surfaces(2, seed=0))
    fresh = OneStepDetector(SETTINGS, device="cpu")
    for call in (lambda: fresh.score(surfaces(1, seed=0)), lambda: fresh.threshold, lambda: fresh.save("x")):
        with pytest.raises(StorageError, match="has not been fitted"):
            call()
    for wrong in ({"image_score": "median"}, {"t": 1000}, {"alpha": 0}, {"input": "dirty"}, {"tt": 1}):
        with pytest.raises(ValidationError):
            DetectorSettings(**wrong)


def test_epochs_replace_steps():
    settings = DetectorSettings(**(SETTINGS.model_dump() | {"epochs": 2, "batch_size": 7}))
    detector = OneStepDetector(settings, device="cpu").fit(surfaces(30, seed=0), progress=None)
    assert len(detector.history) == 6  # 20 images to fit on, 3 batches a pass


def test_a_second_fit_is_not_more_training(detector):
    again = OneStepDetector(SETTINGS, seed=3, device="cpu")
    for _ in range(2):
        again.fit(surfaces(60, seed=0), progress=None)
    images = surfaces(5, seed=5)
    assert np.array_equal(again.score(images).scores, detector.score(images).scores)


def test_untrained_is_the_mahalanobis_distance_of_the_features_at_every_t(detector):
    x0 = detector.features(surfaces(60, seed=0))
    fit, held_out = x0[detector.fit_index], x0[detector.calibration_index]
    test = detector.features(surfaces(20, seed=8, defect=True))
    expected = DENSITIES["full"].fit(fit, shrinkage=0.0).nll(test).flatten()
    for t in (1, 200, 800):
        nll = detector.untrained(fit, held_out, t=t, density="full").nll(test).flatten()
        assert stats.spearmanr(nll, expected).statistic > 0.99
    assert detector.denoiser is not detector.untrained(fit, held_out).denoiser


def test_timing_is_positive(detector):
    assert milliseconds_per_image(detector.score, surfaces(4, seed=0)) > 0
