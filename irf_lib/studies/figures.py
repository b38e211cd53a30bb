"""Figures. Each function draws what it is given and returns the matplotlib Figure; nothing is computed here.

Sizes are inches at a page's text width. Good parts and anomalous ones are always GOOD and ANOMALOUS, of seaborn's
colour-blind-safe palette. Images are (3, H, W) float in [0, 1], masks (H, W) bool, maps (H, W) float. Here are the
style and the figures of images, maps and scores; those of the studies' tables come from figures_studies.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from .figures_studies import *  # noqa: F403
from .figures_studies import ANOMALOUS, GOOD, WIDTH, panels_in_rows


def use_style() -> None:
    """The project's look, for every figure of a notebook: call once, in the set-up cell."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc={
        "pdf.fonttype": 42, "figure.dpi": 110, "figure.constrained_layout.use": True, "image.interpolation": "nearest",
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 6,
        "axes.titlesize": 7, "image.cmap": "viridis",
    })  # fmt: skip


def show_image(axis: Axes, image: np.ndarray, mask: np.ndarray | None = None, title: str = "", size: float = 7):
    """A picture without axes: an image, or a map (h, w), and the outline of its mask. Returns what imshow does."""
    drawn = axis.imshow(image.transpose(1, 2, 0).clip(0, 1) if image.ndim == 3 else image)
    if mask is not None and mask.any():
        colour = ANOMALOUS if image.ndim == 3 else "white"
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)
    axis.set_title(title, fontsize=size, pad=3)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return drawn


def _credit(figure: Figure, credit: str) -> Figure:
    figure.supxlabel(credit, fontsize=6, x=0.995, ha="right")
    return figure


def image_grid(rows: Mapping[str, Sequence[tuple]], credit: str, width: float = WIDTH) -> Figure:
    """One row a category: ``rows[name]`` is a list of (title, image, mask or None); masks are outlined."""
    columns = max(len(row) for row in rows.values())
    size = (width, len(rows) * (width / columns + 0.2) + 0.2)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis in line[len(row) :]:
            axis.axis("off")
        for axis, (title, image, mask) in zip(line, row, strict=False):
            show_image(axis, image, mask, title)
        line[0].set_ylabel(name, fontsize=7)
    return _credit(figure, credit)


def field_panels(panels: Sequence[Sequence[tuple[str, np.ndarray]]], credit: str, unit: str) -> Figure:
    """Rows of (title, picture): (3, H, W) pictures are images, (h, w) ones are maps. The maps of one column share their
    colour limits, and ``unit`` labels the bar of the last column."""
    shape = len(panels), len(panels[0])
    size = (WIDTH, shape[0] * (WIDTH / shape[1] + 0.15) + 0.2)
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False)
    for line, column in zip(axes.T, zip(*panels, strict=True), strict=True):
        drawn = [show_image(axis, picture, title=title) for axis, (title, picture) in zip(line, column, strict=True)]
        maps = [one for one, (_, picture) in zip(drawn, column, strict=True) if picture.ndim == 2]
        for one in maps:
            one.set_clim(min(p.min() for _, p in column), max(p.max() for _, p in column))
        if maps:
            bar = figure.colorbar(maps[-1], ax=list(line), location="bottom", shrink=0.8)
            bar.ax.tick_params(labelsize=6)
            bar.set_label(unit if line[0] is axes[0, -1] else "", fontsize=7)
    return _credit(figure, credit)


def _histogram(axis: Axes, good: np.ndarray, others: np.ndarray, labels: tuple[str, str], threshold: float) -> None:
    """Image scores of good and other images, as densities, and the threshold.

    A few extreme defects would squeeze everything else into one bin: the axis ends at three times the good images'
    range, and what lies beyond is drawn in the last bin.
    """
    low, high = min(good.min(), others.min()), max(good.max(), others.max())
    reach = good.min() + 3 * (np.ptp(good) or high - low or 1.0)
    edges = np.linspace(low, max(min(reach, high), low + 1e-6), 30)
    for values, colour, label in ((good, GOOD, labels[0]), (others, ANOMALOUS, labels[1])):
        label = f"{label} ({len(values)})"
        axis.hist(values.clip(edges[0], edges[-1]), edges, density=True, color=colour, alpha=0.6, label=label)
    if np.isfinite(threshold):
        axis.axvline(threshold, color="black", lw=1, ls="--", label="threshold")
    axis.set(xlabel="image score (nats)", yticks=[])
    axis.legend(frameon=False, fontsize=6)


def score_densities(decisions: pd.DataFrame, thresholds: Mapping[str, float]) -> Figure:
    """Histograms of image scores, good against anomalous, one panel a detector, with its threshold.

    ``decisions``: columns panel, score, anomalous. ``thresholds``: panel -> nats, NaN for none.
    """
    parts = dict(list(decisions.groupby("panel", sort=False)))
    figure, axes = panels_in_rows(len(parts), 1.9, columns=4)
    for axis, (panel, part) in zip(axes, parts.items(), strict=True):
        scores, bad = part.score.to_numpy(), part.anomalous.to_numpy(dtype=bool)
        _histogram(axis, scores[~bad], scores[bad], ("good", "anomalous"), thresholds[panel])
        axis.set(title=panel)
    return figure


