"""The explorer says what the detector says, under every reading, and asks the network no more often than it must."""

import io

import numpy as np
import pytest
from PIL import Image

from irf_lib import Detector, Reading, Settings
from irf_lib.irf import INPUTS
from irf_lib.scoring import DENSITIES
from irf_lib.studies.explorer import view
from irf_lib.studies.figures import ExplorerFigure

SETTINGS = Settings(backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=20)


@pytest.fixture(scope="module")
def world():
    """(detector of 60 good images, 6 new images, their features)."""
    rng = np.random.default_rng(0)
    good, new = (rng.random((n, 3, 32, 32), dtype=np.float32) for n in (60, 6))
    detector = Detector(SETTINGS, seed=1, device="cpu").fit(good, progress=None)
    return detector, new, detector.features(new)


@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize("density", DENSITIES)
def test_a_view_is_what_the_detector_reads(world, how, density):
    detector, new, x0 = world
    reading = Reading(t=400, input=how, density=density)
    expected = detector.read(new, reading)
    seen = view(detector, x0[[2]], reading, 0.2)
    assert seen.score == pytest.approx(expected.scores[2], rel=1e-3, abs=1e-3)
    assert seen.p_value == pytest.approx(expected.p_values[2])
    assert seen.threshold == expected.threshold(0.2) < expected.threshold(0.1)
    np.testing.assert_allclose(seen.heat, expected.maps[2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(seen.field_norm, detector.fields(x0, reading).norm(dim=1)[2], rtol=1e-4)


def test_only_a_new_timestep_or_input_asks_the_network_for_the_good_images(world, monkeypatch):
    detector, new, x0 = world
    fields, asked = Detector.fields, []
    monkeypatch.setattr(
        Detector, "fields", lambda self, x, *more, **named: asked.append(len(x)) or fields(self, x, *more, **named)
    )
    view(detector, x0[[0]], Reading(t=100, input="clean"), 0.1)
    assert max(asked) > 1, "a new timestep asks for the good images"
    for i, density, alpha in ((0, "full", 0.3), (0, "diagonal", 0.3), (1, "diagonal", 0.3)):
        asked.clear()
        view(detector, x0[[i]], Reading(t=100, input="clean", density=density), alpha)
        assert asked == [1], "another image, density or alpha asks for one image"
    view(detector, x0[[0]], Reading(t=101, input="clean"), 0.1)
    assert max(asked) > 1


def test_an_impossible_rate_is_refused(world):
    detector, _, x0 = world
    with pytest.raises(ValueError, match="false-alarm rate"):
        view(detector, x0[[0]], Reading(), 1.5)


def test_the_figure_follows_the_view(world):
    detector, new, x0 = world
    panels = ExplorerFigure()
    mask = np.zeros((32, 32), bool)
    mask[4:9, 4:9] = True

    def drawn(index, outline):
        figure = panels.show(new[index], outline, view(detector, x0[[index]], Reading(), 0.1), f"image {index}")
        figure.savefig(file := io.BytesIO(), format="png")
        return np.asarray(Image.open(file))

    first, second, again = drawn(0, mask), drawn(1, None), drawn(0, mask)
    assert (first != second).any() and (first == again).all(), "nothing of the other image is left behind"
    assert first.std() > 10
