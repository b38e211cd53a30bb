"""Figures of the studies' tables: curves, points with intervals, heat maps, Q-Q plots. All can be had from figures.py.

Tables are tidy, one row a point; ``value``, ``lo`` and ``hi`` are a number and its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
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


def _facets(draw, table: pd.DataFrame, height: float, share: dict, mark: float | None = None, **how) -> sns.FacetGrid:
    """``draw``, seaborn's relplot or catplot, on a page of this height (inches); ``mark`` is an x that is marked."""
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn has its own layout, while it draws
        grid = draw(table, legend="full", facet_kws=share, **how)
    if mark is not None:
        grid.refline(x=mark, color="0.6")
    grid.figure.set_layout_engine("constrained")
    grid.figure.set_size_inches(WIDTH, height)
    sns.move_legend(grid, "outside upper center", ncols=6, title=None, fontsize=6)
    return grid.set_titles("{col_name}", size=7)


def _intervals(axis: Axes, table: pd.DataFrame, x: str, hue: str) -> None:
    for (name, part), marker in zip(table.groupby(hue, sort=False), "osD^vPX*<>" * 3, strict=False):
        reach = [(part.value - part.lo).clip(lower=0), (part.hi - part.value).clip(lower=0)]
        axis.errorbar(part[x], part.value, reach, label=name, marker=marker, ms=3, lw=1, elinewidth=0.6)


def oracle_comparison(t: Sequence[int], learned: np.ndarray, optimum: np.ndarray, zero: np.ndarray) -> Figure:
    """Held-out DDPM loss against t: ``learned``, closed-form ``optimum`` and predicting zero, each (len(t),)."""
    figure, axis = plt.subplots(figsize=(WIDTH / 2, 2.4))
    axis.plot(t, zero, color="0.7", label="predicting zero")
    axis.plot(t, optimum, color="black", label="closed-form optimum")
    axis.plot(t, learned, "o", color=GOOD, markersize=4, label="trained network")
    axis.set(xlabel="timestep t", ylabel="mean squared error on eps", ylim=(0, None))
    axis.legend()
    return figure


def training_curves(training: pd.DataFrame, denoising: pd.DataFrame) -> Figure:
    """Smoothed training loss against step (columns detector, step, loss_smooth), a line a detector; held-out loss as a
    multiple of the Gaussian optimum's against t (columns detector, t, ratio, lo, hi)."""
    figure, (left, right) = panels_in_rows(2, 2.6)
    sns.lineplot(training, x="step", y="loss_smooth", hue="detector", ax=left, legend=False)
    left.set(yscale="log", xlabel="optimiser step", ylabel="training loss (MSE on eps)")
    _intervals(right, denoising.rename(columns={"ratio": "value"}), "t", "detector")
    right.axhline(1, **REFERENCE)
    right.set(xlabel="timestep t", ylabel="held-out loss / optimum")
    return shared_legend(figure)


def interval_curves(
    panels: Mapping[str, pd.DataFrame], x: str, hue: str, xlabel: str, marks: Mapping | None = None, log: Sequence = ()
) -> Figure:
    """One panel an entry, its name on the y axis: its ``value`` against ``x``, with error bars ``lo`` to ``hi`` where
    there are any, one line a value of ``hue``. ``marks``: panel -> height of a dotted line; ``log``: panels with a
    logarithmic y axis."""
    figure, axes = panels_in_rows(len(panels), 2.6)
    for axis, (label, table) in zip(axes, panels.items(), strict=True):
        _intervals(axis, table, x, hue)
        if label in (marks or {}):
            axis.axhline(marks[label], **REFERENCE)
        axis.set(xlabel=xlabel, ylabel=label, yscale="log" if label in log else "linear")
    return shared_legend(figure)


def timestep_curves(metrics: pd.DataFrame, columns: Sequence[str], default_t: int) -> Figure:
    """One panel a metric: the metric against t, a line a category (mean and range over seeds), ``default_t`` marked."""
    long = metrics.melt(["category", "t"], list(columns), "metric")
    grid = _facets(sns.relplot, long, 2.4, {"sharey": False}, default_t, kind="line", x="t", y="value", col="metric",
                   hue="category", marker="o", errorbar=("pi", 100))  # fmt: skip
    return grid.set_axis_labels("timestep t", "").figure


def metric_grid(table: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], default_t: int) -> Figure:
    """One row a metric, one column an input, one line a density: mean over categories and seeds.

    ``table``: columns quantity (the metric), input, density, t, value; ``default_t`` is marked.
    """
    grid = _facets(sns.relplot, table, 1.6 * len(rows) + 0.3, {"sharey": "row", "margin_titles": True}, default_t,
                   kind="line", x="t", y="value", row="quantity", col="input", row_order=rows, col_order=columns,
                   hue="density", style="density", markers=True, dashes=False, errorbar=None, ms=4, lw=1)  # fmt: skip
    grid.set_titles(col_template="{col_name} input", row_template="", size=7).set_xlabels("timestep t")
    for axis, quantity in zip(grid.axes[:, 0], rows, strict=True):
        axis.set_ylabel(quantity)
    return grid.figure


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


