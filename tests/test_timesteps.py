"""The timestep study on small detectors, against what is known without a network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from irf_lib import timesteps
from irf_lib.detector import DetectorSettings, OneStepDetector
from irf_lib.diffusion import denoising_loss, gaussian_optimum
from irf_lib.scoring import DENSITIES

TS = [1, 50, 200, 800]
SETTINGS = DetectorSettings(
    backbone="rgb",
    image_size=32,
    feature_size=8,
    width=64,
    depth=1,
    steps=40,
    precision="fp32",
    image_score="top5",
    patch_size=1,
    input="clean",
    density="full",
)


@pytest.fixture(scope="module")
def world():
    """A fitted detector, its normal features, its held-out images, and a test set of 12 good and 12 brightened ones."""
    images = np.random.default_rng(0).random((84, 3, 32, 32), dtype=np.float32) * 0.2 + 0.4
    images[72:, :, 8:20, 8:20] += 0.013  # hardly more than the noise of a location: some are found, some are not
    detector = OneStepDetector(SETTINGS, seed=1, device="cpu").fit(images[:60], progress=None)
    x0 = detector.features(images[:60])
    masks = np.zeros((24, 32, 32), dtype=bool)
    masks[12:, 8:20, 8:20] = True
    test = SimpleNamespace(
        x0=detector.features(images[60:]), labels=np.arange(24) >= 12, masks=masks, image_size=32, seed=1
    )
    held_out = images[:60][detector.calibration_index]
    return SimpleNamespace(
        detector=detector,
        fit=x0[detector.fit_index],
        held_out=x0[detector.calibration_index],
        images=held_out,
        test=test,
    )


@pytest.fixture(scope="module")
def optimum(world):
    """The same detector with the closed-form Gaussian optimum in the network's place."""
    return world.detector.untrained(world.fit, world.held_out)


def test_fields_can_be_read_elsewhere(world):
    other = world.detector.with_scoring(world.fit, world.held_out, t=77, input="noised")
    assert torch.equal(world.detector.fields(world.test.x0, 77, "noised"), other.fields(world.test.x0))
    assert world.detector.settings.t == SETTINGS.t, "the detector itself stays as it was"


def test_detection_rows(world):
    reading = timesteps.read_at(world.detector, world.fit, world.test.x0, 200, "clean")
    rows = timesteps.detection_rows(world.detector, world.test, reading)
    assert len(rows) == 5 * 3 and {row["density"] for row in rows} == set(DENSITIES)
    full = {row["quantity"]: row for row in rows if row["density"] == "full"}
    assert 0.6 < full["I-AUROC"]["value"] < 0.99, "a case in which readings can differ"
    scores = world.detector.score_features(world.test.x0).scores
    assert full["I-AUROC"]["value"] == pytest.approx(roc_auc_score(world.test.labels, scores))
    assert full["I-AUROC"]["lo"] <= full["I-AUROC"]["value"] <= full["I-AUROC"]["hi"] and "lo" not in full["AUPRO"]
    unmasked = SimpleNamespace(**{**vars(world.test), "masks": None})
    rows = timesteps.detection_rows(world.detector, unmasked, reading)
    assert [np.isnan(row["value"]) for row in rows[:3]] == [False, True, True]


def test_a_gaussian_world_agrees_with_itself(world, optimum):
    """Statement 3 of the notebook: under a fitted covariance the optimum ranks alike at every t, its fields do not."""
    readings = [timesteps.read_at(optimum, world.fit, world.test.x0, t, "clean") for t in TS]
    rows = timesteps.agreement_rows(optimum, world.test, readings)
    pick = {(r["quantity"], r["kind"], r["density"], r["t"], r["t2"]): r for r in rows}
    assert len(pick) == len(rows), "no row twice"
    assert pick["image ranking", "all", "full", 1, 800]["value"] > 0.99
    assert pick["pixel ranking", "good", "full", 1, 800]["value"] > 0.99
    assert pick["relative change", "good", None, 1, 800]["value"] > 0.3
    assert {r["n"] for r in rows if r["kind"] == "all"} == {24} and {r["n"] for r in rows if r["kind"] == "good"} == {
        12
    }
    assert all(r["lo"] - 1e-9 <= r["value"] <= r["hi"] + 1e-9 for r in rows if r["quantity"] == "cosine")


