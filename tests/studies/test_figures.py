"""Every figure draws the numbers that it is given."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from irf_lib.studies import figures

mpl.use("agg")
rng = np.random.default_rng(0)
IMAGE, MASK, MAP = rng.random((3, 16, 16)), np.eye(16, dtype=bool), 3 + rng.random((16, 16))


def table(n: int = 6, **columns) -> pd.DataFrame:
    """``n`` rows with an interval around 0.25, 0.35, ... and what else is given."""
    value = 0.25 + 0.1 * np.arange(n)
    return pd.DataFrame({"value": value, "lo": value - 0.05, "hi": value + 0.05, **columns})


decisions = pd.DataFrame({"panel": "bottle", "score": np.arange(8.0), "anomalous": [False] * 4 + [True] * 4})

# name: (arguments, words that stand in the figure, number of panels)
CASES = {
    "image_grid": (({"bottle": [("good", IMAGE, None), ("crack", IMAGE, MASK)]}, "MVTec AD"), ["crack", "bottle"], 2),
    "score_densities": ((decisions, {"bottle": 3.5}), ["bottle", "good (4)", "anomalous (4)", "threshold"], 1),
    "score_histogram": ((np.arange(4.0), np.arange(9.0), np.inf), ["held-out good (4)", "these images (9)"], 1),
    "difference_points": (
        (table(2, category="bottle", method=["knn", "dte"]).rename(columns={"value": "diff"}), "gain", {"bottle": 83}),
        ["knn", "dte", "bottle (n = 83)", "gain"],
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_figure_holds_what_it_was_given(name):
    arguments, words, panels = CASES[name]
    with mpl.rc_context():
        figures.use_style()
        figure = getattr(figures, name)(*arguments)
        figure.canvas.draw()
    seen = {text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_visible()}
    assert not [word for word in words if not any(word == one or (len(word) > 3 and word in one) for one in seen)], seen
    shown = [axis for part in (figure, *getattr(figure, "subfigs", ())) for axis in part.axes if axis.axison]
    assert len({id(axis) for axis in shown if axis.get_visible()}) == panels
    assert all(axis.has_data() for axis in shown if axis.get_visible())
    mpl.pyplot.close(figure)


def test_points_and_intervals_lie_where_the_table_says():
    part = table(2, category="bottle", method=["knn", "dte"]).rename(columns={"value": "diff"})
    (axis,) = figures.difference_points(part, "gain", {"bottle": 83}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dte", "knn"]
    assert np.allclose(axis.containers[0][0].get_xydata(), [[0.25, 1], [0.35, 0]])
    (reach,) = axis.containers[0][2]
    assert np.allclose([segment[:, 0] for segment in reach.get_segments()], [[0.2, 0.3], [0.3, 0.4]])


def test_good_and_anomalous_have_the_same_two_colours_everywhere():
    (axis,) = figures.score_densities(decisions, {"bottle": np.nan}).axes
    faces = {patch.get_facecolor()[:3] for patch in axis.patches}
    assert faces == {figures.GOOD, figures.ANOMALOUS}


def test_the_overlay_is_clear_below_its_limits_and_outlines_what_is_above_the_threshold():
    picture, heat = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8))
    heat[2:6, 2:6] = 9
    drawn = figures.heat_overlay(picture, heat, (0, 10), threshold=5)
    assert (drawn[0, 0] == 100).all() and (drawn[2, 2] == (0, 255, 255)).all()
    assert (drawn[3, 3] != 100).any() and (drawn[3, 3] != (0, 255, 255)).any()


def test_a_map_is_coloured_where_few_good_pixels_are_as_anomalous():
    rates = np.where(MASK, 0.001, 0.5)
    drawn = figures.show_map(mpl.pyplot.figure().subplots(), IMAGE, rates)
    assert (drawn.get_array().mask == ~MASK).all()
