"""Figures. Each function draws what it is given and returns the matplotlib Figure; nothing is computed here.

Sizes are inches at a page's text width; colours are seaborn's colour-blind-safe palette and viridis/cividis maps.
Images are (3, H, W) float in [0, 1], masks (H, W) bool, maps (H, W) float.
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

WIDTH = 7.0  # inches, a page's text width
GOOD, ANOMALOUS = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[3]
MAP_COLOURS = "viridis"


def use_style() -> None:
    """The project's look, for every figure of a notebook: call once, in the set-up cell."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {"pdf.fonttype": 42, "figure.dpi": 110, "figure.constrained_layout.use": True, "image.interpolation": "nearest"}
    )


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _credit(figure: Figure, credit: str) -> None:
    figure.supxlabel(credit, fontsize=6, x=0.995, ha="right")


def show_image(axis: Axes, image: np.ndarray, mask: np.ndarray | None = None, title: str = "") -> None:
    """An image, with the outline of its mask."""
    axis.imshow(image.transpose(1, 2, 0).clip(0, 1))
    if mask is not None and mask.any():
        axis.contour(mask, levels=[0.5], colors=[ANOMALOUS], linewidths=0.8)
    axis.set_title(title, fontsize=7)
    _bare(axis)


def image_grid(
    rows: Mapping[str, Sequence[tuple[str, np.ndarray, np.ndarray | None]]], credit: str, width: float = WIDTH
) -> Figure:
    """One row a category: ``rows[name]`` is a list of (title, image, mask); masks are outlined."""
    columns = max(len(row) for row in rows.values())
    cell = width / columns
    figure, axes = plt.subplots(len(rows), columns, figsize=(width, len(rows) * (cell + 0.2) + 0.2), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, (title, image, mask) in zip(line, row, strict=False):
            axis.axis("on")
            show_image(axis, image, mask, title)
        line[0].set_ylabel(name, fontsize=7)
    _credit(figure, credit)
    return figure


def oracle_comparison(t: Sequence[int], learned: np.ndarray, optimum: np.ndarray, zero: np.ndarray) -> Figure:
    """Held-out DDPM loss against t: ``learned``, closed-form ``optimum`` and predicting zero, each (len(t),)."""
    figure, axis = plt.subplots(figsize=(WIDTH / 2, 2.4))
    axis.plot(t, zero, color="0.7", label="predicting zero")
    axis.plot(t, optimum, color="black", label="closed-form optimum")
    axis.plot(t, learned, "o", color=GOOD, markersize=4, label="trained network")
    axis.set(xlabel="timestep t", ylabel="mean squared error on eps", ylim=(0, None))
    axis.legend(frameon=False)
    sns.despine(figure)
    return figure


def training_curves(training: pd.DataFrame, denoising: pd.DataFrame) -> Figure:
    """Left: smoothed training loss against step, a line a detector (columns detector, step, loss_smooth). Right:
    held-out loss as a multiple of the Gaussian optimum's, against t (columns detector, t, ratio, lo, hi)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    sns.lineplot(training, x="step", y="loss_smooth", hue="detector", ax=left, legend=False)
    left.set(yscale="log", xlabel="optimiser step", ylabel="training loss (MSE on eps)")
    for name, part in denoising.groupby("detector", sort=False):
        reach = [part.ratio - part.lo, part.hi - part.ratio]
        right.errorbar(part.t, part.ratio, reach, label=name, marker="o", ms=3, lw=1)
    right.axhline(1, color="black", lw=0.8, ls=":")
    right.set(xlabel="timestep t", ylabel="held-out loss / optimum")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def field_panels(panels: Sequence[Sequence[tuple[str, np.ndarray]]], credit: str, unit: str) -> Figure:
    """Rows of (title, picture): (3, H, W) pictures are images, (h, w) ones are maps. The maps of one column share their
    colour limits, and ``unit`` labels the bar of the last column."""
    n_rows, n_columns = len(panels), len(panels[0])
    size = WIDTH / n_columns
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(WIDTH, n_rows * (size + 0.15) + 0.2), squeeze=False)
    for column in range(n_columns):
        pictures = [row[column][1] for row in panels]
        drawn = None
        for axis, row, picture in zip(axes[:, column], panels, pictures, strict=True):
            if picture.ndim == 3:
                show_image(axis, picture, title=row[column][0])
                continue
            limits = {"vmin": min(p.min() for p in pictures), "vmax": max(p.max() for p in pictures)}
            drawn = axis.imshow(picture, cmap=MAP_COLOURS, **limits)
            axis.set_title(row[column][0], fontsize=7)
            _bare(axis)
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=list(axes[:, column]), location="bottom", shrink=0.8)
            bar.ax.tick_params(labelsize=6)
            if column == n_columns - 1:
                bar.set_label(unit, fontsize=7)
    _credit(figure, credit)
    return figure


def score_densities(decisions: pd.DataFrame, thresholds: Mapping[str, float]) -> Figure:
    """Histograms of image scores, good against anomalous, one panel a detector, with its threshold.

    ``decisions``: columns panel, score, anomalous. ``thresholds``: panel -> nats.
    """
    panels = list(dict.fromkeys(decisions.panel))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, 1.9 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        part = decisions[decisions.panel == panel]
        # A few extreme defects would squeeze everything else into one bin: the axis ends at three times the good
        # images' range, and what lies beyond is drawn in the last bin.
        good = part.score[~part.anomalous]
        reach = good.min() + 3 * (good.max() - good.min()) if len(good) > 1 else part.score.max()
        edges = np.linspace(part.score.min(), min(reach, part.score.max()), 30)
        for anomalous, colour, label in ((False, GOOD, "good"), (True, ANOMALOUS, "anomalous")):
            scores = part.score[part.anomalous == anomalous]
            axis.hist(
                scores.clip(upper=edges[-1]),
                edges,
                density=True,
                color=colour,
                alpha=0.6,
                label=f"{label} ({len(scores)})",
            )
        if np.isfinite(thresholds[panel]):
            axis.axvline(thresholds[panel], color="black", lw=1, ls="--", label="threshold")
        axis.set_title(panel, fontsize=7)
        axis.set(xlabel="image score (nats)", yticks=[])
        axis.legend(frameon=False, fontsize=5)
    sns.despine(figure, left=True)
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


def score_histogram(calibration: np.ndarray, scores: np.ndarray, threshold: float) -> Figure:
    """Scores (N,) of new images beside those of the held-out good ones (n,), in nats, and the threshold."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 1.9))
    # As in score_densities: what lies far beyond the good images is drawn in the last bin.
    low, high = min(calibration.min(), scores.min()), max(calibration.max(), scores.max())
    reach = calibration.min() + 4 * (np.ptp(calibration) or high - low or 1.0)
    edges = np.linspace(low, max(min(high, reach), low + 1e-6), 40)
    for values, colour, label in ((calibration, GOOD, "held-out good"), (scores, ANOMALOUS, "these images")):
        axis.hist(values.clip(edges[0], edges[-1]), edges, color=colour, alpha=0.6, label=f"{label} ({len(values)})")
    if np.isfinite(threshold):
        axis.axvline(threshold, color="black", lw=1, ls="--", label="threshold")
    axis.set(xlabel="image score (nats)", ylabel="images")
    axis.legend(frameon=False, fontsize=7)
    sns.despine(figure)
    return figure


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
        self._drawn: list = []
        for axis, title in zip(self._axes, ("", "norm of the field", "anomaly map (nats)"), strict=False):
            self._drawn.append(axis.imshow(np.zeros((2, 2)), cmap=MAP_COLOURS))
            axis.set_title(title, fontsize=7)
            _bare(axis)
        for axis, drawn in zip(self._axes[1:3], self._drawn[1:], strict=True):
            self.figure.colorbar(drawn, ax=axis, fraction=0.046).ax.tick_params(labelsize=6)
        self._outline = None

    def show(self, image: np.ndarray, mask: np.ndarray | None, view, title: str) -> Figure:
        """Draw ``view``, which has field_norm, heat, score, p_value, calibration_scores and threshold (explorer.View);
        each map has colour limits of its own, since readings differ in scale. Returns the figure."""
        for drawn, values in zip(self._drawn, (image.transpose(1, 2, 0), view.field_norm, view.heat), strict=True):
            drawn.set_data(values.clip(0, 1) if values.ndim == 3 else values)
            height, width = values.shape[:2]
            drawn.set_extent((-0.5, width - 0.5, height - 0.5, -0.5))
            drawn.set_clim(values.min(), values.max())
        if self._outline:
            self._outline.remove()
        wanted = mask is not None and mask.any()
        style = {"colors": [ANOMALOUS], "linewidths": 0.8}
        self._outline = self._axes[0].contour(mask, levels=[0.5], **style) if wanted else None
        self._axes[0].set_title(title, fontsize=7)
        self._show_scores(self._axes[3], view)
        return self.figure

    @staticmethod
    def _show_scores(axis: Axes, view) -> None:
        axis.clear()
        good = view.calibration_scores
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


def pipeline_strips(
    image: np.ndarray,
    mask: np.ndarray,
    features: tuple[str, np.ndarray],
    rows: Mapping[str, Sequence[tuple[str, np.ndarray]]],
    maps: Mapping[str, np.ndarray],
    credit: str,
) -> Figure:
    """One strip a pipeline: the image, its ``features``, the states of ``rows[name]`` and, last, its map.

    States are (title, (s, s, 3) colours in [0, 1]); ``maps`` are title -> (H, W), one a row, with limits of their own;
    the mask is outlined in image and maps. An arrow leads from each picture to the next.
    """
    columns = 3 + max(len(states) for states in rows.values())
    cell = WIDTH / columns
    figure, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, len(rows) * (cell + 0.3) + 0.2))
    for line, (name, states), (map_title, values) in zip(axes, rows.items(), maps.items(), strict=True):
        for axis in line[2 + len(states) : -1]:
            axis.set_visible(False)
        show_image(line[0], image, mask, "image")
        line[0].set_ylabel(name.replace(", ", "\n"), fontsize=6)
        for axis, (title, colours) in zip(line[1:], [features, *states], strict=False):
            axis.imshow(colours)
            axis.set_title(title, fontsize=6)
            _bare(axis)
        line[-1].imshow(values, cmap=MAP_COLOURS)
        line[-1].contour(mask, levels=[0.5], colors=["white"], linewidths=0.6)
        line[-1].set_title(map_title, fontsize=6)
        _bare(line[-1])
        used = [*line[: 2 + len(states)], line[-1]]
        for left, right in pairwise(used):
            right.annotate(
                "", xy=(-0.01, 0.5), xytext=(1.01, 0.5), xycoords=right.transAxes, textcoords=left.transAxes,
                arrowprops={"arrowstyle": "-|>", "color": "0.4", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
    _credit(figure, credit)
    return figure


def trajectories(table: pd.DataFrame, separation: pd.DataFrame) -> Figure:
    """From the data space to the space of the field: ``table`` has anomalous, s, along and off, one row an image and
    stage; ``separation`` has s, quantity, AUROC, lo and hi."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.7), sharey=True, width_ratios=(1, 1.3, 1))
    first, last = table.s.min(), table.s.max()
    colours = {False: GOOD, True: ANOMALOUS}
    for axis, s, title in ((axes[0], first, "data space"), (axes[2], last, "IRF space")):
        for anomalous, part in table[table.s == s].groupby("anomalous"):
            label = f"{'anomalous' if anomalous else 'good'} (n = {len(part)})"
            marker = "^" if anomalous else "o"
            axis.scatter(part.along, part.off, s=8, color=colours[anomalous], alpha=0.7, marker=marker, label=label)
        ((_, row),) = separation[(separation.s == s) & (separation.quantity == "off")].iterrows()
        axis.set_title(f"{title}, s = {s}\nAUROC {row.AUROC:.3f} [{row.lo:.3f}, {row.hi:.3f}]", fontsize=7)
        axis.set_xlabel("along the first axis (sd of good parts)", fontsize=7)
    axes[0].legend(frameon=False, fontsize=6)
    for anomalous, part in table.groupby("anomalous"):
        for _, line in part.groupby("image"):
            axes[1].plot(line.s, line.off, color=colours[anomalous], linewidth=0.4, alpha=0.35)
        median = part.groupby("s").off.median()
        axes[1].plot(median.index, median, "--" if anomalous else "-", color="black", linewidth=1.4,
                     label="median, " + ("anomalous" if anomalous else "good"))  # fmt: skip
    axes[1].set_title("one evaluation, any step s", fontsize=7)
    axes[1].set_xlabel("timestep s of the inversion step", fontsize=7)
    axes[1].legend(frameon=False, fontsize=6)
    axes[0].set(yscale="log")
    axes[0].set_ylabel("distance off the good parts", fontsize=7)
    for axis in axes:
        axis.tick_params(labelsize=7, which="both")
    sns.despine(figure)
    return figure


def localisation_grid(
    blocks: Mapping[str, Sequence[Mapping]], limits: Mapping[str, tuple[float, float]], credit: str
) -> Figure:
    """One block of columns a category (image, mask, anomaly map, thresholded map), one row an example.

    ``blocks[name]`` is a list of mappings with keys rank, kind, image, mask, map, threshold; every block has the same
    number of them. The maps of one block share ``limits[name]``.
    """
    parts = ("image", "mask", "map", "above limit")
    n_rows = max(len(examples) for examples in blocks.values())
    cell = WIDTH / (4 * len(blocks))
    figure = plt.figure(figsize=(WIDTH, n_rows * (cell + 0.1) + 0.45))
    panels = np.atleast_1d(figure.subfigures(1, len(blocks), wspace=0.02))
    for panel, (name, examples) in zip(panels, blocks.items(), strict=True):
        low, high = limits[name]
        panel.suptitle(name, fontsize=8)
        axes = panel.subplots(n_rows, len(parts), squeeze=False)
        for axis in axes.flat:
            _bare(axis)
        for row, example in zip(axes, examples, strict=False):
            row[0].imshow(example["image"].transpose(1, 2, 0).clip(0, 1))
            row[0].set_title(example["kind"], fontsize=5, pad=1.5)
            row[1].imshow(example["mask"], cmap="gray", vmin=0, vmax=1)
            row[2].imshow(example["map"], cmap=MAP_COLOURS, vmin=low, vmax=high)
            row[3].imshow(example["map"] > example["threshold"], cmap="gray", vmin=0, vmax=1)
            if panel is panels[0]:
                row[0].set_ylabel(example["rank"], fontsize=6)
        for axis, part in zip(axes[-1], parts, strict=True):
            axis.set_xlabel(part, fontsize=6)
    for panel in panels:  # the same room below every panel, so that their rows stay level
        panel.supxlabel(credit if panel is panels[-1] else " ", fontsize=6, x=0.99, ha="right")
    return figure


def method_bars(metrics: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """One panel a metric, one bar a method: the mean over categories and seeds; dots are the single ones."""
    figure, axes = plt.subplots(
        1, len(columns), figsize=(WIDTH, 0.24 * metrics.method.nunique() + 0.8), sharey=True, squeeze=False
    )
    for axis, column in zip(axes[0], columns, strict=True):
        sns.barplot(metrics, y="method", x=column, ax=axis, errorbar=None, color="0.8")
        sns.stripplot(metrics, y="method", x=column, hue="category", ax=axis, size=3, legend=column == columns[0])
        axis.set(xlabel=column, ylabel="", xlim=(min(0.5, metrics[column].min()) - 0.02, 1.01))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def difference_points(table: pd.DataFrame, label: str, n: Mapping[str, int]) -> Figure:
    """One panel a category (columns category, method, diff, lo, hi): a point and its interval a method, and zero.

    ``n`` are the test images of each category.
    """
    methods, categories = list(dict.fromkeys(table.method))[::-1], list(dict.fromkeys(table.category))
    size = (WIDTH, 0.22 * len(methods) + 0.9)
    figure, axes = plt.subplots(1, len(categories), figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis, name in zip(axes[0], categories, strict=True):
        part = table[table.category == name].set_index("method").reindex(methods)
        reach = np.abs(part[["lo", "hi"]].to_numpy().T - part["diff"].to_numpy())
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.errorbar(part["diff"], range(len(methods)), xerr=reach, fmt="o", markersize=3, linewidth=1, color=GOOD)
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.set_title(f"{name} (n = {n[name]})", fontsize=8)
    figure.supxlabel(label, fontsize=8)
    sns.despine(figure)
    return figure


def cost_bars(parts: pd.DataFrame, marks: pd.DataFrame, label: str) -> Figure:
    """One bar a row, stacked from the columns of ``parts``; the columns of ``marks`` are drawn as lines across it."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.45 * len(parts) + 1.1))
    y, left = np.arange(len(parts)), np.zeros(len(parts))
    for colour, (name, widths) in zip(sns.color_palette("colorblind"), parts.items(), strict=False):
        axis.barh(y, widths, left=left, height=0.55, color=colour, label=name)
        left = left + widths.to_numpy()
    for style, (name, values) in zip(("--", "-"), marks.items(), strict=False):
        for where, value in zip(y, values, strict=True):
            axis.plot([value, value], [where - 0.4, where + 0.4], color="0.1", ls=style, lw=1.4, label=name)
    axis.set_yticks(y, [f"{parts.index.name} {one}" for one in parts.index])
    axis.set_xlabel(label)
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, frameon=False, fontsize=7)
    sns.despine(figure)
    return figure


def ratio_points(table: pd.DataFrame, label: str) -> Figure:
    """A point with its interval for each row (ratio, batch, value, lo, hi), on a log scale with 1 marked."""
    names = list(dict.fromkeys(table.ratio))[::-1]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.3 * len(names) + 0.9))
    axis.axvline(1, color="0.6", lw=0.8)
    groups = table.groupby("batch")
    for shift, colour, (batch, part) in zip(
        np.linspace(0.2, -0.2, len(groups)), sns.color_palette("colorblind"), groups, strict=False
    ):
        y = [names.index(name) + shift for name in part.ratio]
        reach = [part.value - part.lo, part.hi - part.value]
        axis.errorbar(part.value, y, xerr=reach, fmt="o", ms=3, lw=1, color=colour, label=f"batch {batch}")
    axis.set(xscale="log", xlabel=label)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.legend(frameon=False, fontsize=7)
    sns.despine(figure)
    return figure