def test_neighbours_are_nearer_than_distant_timesteps(world):
    rows = timesteps.neighbour_rows(world.detector, world.test, offsets=(1, 700))
    cosine = {(r["kind"], r["t2"]): r["value"] for r in rows if r["quantity"] == "cosine"}
    assert set(cosine) == {(kind, t) for kind in ("good", "anomalous") for t in (201, 900)}
    assert cosine["good", 201] > 0.9999 and cosine["good", 201] > cosine["good", 900]
    late = world.detector.with_scoring(world.fit, world.held_out, t=999)
    assert {r["t2"] for r in timesteps.neighbour_rows(late, world.test, offsets=(1,))} == {998}


def test_the_first_step_is_the_one_step_score(world):
    rows = timesteps.step_rows(world.detector, world.fit, world.test, stride=300, steps=5)
    assert sorted({(r["k"], r["t"]) for r in rows}) == [(1, 200), (2, 399), (3, 598), (4, 797), (5, 996)], "to the end"
    first = {r["quantity"]: r for r in rows if r["k"] == 1}
    assert first["I-AUROC minus one step"]["value"] == 0 and first["image ranking"]["value"] == pytest.approx(1)
    late = world.detector.with_scoring(world.fit, world.held_out, t=999)
    assert {r["k"] for r in timesteps.step_rows(late, world.fit, world.test)} == {1}, "no timestep after the last"
    expected = roc_auc_score(world.test.labels, world.detector.score_features(world.test.x0).scores)
    assert first["I-AUROC"]["value"] == pytest.approx(expected)


def test_choice_rows_use_good_images_alone(world, optimum):
    rows = timesteps.choice_rows(world.detector, world.fit, world.held_out, world.images, TS)
    assert {r["kind"] for r in rows} == {"held-out good"} and len(rows) == 2 * len(TS)
    untouched = timesteps.choice_rows(world.detector, world.fit, world.held_out, np.full_like(world.images, 0.5), TS)
    flat = [r["value"] for r in untouched if r["quantity"] == "CutPaste AUROC"]
    assert max(flat) < 0.1, "flat images have nothing to cut or paste, and are smoother than any original"
    # The Gaussian optimum gains nothing over itself.
    gains = [
        r
        for r in timesteps.choice_rows(optimum, world.fit, world.held_out, world.images, TS)
        if r["quantity"] == "gain"
    ]
    assert all(r["value"] == pytest.approx(0, abs=1e-6) for r in gains)


def test_curve_rows_of_the_optimum(world):
    data = (world.fit, world.held_out, world.test)
    rows = timesteps.curve_rows("optimum", world.detector, gaussian_optimum(world.fit), data, TS, n_fit=40)
    ratio = [r["value"] for r in rows if r["quantity"] == "loss / optimum"]
    assert ratio == pytest.approx([1] * len(TS))
    at_default = [r["value"] for r in rows if r["quantity"] == "cosine" and r["t"] == 200]
    assert at_default == pytest.approx([1])


def test_new_and_plain_networks(world):
    random = world.detector.new_denoiser(precondition=False).eval()
    trained = timesteps.plain_network(world.detector, world.fit, 40)
    before, after = (denoising_loss(net, world.held_out, [500], seed=0).mean() for net in (random, trained))
    assert after < before and not trained.training
    again = timesteps.plain_network(world.detector, world.fit, 40)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_a_network_trained_at_one_timestep_learns_that_one(world):
    x0 = torch.nn.functional.interpolate(torch.randn(200, 3, 2, 2, generator=torch.Generator().manual_seed(0)), size=8)
    net = timesteps.one_timestep_network(world.detector, x0, 300, 150)
    ours, optimum = (denoising_loss(one, x0, [20, 300], seed=1).mean(dim=1) for one in (net, gaussian_optimum(x0)))
    gain = (optimum - ours) / optimum
    assert gain[1] > 0.05 and gain[1] > gain[0] + 0.05, "blocks of equal values are more than a covariance of locations"


def test_noise_shared_by_a_batch_leaks_the_label(world):
    good = torch.cat([world.fit, world.held_out])[:48]
    found = {
        mode: [timesteps.leak_auroc(world.detector, good, 900, mode, seed, batch_size=24) for seed in range(12)]
        for mode in timesteps.NOISE_MODES
    }
    away = {mode: np.mean([abs(one - 0.5) for one in values]) for mode, values in found.items()}
    assert away["one draw a batch"] > 0.3, "nothing to find, and found"
    assert away["one draw for each image"] < 0.15 and away["one fixed draw"] < 0.15
    with pytest.raises(ValueError, match="unknown mode 'none'"):
        timesteps.leak_auroc(world.detector, good, 900, "none", 0, 24)
