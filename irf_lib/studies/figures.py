"""Figures. Each function draws what it is given and returns the matplotlib Figure; nothing is computed here.

Sizes are inches. Good parts and anomalous ones are always GOOD and ANOMALOUS, of seaborn's colour-blind-safe palette.
Images are (3, H, W) float in [0, 1], masks (H, W) bool, maps (H, W) float. Tables are tidy, one row a point; ``value``,
``lo`` and ``hi`` are a number and its 95 % interval. A figure that one notebook draws stands in that notebook.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

WIDTH = 7.0  # inches, a page's text width
COLOURS = sns.color_palette("colorblind")
GOOD, ANOMALOUS = COLOURS[0], COLOURS[3]
OUTLINE = COLOURS[9]  # of a defect's mask on an image
MAP_NORM = LogNorm(1e-4, 1e-2)  # of a map that is drawn as false-alarm rates
MAP_COLOURS = ListedColormap(plt.get_cmap("inferno_r")(np.linspace(0, 0.8, 256)))  # faint is violet, not black
REFERENCE = {"color": "black", "lw": 0.8, "ls": ":"}  # the line that a curve is held against


def use_style() -> None:
    """The project's look, for every figure of a notebook: call once, in the set-up cell."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc={
        "pdf.fonttype": 42, "figure.dpi": 110, "figure.constrained_layout.use": True, "image.interpolation": "nearest",
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "image.cmap": "viridis",
        "axes.titlelocation": "left", "savefig.bbox": "tight", "savefig.pad_inches": 0.02,
        **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize", "figure.labelsize"), 8),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 7),
    })  # fmt: skip


def show_image(axis: Axes, image: np.ndarray, mask: np.ndarray | None = None, title: str = ""):
    """A picture without axes: an image, or a map (h, w), and the outline of its mask. Returns what imshow does."""
    drawn = axis.imshow(image.transpose(1, 2, 0).clip(0, 1) if image.ndim == 3 else image)
    if mask is not None and mask.any():
        colour = OUTLINE if image.ndim == 3 else "white"
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)
    axis.set_title(title, pad=3)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return drawn


def show_map(axis: Axes, image: np.ndarray, rates: np.ndarray, mask: np.ndarray | None = None, title: str = ""):
    """An image in grey, and in colour the places whose false-alarm ``rates`` (H, W), the shares of good pixels that
    are as anomalous, are 1 % or less. Returns what imshow does, for a colour bar."""
    show_image(axis, np.repeat(0.25 + 0.75 * image.mean(axis=0, keepdims=True), 3, axis=0), mask, title)
    return axis.imshow(np.ma.masked_greater(rates, MAP_NORM.vmax), cmap=MAP_COLOURS, norm=MAP_NORM, alpha=0.8)


def image_grid(rows: Mapping[str, Sequence[tuple]], credit: str) -> Figure:
    """Rows of equal length: ``rows[name]`` is a list of (title, image, mask or None); masks are outlined."""
    columns = max(len(row) for row in rows.values())
    size = (WIDTH, len(rows) * (WIDTH / columns + 0.2) + 0.2)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, (title, image, mask) in zip(line, row, strict=True):
            show_image(axis, image, mask, title)
        line[0].set_ylabel(name)
    figure.supxlabel(credit, fontsize=7, x=0.995, ha="right")
    return figure


def score_histogram(axis: Axes, good: np.ndarray, others: np.ndarray, labels: Sequence[str], threshold: float) -> None:
    """Image scores of good and other images, as densities, and the threshold. A few extreme defects would squeeze all
    others into one bin: the axis ends at three times the good images' range, and the last bin holds what lies beyond.
    """
    low, high = min(good.min(), others.min()), max(good.max(), others.max())
    reach = good.min() + 3 * (np.ptp(good) or high - low or 1.0)
    edges = np.linspace(low, max(min(reach, high), low + 1e-6), 30)
    for values, colour, label in ((good, GOOD, labels[0]), (others, ANOMALOUS, labels[1])):
        label = f"{label} ({len(values)})"
        axis.hist(values.clip(edges[0], edges[-1]), edges, density=True, color=colour, alpha=0.6, label=label)
    if np.isfinite(threshold):
        axis.axvline(threshold, color="black", lw=1, ls="--", label="threshold")
    axis.set(xlabel="image score (nats)", ylabel="density of images", yticks=[])
    axis.legend()


def panels_in_rows(n: int, height: float, columns: int = 9, **more) -> tuple[Figure, list[Axes]]:
    """``n`` panels of ``height`` inches across a page, ``columns`` in a row, with letters where there are several."""
    columns = min(columns, n)
    figure, axes = plt.subplots(-(-n // columns), columns, squeeze=False, layout="constrained", **more)
    figure.set_size_inches(WIDTH, height * len(axes))
    for axis in axes.flat[n:]:
        axis.axis("off")
    for axis, letter in zip(axes.flat[:n], "abcdefghijklmnopqrstuvwxyz" * (n > 1), strict=False):
        axis.annotate(letter, (0, 1), (-5, 6), "axes fraction", "offset points", ha="right", weight="bold")
    return figure, list(axes.flat[:n])


def shared_legend(figure: Figure, columns: int = 4) -> Figure:
    """One legend above the panels, for whatever any of them shows."""
    handles = {}
    for axis in figure.axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
        if axis.get_legend():
            axis.get_legend().remove()
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns)
    return figure


def interval_lines(axis: Axes, table: pd.DataFrame, x: str, hue: str) -> None:
    """``value`` against ``x`` with thin bars ``lo`` to ``hi``, one line and marker for each value of ``hue``."""
    for (name, part), marker in zip(table.groupby(hue, sort=False), "osD^vPX*<>" * 3, strict=False):
        reach = [(part.value - part.lo).clip(lower=0), (part.hi - part.value).clip(lower=0)]
        axis.errorbar(part[x], part.value, reach, label=name, marker=marker, ms=3, lw=1, elinewidth=0.6)


def difference_points(table: pd.DataFrame, label: str, n: Mapping[str, object]) -> Figure:
    """One panel a category (columns category, method, diff, lo, hi): a point and its interval a method, hollow where
    it contains zero. ``n`` are the images of each category. The axis is linear up to 0.02 and logarithmic beyond."""
    names, parts = list(dict.fromkeys(table.method))[::-1], dict(list(table.groupby("category", sort=False)))
    figure, axes = panels_in_rows(len(parts), 0.22 * len(names) + 0.9, columns=4, sharex=True, sharey=True)
    for axis, (category, part) in zip(axes, parts.items(), strict=True):
        y, unsure = part.method.map(names.index), (part.lo <= 0) & (part.hi >= 0)
        reach = [(part["diff"] - part.lo).clip(lower=0), (part.hi - part["diff"]).clip(lower=0)]
        axis.axvline(0, color="0.6", lw=0.8)
        axis.errorbar(part["diff"], y, xerr=reach, fmt="o", ms=4, lw=1, color=GOOD)
        axis.plot(part["diff"][unsure], y[unsure], "o", ms=2.5, color="white", zorder=3)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=f"{category}\n(n = {n[category]})")
        axis.tick_params(labelbottom=True)
    axes[0].set_xscale("symlog", linthresh=0.02)
    axes[0].set_xticks([-0.02, 0, 0.02, 0.3], ["-0.02", "0", "0.02", "0.3"])
    axes[0].set_xlim(right=1)
    axes[0].minorticks_off()
    figure.supxlabel(label)
    return figure