def timestep_curves(metrics: pd.DataFrame, columns: Sequence[str], default_t: int) -> Figure:
    """One panel a metric: the metric against t, a line a category (mean and range over seeds), ``default_t`` marked."""
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 2.2), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        last = column == columns[-1]
        sns.lineplot(
            metrics, x="t", y=column, hue="category", marker="o", errorbar=("pi", 100), ax=axis, legend=last
        )  # fmt: skip
        axis.axvline(default_t, color="0.6", lw=0.8, ls=":")
        axis.set(xlabel="timestep t", ylabel=column)
    axes[0, -1].legend(frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def heat_maps(panels: Sequence[tuple[str, pd.DataFrame]], label: str, limits: tuple[float, float]) -> Figure:
    """Square tables (rows t, columns t') two in a row, with their values, on one colour scale labelled ``label``."""
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(WIDTH, 0.46 * WIDTH * lines), squeeze=False)
    middle = sum(limits) / 2
    for axis, (title, table) in zip(axes.flat, panels, strict=True):
        drawn = axis.imshow(table, cmap="cividis", vmin=limits[0], vmax=limits[1])
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            colour = "black" if value > middle else "white"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=min(8, 55 / len(table)), color=colour)
        axis.set_title(title, fontsize=8)
        axis.set(xticks=range(len(table.columns)), yticks=range(len(table)), xlabel="t'", ylabel="t")
        axis.set_xticklabels(table.columns, rotation=90, fontsize=6)
        axis.set_yticklabels(table.index, fontsize=6)
    figure.colorbar(drawn, ax=list(axes.flat), label=label, shrink=0.6, aspect=30)
    return figure


