"""The explorer says what the detector says, under every reading, and asks the network no more often than it must."""

import io

import numpy as np
import pytest
from PIL import Image

from irf_lib.detector import DetectorSettings, OneStepDetector
from irf_lib.explorer import Explorer
from irf_lib.irf import INPUTS
from irf_lib.plots import ExplorerFigure
from irf_lib.scoring import DENSITIES

SETTINGS = DetectorSettings(backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=20, alpha=0.1)


@pytest.fixture(scope="module")
def world():
    """(detector, explorer of 6 new images, those images, the good images' features: fitted on and held out)."""
    rng = np.random.default_rng(0)
    good, new = (rng.random((n, 3, 32, 32), dtype=np.float32) for n in (60, 6))
    detector = OneStepDetector(SETTINGS, seed=1, device="cpu").fit(good, progress=None)
    x0 = detector.features(good)
    parts = x0[detector.fit_index], x0[detector.calibration_index]
    return detector, Explorer(detector, *parts, detector.features(new)), new, parts


def test_the_default_reading_is_the_detectors_own(world):
    detector, explorer, new, _ = world
    expected = detector.score(new)
    for i in range(len(new)):
        view = explorer.view(i, SETTINGS.t, SETTINGS.input, SETTINGS.density, SETTINGS.alpha)
        assert view.score == pytest.approx(expected.scores[i], rel=1e-4)
        assert view.p_value == pytest.approx(expected.p_values[i])
        np.testing.assert_allclose(view.heat, expected.maps[i], rtol=1e-3, atol=1e-3)
        assert view.threshold == pytest.approx(detector.threshold, rel=1e-4)
        norm = detector.fields(detector.features(new[[i]])).norm(dim=1)[0]
        np.testing.assert_allclose(view.field_norm, norm, rtol=1e-4)


@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize("density", DENSITIES)
def test_any_other_reading_is_that_of_a_detector_calibrated_for_it(world, how, density):
    detector, explorer, new, parts = world
    other = detector.with_scoring(*parts, t=400, input=how, density=density)
    view = explorer.view(2, 400, how, density, 0.2)
    assert view.score == pytest.approx(other.score(new).scores[2], rel=1e-3, abs=1e-3)
    np.testing.assert_allclose(view.calibration_scores, other.calibration_scores, rtol=1e-3, atol=1e-3)


def test_only_a_new_timestep_or_input_asks_the_network_for_the_good_images(world, monkeypatch):
    detector, _, new, parts = world
    explorer, asked = Explorer(detector, *parts, detector.features(new)), []
    fields = OneStepDetector.fields
    monkeypatch.setattr(
        OneStepDetector, "fields", lambda self, x0, *where: asked.append(len(x0)) or fields(self, x0, *where)
    )
    explorer.view(0, 100, "clean", "full", 0.1)
    assert sorted(asked) == [1, 20, 40]
    for index, density, alpha in ((0, "full", 0.3), (0, "diagonal", 0.3), (1, "diagonal", 0.3)):
        explorer.view(index, 100, "clean", density, alpha)
    assert sorted(asked) == [1, 1, 20, 40], "another image alone"
    explorer.view(0, 101, "clean", "full", 0.1)
    assert sorted(asked) == [1, 1, 1, 20, 20, 40, 40]


def test_it_keeps_a_few_readings_only(world):
    detector, _, new, parts = world
    explorer = Explorer(detector, *(part[:4] for part in parts), detector.features(new))
    first = explorer.view(0, 1, "clean", "standard", 0.5)
    for t in range(2, 30):
        explorer.view(0, t, "clean", "standard", 0.5)
    assert len(explorer._kept) <= 32
    assert explorer.view(0, 1, "clean", "standard", 0.5).score == pytest.approx(first.score)


def test_what_is_not_there_is_refused(world):
    _, explorer, _, _ = world
    with pytest.raises(IndexError):
        explorer.view(6, 100, "clean", "full", 0.1)
    with pytest.raises(KeyError):
        explorer.view(0, 100, "clean", "round", 0.1)
    with pytest.raises(ValueError, match="false-alarm rate"):
        explorer.view(0, 100, "clean", "full", 1.5)


def test_the_figure_follows_the_view(world):
    _, explorer, new, _ = world
    panels = ExplorerFigure()
    mask = np.zeros((32, 32), bool)
    mask[4:9, 4:9] = True

    def drawn(index, outline):
        figure = panels.show(new[index], outline, explorer.view(index, 200, "scaled", "full", 0.1), f"image {index}")
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return np.asarray(Image.open(file))

    first, second, again = drawn(0, mask), drawn(1, None), drawn(0, mask)
    assert (first != second).any() and (first == again).all(), "nothing of the other image is left behind"
    assert first.std() > 10
