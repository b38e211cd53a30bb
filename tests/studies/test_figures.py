"""Every figure draws the numbers that it is given."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from irf_lib.studies import figures

mpl.use("agg")
rng = np.random.default_rng(0)
IMAGE, MASK = rng.random((3, 16, 16)), np.eye(16, dtype=bool)
decisions = pd.DataFrame({"panel": "bottle", "score": np.arange(8.0), "anomalous": [False] * 4 + [True] * 4})


def words(figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_visible()}


def test_a_grid_names_its_rows_and_kinds_and_a_histogram_its_numbers_of_images():
    grid = figures.image_grid({"bottle": [("good", IMAGE, None), ("crack", IMAGE, MASK)]}, "MVTec AD")
    assert {"bottle", "good", "crack"} <= words(grid) and sum(axis.axison for axis in grid.axes) == 2
    histogram = figures.score_histogram(np.arange(4.0), np.arange(9.0), np.inf)
    assert {"held-out good (4)", "these images (9)"} <= words(histogram)


def test_points_and_intervals_lie_where_the_table_says():
    value = np.array([0.25, 0.35])
    part = pd.DataFrame({"category": "bottle", "method": ["knn", "dte"], "diff": value})
    part = part.assign(lo=value - 0.05, hi=value + 0.05)
    (axis,) = figures.difference_points(part, "gain", {"bottle": 83}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dte", "knn"]
    assert np.allclose(axis.containers[0][0].get_xydata(), [[0.25, 1], [0.35, 0]])
    (reach,) = axis.containers[0][2]
    assert np.allclose([segment[:, 0] for segment in reach.get_segments()], [[0.2, 0.3], [0.3, 0.4]])


def test_good_and_anomalous_have_the_same_two_colours_everywhere():
    figure = figures.score_densities(decisions, {"bottle": 3.5})
    (axis,) = figure.axes
    assert {"bottle", "good (4)", "anomalous (4)"} <= words(figure)
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
