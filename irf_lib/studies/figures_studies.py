"""Figures of the studies' tables: curves, points with intervals, heat maps, Q-Q plots. All can be had from figures.py.

Tables are tidy, one row a point; ``value``, ``lo`` and ``hi`` are a number and its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.0  # inches, a page's text width
COLOURS = sns.color_palette("colorblind")
GOOD, ANOMALOUS = COLOURS[0], COLOURS[3]
REFERENCE = {"color": "black", "lw": 0.8, "ls": ":"}  # the line that a curve is held against


def panels_in_rows(n: int, height: float, columns: int = 9, **more) -> tuple[Figure, list[Axes]]:
    """``n`` panels of ``height`` inches across a page, ``columns`` in a row."""
    columns = min(columns, n)
    figure, axes = plt.subplots(-(-n // columns), columns, squeeze=False, layout="constrained", **more)
    figure.set_size_inches(WIDTH, height * len(axes))
    for axis in axes.flat[n:]:
        axis.axis("off")
    return figure, list(axes.flat[:n])


def shared_legend(figure: Figure, columns: int = 4) -> Figure:
    """One legend above the panels, for whatever any of them shows."""
    handles = {}
    for axis in figure.axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
        if axis.get_legend():
            axis.get_legend().remove()
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns, fontsize=6)
    return figure


def facets(draw, table: pd.DataFrame, height: float, share: dict, mark: float | None = None, **how) -> sns.FacetGrid:
    """``draw``, seaborn's relplot or catplot, on a page of this height (inches); ``mark`` is an x that is marked."""
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn has its own layout, while it draws
        grid = draw(table, legend="full", facet_kws=share, **how)
    if mark is not None:
        grid.refline(x=mark, color="0.6")
    grid.figure.set_layout_engine("constrained")
    grid.figure.set_size_inches(WIDTH, height)
    sns.move_legend(grid, "outside upper center", ncols=6, title=None, fontsize=6)
    return grid.set_titles("{col_name}", size=7)


def interval_lines(axis: Axes, table: pd.DataFrame, x: str, hue: str) -> None:
    for (name, part), marker in zip(table.groupby(hue, sort=False), "osD^vPX*<>" * 3, strict=False):
        reach = [(part.value - part.lo).clip(lower=0), (part.hi - part.value).clip(lower=0)]
        axis.errorbar(part[x], part.value, reach, label=name, marker=marker, ms=3, lw=1, elinewidth=0.6)


def interval_curves(
    panels: Mapping[str, pd.DataFrame], x: str, hue: str, xlabel: str, marks: Mapping | None = None, log: Sequence = ()
) -> Figure:
    """One panel an entry, its name on the y axis: its ``value`` against ``x``, with error bars ``lo`` to ``hi`` where
    there are any, one line a value of ``hue``. ``marks``: panel -> height of a dotted line; ``log``: panels with a
    logarithmic y axis."""
    figure, axes = panels_in_rows(len(panels), 2.6)
    for axis, (label, table) in zip(axes, panels.items(), strict=True):
        interval_lines(axis, table, x, hue)
        if label in (marks or {}):
            axis.axhline(marks[label], **REFERENCE)
        axis.set(xlabel=xlabel, ylabel=label, yscale="log" if label in log else "linear")
    return shared_legend(figure)


def heat_maps(panels: Sequence[tuple[str, pd.DataFrame]], label: str, limits: tuple[float, float]) -> Figure:
    """Square tables (rows t, columns t') two in a row, with their values, on one colour scale labelled ``label``."""
    figure, axes = panels_in_rows(len(panels), 0.46 * WIDTH, columns=2)
    for axis, (title, table) in zip(axes, panels, strict=True):
        sns.heatmap(table, vmin=limits[0], vmax=limits[1], cmap="cividis", annot=True, fmt=".2f", cbar=False, ax=axis,
                    square=True, annot_kws={"size": min(8, 55 / len(table))})  # fmt: skip
        axis.set(xlabel="t'", ylabel="t", title=title)
        axis.tick_params(labelsize=6)
        axis.tick_params("y", rotation=0)
    figure.colorbar(axes[-1].collections[0], ax=axes, label=label, shrink=0.6, aspect=30)
    return figure


def _points(axis: Axes, part: pd.DataFrame, names: Sequence[str], shift: float, mark: float, **how) -> None:
    reach = [(part.value - part.lo).clip(lower=0), (part.hi - part.value).clip(lower=0)]
    axis.axvline(mark, color="0.6", lw=0.8)
    axis.errorbar(part.value, [names.index(name) + shift for name in part.name], xerr=reach, fmt="o", ms=3, lw=1, **how)
    axis.set_yticks(range(len(names)), names, fontsize=7)


def difference_points(table: pd.DataFrame, label: str, n: Mapping[str, int]) -> Figure:
    """One panel a category (columns category, method, diff, lo, hi): a point and its interval a method, and zero.

    ``n`` are the test images of each category.
    """
    table = table.rename(columns={"method": "name", "diff": "value"})
    names, parts = list(dict.fromkeys(table.name))[::-1], dict(list(table.groupby("category", sort=False)))
    figure, axes = panels_in_rows(len(parts), 0.22 * len(names) + 0.9, columns=4, sharex=True, sharey=True)
    for axis, (category, part) in zip(axes, parts.items(), strict=True):
        _points(axis, part, names, 0, 0, color=GOOD)
        axis.set(title=f"{category} (n = {n[category]})")
    figure.supxlabel(label, fontsize=8)
    return figure


def draw_qq(axis: Axes, curve: pd.DataFrame, title: str) -> None:
    """One of normality.qq_curve's tables: the identity, the observed curve with its band (dark), and the band of
    independent draws from the reference (light)."""
    axis.plot(curve.expected, curve.expected, **REFERENCE)
    axis.fill_between(curve.expected, curve.null_low, curve.null_high, color="0.8", label="95 % if true")
    axis.fill_between(curve.expected, curve.low, curve.high, color=GOOD, alpha=0.4, label="95 % over images")
    axis.plot(curve.expected, curve.observed, color=GOOD, lw=1, label="observed")
    axis.set(xlabel="expected quantile", ylabel="observed quantile", title=title)