def metric_grid(table: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], default_t: int) -> Figure:
    """One row a metric, one column an input, one line a density: mean over categories and seeds.

    ``table``: columns quantity (the metric), input, density, t, value; ``default_t`` is marked.
    """
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(WIDTH, 1.6 * len(rows) + 0.3), sharex=True, sharey="row", squeeze=False
    )
    for line, quantity in zip(axes, rows, strict=True):
        for axis, column in zip(line, columns, strict=True):
            part = table[(table.quantity == quantity) & (table.input == column)]
            last = axis is axes[0, -1]
            sns.lineplot(
                part, x="t", y="value", hue="density", style="density", markers=True, dashes=False,
                errorbar=None, ms=4, lw=1, ax=axis, legend=last,
            )  # fmt: skip
            axis.axvline(default_t, color="0.6", lw=0.8, ls=":")
            axis.set(xlabel="timestep t", ylabel=quantity)
        line[0].set_ylabel(quantity)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(f"{column} input", fontsize=7)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    axes[0, -1].get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def interval_curves(
    panels: Mapping[str, pd.DataFrame],
    x: str,
    hue: str,
    xlabel: str,
    marks: Mapping[str, float] | None = None,
    log: Sequence[str] = (),
) -> Figure:
    """One panel an entry: its ``value`` against ``x``, with error bars ``lo`` to ``hi`` where there are any, one line a
    value of ``hue``. ``marks``: panel -> height of a dotted line; panels in ``log`` have a logarithmic y axis. The
    panel's name labels its y axis."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.6), squeeze=False)
    for axis, (label, table) in zip(axes[0], panels.items(), strict=True):
        _lines(axis, table, x, hue)
        if marks and label in marks:
            axis.axhline(marks[label], color="black", lw=0.8, ls=":")
        axis.set(xlabel=xlabel, ylabel=label, yscale="log" if label in log else "linear")
    handles = {}
    for axis in axes[0]:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def _lines(axis: Axes, table: pd.DataFrame, x: str, hue: str) -> None:
    for (name, part), marker in zip(table.groupby(hue, sort=False), "osD^vPX*<>" * 3, strict=False):
        reach = [(part.value - part.lo).clip(lower=0), (part.hi - part.value).clip(lower=0)]
        axis.errorbar(part[x], part.value, reach, label=name, marker=marker, ms=3, lw=1, elinewidth=0.6)


def qq_panels(curves: Mapping[str, pd.DataFrame], columns: int = 3) -> Figure:
    """Q-Q plots of normality.qq_curve tables: the identity, the observed curve with its band (dark), and the band of
    independent draws from the reference (light)."""
    columns = min(columns, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, WIDTH / columns * 0.85 * lines), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (title, curve) in zip(axes.flat, curves.items(), strict=False):
        _qq(axis, title, curve)
    axes[0, 0].legend(frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def _qq(axis: Axes, title: str, curve: pd.DataFrame) -> None:
    axis.plot(curve.expected, curve.expected, color="black", lw=0.8, ls=":")
    axis.fill_between(curve.expected, curve.null_low, curve.null_high, color="0.8", label="95 % if true")
    axis.fill_between(curve.expected, curve.low, curve.high, color=GOOD, alpha=0.4, label="95 % over images")
    axis.plot(curve.expected, curve.observed, color=GOOD, lw=1, label="observed")
    axis.set_title(title, fontsize=7)
    axis.set(xlabel="expected quantile", ylabel="observed quantile")


def scatter_panels(panels: Mapping[str, pd.DataFrame], x: str, y: str, hue: str, notes: Mapping[str, str]) -> Figure:
    """One panel an entry: ``y`` against ``x``, coloured by ``hue``, with ``notes[panel]`` written in it; the panel's
    name labels its x axis."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.6), sharey=True, squeeze=False)
    for axis, (label, table) in zip(axes[0], panels.items(), strict=True):
        sns.scatterplot(table, x=x, y=y, hue=hue, style=hue, s=18, ax=axis, legend=axis is axes[0, 0])
        axis.set(xlabel=label, ylabel=y)
        axis.set_title(notes[label], fontsize=7)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=6)
    sns.despine(figure)
    return figure


