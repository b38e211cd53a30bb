"""Every figure draws the numbers that it is given."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from irf_lib.studies import figures

mpl.use("agg")
rng = np.random.default_rng(0)
IMAGE, MASK = rng.random((3, 16, 16)), np.eye(16, dtype=bool)


def words(figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_visible()}


def test_a_grid_names_its_rows_and_kinds_and_a_histogram_its_numbers_of_images_in_the_same_two_colours():
    grid = figures.image_grid({"bottle": [("good", IMAGE, None), ("crack", IMAGE, MASK)]}, "MVTec AD")
    assert {"bottle", "good", "crack"} <= words(grid) and sum(axis.axison for axis in grid.axes) == 2
    figure, (axis,) = figures.panels_in_rows(1, 2)
    figures.score_histogram(axis, np.arange(4.0), np.arange(9.0), ("good", "anomalous"), np.inf)
    assert {"good (4)", "anomalous (9)"} <= words(figure)
    assert {patch.get_facecolor()[:3] for patch in axis.patches} == {figures.GOOD, figures.ANOMALOUS}


def test_points_and_intervals_lie_where_the_table_says():
    value = np.array([0.25, 0.35])
    part = pd.DataFrame({"category": "bottle", "method": ["knn", "dte"], "diff": value})
    part = part.assign(lo=value - 0.05, hi=value + 0.05)
    (axis,) = figures.difference_points(part, "gain", {"bottle": 83}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dte", "knn"]
    assert np.allclose(axis.containers[0][0].get_xydata(), [[0.25, 1], [0.35, 0]])
    (reach,) = axis.containers[0][2]
    assert np.allclose([segment[:, 0] for segment in reach.get_segments()], [[0.2, 0.3], [0.3, 0.4]])


def test_a_map_is_coloured_where_few_good_pixels_are_as_anomalous():
    rates = np.where(MASK, 0.001, 0.5)
    drawn = figures.show_map(mpl.pyplot.figure().subplots(), IMAGE, rates)
    assert (drawn.get_array().mask == ~MASK).all()
