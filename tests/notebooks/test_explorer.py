"""The explorer says what the detector says, under every reading, and asks the network no more often than it must."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from irf_lib import Detector, Reading
from irf_lib.irf import INPUTS
from irf_lib.scoring import DENSITIES
from irf_lib.studies.explorer import Explorer

NEW = np.random.default_rng(1).random((6, 3, 64, 64), dtype=np.float32)


@pytest.fixture
def explorer(tiny_detector):
    """Of which image 1 is anomalous and has a mask."""
    masks, labels = np.zeros((6, 64, 64), bool), np.arange(6) == 1
    masks[1, 8:18, 8:18] = True
    x0, names = tiny_detector.features(NEW), [f"image {i}" for i in range(6)]
    test = SimpleNamespace(x0=x0, labels=labels, masks=masks, names=names)
    return Explorer(tiny_detector, test, NEW, alpha=0.2)


@pytest.mark.parametrize(("density", "how"), zip(DENSITIES, itertools.cycle(INPUTS), strict=False))
def test_a_view_is_what_the_detector_reads(tiny_detector, explorer, how, density):
    expected = tiny_detector.read(NEW, Reading(t=400, input=how, density=density))
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
    explorer.look()
    first = explorer.screen.value
    explorer.controls["index"].value = 0
    assert explorer.screen.value != first and "image 0" in explorer.note.value
    explorer.controls["index"].value = 1
    assert explorer.screen.value == first, "nothing of the other image is left behind"
