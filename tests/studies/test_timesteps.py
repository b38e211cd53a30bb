"""The timestep study on small detectors, against what is known without a network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from irf_lib import Detector, Reading, Settings
from irf_lib.diffusion import denoising_loss
from irf_lib.networks.denoisers import gaussian_optimum
from irf_lib.scoring import DENSITIES
from irf_lib.studies import timesteps

TS = [1, 50, 200, 800]
SIZES = {"backbone": "rgb", "image_size": 32, "feature_size": 8, "width": 64, "depth": 1, "patch_size": 1}


@pytest.fixture(scope="module")
def world():
    """A fitted detector, its held-out images, and a test set of 12 good and 12 brightened ones."""
    images = np.random.default_rng(0).random((84, 3, 32, 32), dtype=np.float32) * 0.2 + 0.4
    images[72:, :, 8:20, 8:20] += 0.013  # hardly more than the noise of a location: some are found, some are not
    reading = Reading(input="clean", image_score="top5")
    detector = Detector(Settings(**SIZES, steps=40, precision="fp32"), reading, seed=1, device="cpu").fit(
        images[:60], progress=None
    )
    masks = np.zeros((24, 32, 32), dtype=bool)
    masks[12:, 8:20, 8:20] = True
    x0 = detector.features(images[60:])
    test = SimpleNamespace(x0=x0, labels=np.arange(24) >= 12, masks=masks, image_size=32, seed=1)
    optimum = detector.with_network(gaussian_optimum(detector.good[0]))
    held_out = images[:60][detector.calibration_index]
    return SimpleNamespace(detector=detector, optimum=optimum, images=held_out, test=test)


def late(detector):
    return detector.with_reading(Reading(t=999, input="clean"))


def test_read_all_asks_once_for_each_timestep_and_input(world):
    asked, x0 = [], world.test.x0
    detector = world.detector.with_network(lambda z, t: asked.extend(t.tolist()) or 2 * z)
    changes = [{}, {"density": "standard"}, {"image_score": "max"}, {"t": 50}, {"t": 50, "density": "local"}]
    readings = {str(one): Reading(**(world.detector.reading.model_dump() | one)) for one in changes}
    found = timesteps.read_all(detector, x0, readings)
    assert list(found) == list(readings)
    assert {t: asked.count(t) for t in set(asked)} == {50: 84, 200: 84}, "good and new images, once each"
    for name, reading in readings.items():
        assert found[name].scores == pytest.approx(detector.read(x0, reading).scores)


def test_detection_rows(world):
    place = timesteps.read_at(world.detector, world.test.x0, 200, None, DENSITIES)
    rows = timesteps.detection_rows(world.test, place)
    assert len(rows) == 5 * 3 and {row["density"] for row in rows} == set(DENSITIES)
    full = {row["quantity"]: row for row in rows if row["density"] == "full"}
    scores, auroc = world.detector.read(world.test.x0).scores, full["I-AUROC"]
    assert auroc["value"] == pytest.approx(roc_auc_score(world.test.labels, scores))
    assert 0.6 < auroc["value"] < 0.99 and auroc["lo"] <= auroc["value"] <= auroc["hi"], "a case that can differ"
    rows = timesteps.detection_rows(SimpleNamespace(**{**vars(world.test), "masks": None}), place)
    assert [np.isnan(row["value"]) for row in rows[:3]] == [False, True, True]


def test_a_gaussian_world_agrees_with_itself(world):
    """Statement 3 of the notebook: under a fitted covariance the optimum ranks alike at every t, its fields do not."""
    places = [timesteps.read_at(world.optimum, world.test.x0, t, "scaled", ["full", "standard"]) for t in TS]
    rows = timesteps.agreement_rows(world.test, places)
    pick = {(r["quantity"], r["kind"], r.get("density"), r["t"], r["t2"]): r for r in rows}
    assert len(pick) == len(rows), "no row twice"
    assert pick["image ranking", "all", "full", 1, 800]["value"] > 0.99
    assert pick["pixel ranking", "good", "full", 1, 800]["value"] > 0.99
    assert pick["relative change", "good", None, 1, 800]["value"] > 0.3
    assert {(r["kind"], r["n"], r["input"]) for r in rows} == {
        ("all", 24, "scaled"), ("good", 12, "scaled"), ("anomalous", 12, "scaled")
    }  # fmt: skip


def test_neighbours_are_nearer_than_distant_timesteps(world):
    rows = timesteps.neighbour_rows(world.detector, world.test, offsets=(1, 700))
    cosine = {(r["kind"], r["t2"]): r["value"] for r in rows if r["quantity"] == "cosine"}
    assert set(cosine) == {(kind, t) for kind in ("good", "anomalous") for t in (201, 900)}
    assert cosine["good", 201] > 0.9999 and cosine["good", 201] > cosine["good", 900]
    assert {r["t2"] for r in timesteps.neighbour_rows(late(world.detector), world.test, offsets=(1,))} == {998}


@pytest.mark.parametrize("how", ["clean", "scaled"])
def test_the_first_step_is_the_one_step_score(world, how):
    rows = timesteps.step_rows(world.detector, world.test, stride=300, steps=5, how=how)
    assert sorted({(r["k"], r["t"]) for r in rows}) == [(1, 200), (2, 399), (3, 598), (4, 797), (5, 996)], "to the end"
    first = {r["quantity"]: r for r in rows if r["k"] == 1}
    assert first["I-AUROC minus one step"]["value"] == 0 and first["image ranking"]["value"] == pytest.approx(1)
    scores = world.detector.read(world.test.x0, timesteps.reading_at(world.detector, 200, how)).scores
    assert first["I-AUROC"]["value"] == pytest.approx(roc_auc_score(world.test.labels, scores))
    assert {r["k"] for r in timesteps.step_rows(late(world.detector), world.test)} == {1}, "no timestep after the last"


def test_choice_rows_use_good_images_alone(world):
    x0 = world.detector.good[1]
    rows = timesteps.choice_rows(world.optimum, world.images, TS, None, x0)
    assert {r["kind"] for r in rows} == {"held-out good"} and len(rows) == 2 * len(TS)
    gains = [r["value"] for r in rows if r["quantity"] == "gain"]
    assert gains == pytest.approx([0] * len(TS), abs=1e-6), "the Gaussian optimum gains nothing over itself"
    rows = timesteps.choice_rows(world.detector, np.full_like(world.images, 0.5), TS, None, x0)
    flat = [r["value"] for r in rows if r["quantity"] == "CutPaste AUROC"]
    assert max(flat) < 0.1, "flat images have nothing to cut or paste, and are smoother than any original"


def test_curve_rows_of_the_optimum(world):
    rows = timesteps.curve_rows("optimum", world.detector, world.optimum.denoiser, world.test, TS)
    assert [r["value"] for r in rows if r["quantity"] == "loss / optimum"] == pytest.approx([1] * len(TS))
    assert [r["value"] for r in rows if r["quantity"] == "cosine" and r["t"] == 200] == pytest.approx([1])


def test_a_plain_network_learns(world):
    held_out, random = world.detector.good[1], world.detector.new_denoiser(precondition=False).eval()
    trained, again = (timesteps.plain_network(world.detector, 40) for _ in range(2))
    before, after = (denoising_loss(net, held_out, [500], seed=0).mean() for net in (random, trained))
    assert after < before and not trained.training
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
