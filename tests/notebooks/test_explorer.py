"""The explorer says what the detector says, under every reading, and asks the network no more often than it must."""

import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from irf_lib import Detector, Reading, Settings
from irf_lib.irf import INPUTS
from irf_lib.scoring import DENSITIES
from irf_lib.studies.explorer import Explorer

SETTINGS = Settings(backbone="rgb", image_size=32, feature_size=8, width=64, depth=1, steps=20)


@pytest.fixture(scope="module")
def world():
    """(detector of 60 good images, 6 new images, their features)."""
    rng = np.random.default_rng(0)
    good, new = (rng.random((n, 3, 32, 32), dtype=np.float32) for n in (60, 6))
    detector = Detector(SETTINGS, seed=1, device="cpu").fit(good, progress=None)
    return detector, new, detector.features(new)


@pytest.fixture
def explorer(world):
    """Of which image 1 is anomalous and has a mask."""
    detector, new, x0 = world
    masks, labels = np.zeros((6, 32, 32), bool), np.arange(6) == 1
    masks[1, 4:9, 4:9] = True
    test = SimpleNamespace(x0=x0, labels=labels, masks=masks, names=[f"image {i}" for i in range(6)])
    return Explorer(detector, test, new, alpha=0.2)


@pytest.mark.parametrize(("density", "how"), zip(DENSITIES, itertools.cycle(INPUTS), strict=False))
def test_a_view_is_what_the_detector_reads(world, explorer, how, density):
    detector, new, _ = world
    expected = detector.read(new, Reading(t=400, input=how, density=density))
    seen = explorer.look(index=2, t=400, input=how, density=density)
    assert seen.scores[0] == pytest.approx(expected.scores[2], rel=1e-3, abs=1e-3)
    assert seen.p_values[0] == pytest.approx(expected.p_values[2])
    assert f"threshold {expected.threshold(0.2):.1f}" in explorer.note.value
    np.testing.assert_allclose(seen.maps[0], expected.maps[2], rtol=1e-3, atol=1e-3)


def test_only_a_new_timestep_or_input_asks_the_network_for_the_good_images(explorer, monkeypatch):
    fields, asked = Detector.fields, []
    monkeypatch.setattr(
        Detector, "fields", lambda self, x, *more, **named: asked.append(len(x)) or fields(self, x, *more, **named)
    )
    first = {"t": 100, "input": "clean"}
    explorer.look(**first)
    assert max(asked) > 1, "a new timestep asks for the good images"
    for change in ({"alpha": 0.3}, {"density": "diagonal"}, {"density": "diagonal", "index": 0}):
        asked.clear()
        explorer.look(**first | change)
        assert asked == [1], "another image, density or alpha asks for one image"
    explorer.look(t=101, input="clean")
    assert max(asked) > 1


def test_the_picture_follows_the_controls(explorer):
    def drawn(index):
        explorer.controls["index"].value = index
        return np.asarray(Image.open(io.BytesIO(explorer.screen.value)))

    explorer.look()
    start, other, again = explorer.screen.value, drawn(0), drawn(1)
    first = np.asarray(Image.open(io.BytesIO(start)))
    assert (first != other).any() and (first == again).all(), "nothing of the other image is left behind"
    assert first.std() > 10 and "image 1" in explorer.note.value