def qq_and_lags(curves: Mapping[str, pd.DataFrame], lags: pd.DataFrame) -> Figure:
    """Q-Q panels as :func:`qq_panels`, and in the last panel the autocorrelation (columns lag, value, lo, hi, line)."""
    figure, axes = plt.subplots(1, len(curves) + 1, figsize=(WIDTH, 2.7), squeeze=False)
    for axis, (title, curve) in zip(axes[0], curves.items(), strict=False):
        _qq(axis, title, curve)
    last = axes[0, -1]
    _lines(last, lags, "lag", "line")
    last.axhline(0, color="black", lw=0.8, ls=":")
    last.set(xlabel="distance (locations)", ylabel="autocorrelation")
    last.legend(frameon=False, fontsize=5)
    sns.despine(figure)
    return figure


def effect_bars(table: pd.DataFrame, limits: Mapping[str, tuple[float, float]]) -> Figure:
    """One panel an effect (the columns of ``table``), one bar a row from its neutral value; grey inside the limits
    (column -> neutral value, largest deviation), coloured outside. Long bars are cut at ten times the limit."""
    figure, axes = plt.subplots(
        1, len(table.columns), figsize=(WIDTH, 0.22 * len(table) + 0.8), sharey=True, squeeze=False
    )
    rows = np.arange(len(table))
    for axis, column in zip(axes[0], table.columns, strict=True):
        neutral, reach = limits[column]
        away = (table[column] - neutral).to_numpy()
        colours = ["0.7" if abs(one) <= reach else ANOMALOUS for one in away]
        axis.barh(rows, np.clip(away, -10 * reach, 10 * reach), left=neutral, color=colours, height=0.6)
        for edge in (neutral - reach, neutral + reach):
            axis.axvline(edge, color="black", lw=0.8, ls=":")
        for row, (one, value) in enumerate(zip(away, table[column], strict=True)):
            if abs(one) > 10 * reach:
                axis.text(neutral + 5 * np.sign(one) * reach, row, f"{value:.3g}", fontsize=5, va="center", ha="center")
        axis.set_title(column, fontsize=7)
    axes[0, 0].set_yticks(rows, table.index, fontsize=6)
    axes[0, 0].invert_yaxis()
    sns.despine(figure)
    return figure