def score_histogram(calibration: np.ndarray, scores: np.ndarray, threshold: float) -> Figure:
    """Scores (N,) of new images beside those of the held-out good ones (n,), in nats, and the threshold."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 1.9), layout="constrained")
    _histogram(axis, calibration, scores, ("held-out good", "these images"), threshold)
    return figure


def heat_overlay(picture: np.ndarray, heat: np.ndarray, limits: tuple[float, float], threshold: float) -> np.ndarray:
    """An anomaly map over its picture, uint8 (H, W, 3): clear at ``limits[0]``, full colour from ``limits[1]`` on, and
    a line around what is above ``threshold``. ``picture``: uint8 (H, W, 3); ``heat``: (H, W), nats."""
    low, high = limits
    strength = ((heat - low) / max(high - low, 1e-9)).clip(0, 1)[..., None]
    colour = plt.get_cmap("inferno")(0.25 + 0.75 * strength[..., 0])[..., :3] * 255
    mixed = picture * (1 - 0.65 * strength) + colour * 0.65 * strength
    above = np.pad(heat > threshold, 1)
    inner = above[1:-1, 1:-1] & above[:-2, 1:-1] & above[2:, 1:-1] & above[1:-1, :-2] & above[1:-1, 2:]
    mixed[above[1:-1, 1:-1] & ~inner] = (0, 255, 255)
    return mixed.round().astype(np.uint8)


class ExplorerFigure:
    """One image under one reading: the image with its mask's outline, the field's norm, the anomaly map, and the score
    beside the held-out good images'. Its axes are kept from one :meth:`show` to the next, which is twice as fast."""

    def __init__(self):
        # Not pyplot's: showing it is the caller's affair. A layout engine that does nothing, because where there is
        # none savefig takes the style's, which works out the layout anew each time.
        fixed = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
        self.figure = Figure(figsize=(9.6, 2.7), layout=fixed)
        self._axes = self.figure.subplots(1, 4, gridspec_kw={"width_ratios": [1, 1.15, 1.15, 1.2]})
        self.figure.subplots_adjust(left=0.005, right=0.99, bottom=0.17, top=0.86, wspace=0.16)
        titles = "", "norm of the field", "anomaly map (nats)"
        self._drawn = [show_image(axis, np.eye(2), None, name) for axis, name in zip(self._axes, titles, strict=False)]
        for axis, drawn in zip(self._axes[1:3], self._drawn[1:], strict=True):
            self.figure.colorbar(drawn, ax=axis, fraction=0.046).ax.tick_params(labelsize=6)

    def show(self, image: np.ndarray, mask: np.ndarray | None, view, title: str) -> Figure:
        """Draw ``view``, which has field_norm, heat, score, p_value, calibration_scores and threshold (explorer.View);
        each map has colour limits of its own, since readings differ in scale. Returns the figure."""
        for drawn, values in zip(self._drawn, (image.transpose(1, 2, 0), view.field_norm, view.heat), strict=True):
            height, width = values.shape[:2]
            drawn.set(data=values.clip(0, 1) if values.ndim == 3 else values, clim=(values.min(), values.max()),
                      extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # fmt: skip
        for outline in list(self._axes[0].collections):
            outline.remove()
        if mask is not None and mask.any():
            self._axes[0].contour(mask, levels=[0.5], colors=[ANOMALOUS], linewidths=0.8)
        self._axes[0].set_title(title, fontsize=7)
        axis, good = self._axes[3], view.calibration_scores
        axis.clear()
        # A score far out would squeeze the good images into one line: from four times their range on it is at the edge.
        reach = good.min() + 4 * (np.ptp(good) or 1.0)
        axis.hist(good, 15, color=GOOD, alpha=0.6, label=f"held-out good ({len(good)})")
        axis.axvline(min(view.score, reach), color=ANOMALOUS, lw=2, label=f"this image, p = {view.p_value:.3f}")
        if np.isfinite(view.threshold):
            axis.axvline(view.threshold, color="black", lw=1, ls="--", label=f"threshold {view.threshold:.0f}")
        verdict = "flagged" if view.score > view.threshold else "passed"
        axis.set_title(f"score {view.score:.0f} nats: {verdict}", fontsize=7)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
        axis.legend(fontsize=6, frameon=False)
        return self.figure


def pipeline_strips(
    image: np.ndarray, mask: np.ndarray, features: tuple, rows: Mapping[str, Sequence], maps: Mapping, credit: str
) -> Figure:
    """One strip a pipeline: the image, its ``features``, the states of ``rows[name]`` and, last, its map.

    Features and states are (title, (s, s, 3) colours in [0, 1]); ``maps`` are title -> (H, W), one a row, with limits
    of their own; the mask is outlined in image and maps. An arrow leads from each picture to the next.
    """
    columns = 3 + max(len(states) for states in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, len(rows) * (WIDTH / columns + 0.3) + 0.2),
                                squeeze=False)  # fmt: skip
    for line, (name, states), (map_title, values) in zip(axes, rows.items(), maps.items(), strict=True):
        states = [(title, colours.transpose(2, 0, 1)) for title, colours in (features, *states)]
        used = [*line[: 1 + len(states)], line[-1]]
        for axis, (title, picture) in zip(used, [("image", image), *states, (map_title, values)], strict=True):
            show_image(axis, picture, mask if axis in (line[0], line[-1]) else None, title, 6)
        for axis in line[1 + len(states) : -1]:
            axis.set_visible(False)
        line[0].set_ylabel(name.replace(", ", "\n"), fontsize=6)
        for left, right in pairwise(used):
            right.annotate(
                "", xy=(-0.01, 0.5), xytext=(1.01, 0.5), xycoords=right.transAxes, textcoords=left.transAxes,
                arrowprops={"arrowstyle": "-|>", "color": "0.4", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
    return _credit(figure, credit)


def trajectories(table: pd.DataFrame, separation: pd.DataFrame) -> Figure:
    """From the data space to the space of the field: ``table`` has image, anomalous, s, along and off, one row an image
    and stage; ``separation`` has s, quantity, AUROC, lo and hi."""
    n = table.groupby("anomalous").image.nunique()
    kinds = {bad: f"{'anomalous' if bad else 'good'} (n = {n.get(bad, 0)})" for bad in (False, True)}
    table = table.assign(kind=table.anomalous.map(kinds))
    how = {"hue": "kind", "palette": dict(zip(kinds.values(), (GOOD, ANOMALOUS), strict=True))}
    figure, axes = panels_in_rows(3, 2.7, sharey=True, width_ratios=(1, 1.3, 1))
    for axis, s, title in ((axes[0], table.s.min(), "data space"), (axes[2], table.s.max(), "IRF space")):
        part, first = table[table.s == s], axis is axes[0]
        sns.scatterplot(part, x="along", y="off", style="kind", s=10, alpha=0.7, ax=axis, legend=first, **how)
        row = separation[(separation.s == s) & (separation.quantity == "off")].iloc[0]
        axis.set(title=f"{title}, s = {s}\nAUROC {row.AUROC:.3f} [{row.lo:.3f}, {row.hi:.3f}]",
                 xlabel="along the first axis\n(sd of good parts)")  # fmt: skip
    each = how | {"units": "image", "estimator": None, "lw": 0.4, "alpha": 0.35, "legend": False}
    sns.lineplot(table, x="s", y="off", ax=axes[1], **each)
    medians = table.replace({"kind": {name: f"median, {name.split(' (')[0]}" for name in kinds.values()}})
    sns.lineplot(medians, x="s", y="off", style="kind", estimator="median", errorbar=None, color="black", ax=axes[1])
    axes[1].set(title="one evaluation, any step s", xlabel="timestep s of the inversion step")
    axes[0].set(yscale="log", ylabel="distance off the good parts")
    for axis in axes[:2]:
        axis.legend(title=None)
    return figure


def localisation_grid(
    blocks: Mapping[str, Sequence[Mapping]], limits: Mapping[str, tuple[float, float]], credit: str
) -> Figure:
    """One block of columns a category (image, mask, anomaly map, thresholded map), one row an example.

    ``blocks[name]`` is a list of mappings with keys rank, kind, image, mask, map, threshold; every block has the same
    number of them. The maps of one block share ``limits[name]``.
    """
    n_rows = max(len(examples) for examples in blocks.values())
    figure = plt.figure(figsize=(WIDTH, n_rows * (WIDTH / (4 * len(blocks)) + 0.1) + 0.45), layout="constrained")
    panels = np.atleast_1d(figure.subfigures(1, len(blocks), wspace=0.02))
    for panel, (name, examples) in zip(panels, blocks.items(), strict=True):
        panel.suptitle(name, fontsize=8)
        axes = panel.subplots(n_rows, 4, squeeze=False)
        for row, one in zip(axes, examples, strict=True):
            pictures = one["image"], one["mask"], one["map"], one["map"] > one["threshold"]
            drawn = [show_image(axis, picture, size=5) for axis, picture in zip(row, pictures, strict=True)]
            drawn[2].set_clim(*limits[name])
            for black_and_white in (drawn[1], drawn[3]):
                black_and_white.set(cmap="gray", clim=(0, 1))
            row[0].set_title(one["kind"], fontsize=5, pad=1.5)
            row[0].set_ylabel(one["rank"] if panel is panels[0] else "", fontsize=6)
        for axis, part in zip(axes[-1], ("image", "mask", "map", "above limit"), strict=True):
            axis.set_xlabel(part, fontsize=6)
        # The same room below every panel, so that their rows stay level.
        panel.supxlabel(credit if panel is panels[-1] else " ", fontsize=6, x=0.99, ha="right")
    return figure
