"""Figures. Each function draws what it is given and returns the matplotlib Figure; nothing is computed here.

Sizes are inches at a page's text width. Good parts and anomalous ones are always GOOD and ANOMALOUS, of seaborn's
colour-blind-safe palette. Images are (3, H, W) float in [0, 1], masks (H, W) bool, maps (H, W) float. Here are the
style and the figures of images, maps and scores; those of the studies' tables come from figures_studies.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def add_credit(figure: Figure, credit: str) -> Figure:
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
    return add_credit(figure, credit)


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
    return add_credit(figure, credit)


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