def method_dots(metrics: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """One panel a metric, one line a method: a dot for each category and seed, and a bar at their mean. ``metrics``:
    columns method, category and ``columns``."""
    long = metrics.melt(["method", "category"], list(columns), "metric")
    grid = _facets(sns.catplot, long, 0.24 * metrics.method.nunique() + 0.9, {}, kind="strip", x="value", y="method",
                   col="metric", hue="category", size=4, jitter=False, sharex=False)  # fmt: skip
    for axis, column in zip(grid.axes.flat, columns, strict=True):
        means = metrics.groupby("method", sort=False)[column].mean()
        axis.plot(means, range(len(means)), "|", color="black", ms=8)
    return grid.set_axis_labels("", "").figure


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


def ratio_points(table: pd.DataFrame, label: str) -> Figure:
    """A point with its interval for each row (ratio, batch, value, lo, hi), on a log scale with 1 marked."""
    table = table.rename(columns={"ratio": "name"})
    names, groups = list(dict.fromkeys(table.name))[::-1], list(table.groupby("batch"))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.3 * len(names) + 0.9))
    for shift, colour, (batch, part) in zip(np.linspace(0.2, -0.2, len(groups)), COLOURS, groups, strict=False):
        _points(axis, part, names, shift, 1, color=colour, label=f"batch {batch}")
    axis.set(xscale="log", xlabel=label)
    return shared_legend(figure)


def cost_bars(parts: pd.DataFrame, marks: pd.DataFrame, label: str) -> Figure:
    """One bar a row, stacked from the columns of ``parts``; the columns of ``marks`` are drawn as lines across it."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.45 * len(parts) + 1.1))
    parts.plot.barh(stacked=True, ax=axis, color=COLOURS, width=0.55)
    y = np.arange(len(parts))
    for style, (name, values) in zip(("--", "-"), marks.items(), strict=False):
        axis.vlines(values, y - 0.4, y + 0.4, color="0.1", ls=style, lw=1.4, label=name)
    axis.set_yticks(y, [f"{parts.index.name} {one}" for one in parts.index])
    axis.set(xlabel=label, ylabel="")
    return shared_legend(figure)


def qq_panels(curves: Mapping[str, pd.DataFrame], columns: int = 3) -> Figure:
    """Q-Q plots of normality.qq_curve tables: the identity, the observed curve with its band (dark), and the band of
    independent draws from the reference (light)."""
    figure, axes = panels_in_rows(len(curves), WIDTH / min(columns, len(curves)) * 0.85, columns)
    return _qq(figure, axes, curves)


def qq_and_lags(curves: Mapping[str, pd.DataFrame], lags: pd.DataFrame) -> Figure:
    """Q-Q panels as :func:`qq_panels`, and in the last panel the autocorrelation (columns lag, value, lo, hi, line)."""
    figure, (*axes, last) = panels_in_rows(len(curves) + 1, 2.7)
    _intervals(last, lags, "lag", "line")
    last.axhline(0, **REFERENCE)
    last.set(xlabel="distance (locations)", ylabel="autocorrelation")
    last.legend()
    return _qq(figure, axes, curves)


def _qq(figure: Figure, axes: Sequence[Axes], curves: Mapping[str, pd.DataFrame]) -> Figure:
    for axis, (title, curve) in zip(axes, curves.items(), strict=True):
        axis.plot(curve.expected, curve.expected, **REFERENCE)
        axis.fill_between(curve.expected, curve.null_low, curve.null_high, color="0.8", label="95 % if true")
        axis.fill_between(curve.expected, curve.low, curve.high, color=GOOD, alpha=0.4, label="95 % over images")
        axis.plot(curve.expected, curve.observed, color=GOOD, lw=1, label="observed")
        axis.set(xlabel="expected quantile", ylabel="observed quantile", title=title)
    axes[0].legend()
    return figure


def scatter_panels(panels: Mapping[str, pd.DataFrame], x: str, y: str, hue: str, notes: Mapping[str, str]) -> Figure:
    """One panel an entry, its name on the x axis: ``y`` against ``x``, coloured by ``hue``, under ``notes[panel]``."""
    figure, axes = panels_in_rows(len(panels), 2.6, sharey=True)
    for axis, (label, table) in zip(axes, panels.items(), strict=True):
        sns.scatterplot(table, x=x, y=y, hue=hue, style=hue, s=18, ax=axis)
        axis.set(xlabel=label, ylabel=y, title=notes[label])
    return shared_legend(figure)


def effect_bars(table: pd.DataFrame, limits: Mapping[str, tuple[float, float]]) -> Figure:
    """One panel an effect (the columns of ``table``), one bar a row from its neutral value; grey inside the limits
    (column -> neutral value, largest deviation), coloured outside. Long bars are cut at ten times the limit."""
    figure, axes = panels_in_rows(len(table.columns), 0.22 * len(table) + 0.8, sharey=True)
    rows = np.arange(len(table))
    for axis, column in zip(axes, table.columns, strict=True):
        neutral, reach = limits[column]
        away = (table[column] - neutral).to_numpy()
        bars = axis.barh(rows, away.clip(-10 * reach, 10 * reach), left=neutral, height=0.6,
                         color=["0.7" if abs(one) <= reach else ANOMALOUS for one in away])  # fmt: skip
        cut = [f"{value:.3g}" if abs(one) > 10 * reach else "" for one, value in zip(away, table[column], strict=True)]
        axis.bar_label(bars, cut, label_type="center", fontsize=5)
        axis.axvline(neutral - reach, **REFERENCE)
        axis.axvline(neutral + reach, **REFERENCE)
        axis.set(title=column)
    axes[0].set_yticks(rows, table.index, fontsize=6)
    axes[0].invert_yaxis()
    return figure
