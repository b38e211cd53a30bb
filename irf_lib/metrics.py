"""The seven metrics of the field, exact: I-AUROC, I-AP, I-F1max, P-AUROC, P-AP, P-F1max and AUPRO.

The image metrics are scikit-learn's. The pixel metrics are equal to scikit-learn's, and AUPRO to the definition of
Bergmann et al. 2021 (MVTec AD, IJCV, Sec. 5.2), but all four come from one sort of the normal pixels and a search of
the defect pixels in it, so that 2,000 maps of 256 x 256 fit in memory and take seconds. No thresholds are sampled and
nothing is rescaled: a strictly increasing change of the scores moves no metric.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

IMAGE_METRICS = ("I-AUROC", "I-AP", "I-F1max")
PIXEL_METRICS = ("P-AUROC", "P-AP", "P-F1max", "AUPRO")
METRICS = IMAGE_METRICS + PIXEL_METRICS
FPR_LIMIT = 0.3


def evaluate(
    scores: np.ndarray, labels: np.ndarray, maps: np.ndarray | None = None, masks: np.ndarray | None = None
) -> Mapping[str, float]:
    """All metrics of one category, as fractions.

    scores: (N,) image scores; labels: (N,) bool, True = anomalous; maps: (N, H, W) anomaly maps; masks: (N, H, W)
    bool, all False for a good image. A metric that is not defined (no masks; only good or only anomalous images; no
    defect pixel) is NaN, the last two with a warning. Raises ValueError for NaN or infinite scores or maps, for shapes
    that do not fit, and for a mask on a good image.
    """
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    if scores.shape != labels.shape or scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores and labels must be (N,) with N > 0, got {scores.shape} and {labels.shape}")
    _require_finite("image scores", scores)
    result = dict.fromkeys(METRICS, math.nan)
    if labels.all() or not labels.any():
        kind = "anomalous" if labels.all() else "good"
        warnings.warn(f"all {len(labels)} test images are {kind}: the image metrics are not defined", stacklevel=2)
    else:
        result["I-AUROC"] = float(roc_auc_score(labels, scores))
        result["I-AP"] = float(average_precision_score(labels, scores))
        result["I-F1max"] = f1_max(labels, scores)
    if maps is not None and masks is not None:
        maps, masks = np.asarray(maps), np.asarray(masks).astype(bool, copy=False)
        if maps.shape != masks.shape or maps.ndim != 3 or len(maps) != len(scores):
            raise ValueError(f"maps and masks must be ({len(scores)}, H, W), got {maps.shape} and {masks.shape}")
        marked = masks.any(axis=(1, 2))
        if (marked & ~labels).any():
            raise ValueError(f"image {int(np.argmax(marked & ~labels))} is labelled good but its mask marks a defect")
        result |= pixel_metrics(maps, masks)
    return result


def f1_max(labels: np.ndarray, scores: np.ndarray) -> float:
    """The largest F1 over all thresholds; labels (N,) bool, scores (N,)."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)))


def pixel_metrics(maps: np.ndarray, masks: np.ndarray, fpr_limit: float = FPR_LIMIT) -> dict[str, float]:
    """P-AUROC, P-AP, P-F1max and AUPRO of maps (N, H, W) against masks (N, H, W) bool, all images pooled.

    AUPRO is the area under the per-region overlap (the mean, over all 8-connected defect components, of the share above
    the threshold) against the false-positive rate of all normal pixels, from 0 to ``fpr_limit``, over ``fpr_limit``.
    """
    where = np.flatnonzero(masks)
    n_defect = len(where)
    if n_defect == 0 or n_defect == masks.size:
        _require_finite("maps", maps)
        kind = "no pixel" if n_defect == 0 else "every pixel"
        warnings.warn(f"{kind} is marked as a defect: the pixel metrics are not defined", stacklevel=3)
        return dict.fromkeys(PIXEL_METRICS, math.nan)

    # One copy, sorted in place. Gathering the normal pixels first would cost a good part of the sort, so the defects
    # are taken out by sending them to the end.
    values = np.array(maps, dtype=maps.dtype if maps.dtype.kind == "f" else np.float64, order="C").reshape(-1)
    defect = values[where]
    values[where] = np.inf
    values.sort()
    normal = values[: len(values) - n_defect]
    # Sorted, what is not finite lies at the ends: no pass over all pixels is spent on looking for it.
    if not (np.isfinite(normal[[0, -1]]).all() and np.isfinite(defect).all()):
        _require_finite("maps", maps)
    order = np.argsort(defect)[::-1]
    defect, weight = defect[order], overlap_weights(masks)[order]

    # The curves bend only at the values of defect pixels. last: the end of each run of equal values, high to low.
    last = np.append(np.flatnonzero(np.diff(defect)), n_defect - 1)
    value = defect[last]
    not_above = np.searchsorted(normal, value, side="right")  # normal pixels <= value
    below = not_above.copy()  # normal pixels < value: the same, but where a normal pixel has the very same value
    tied = np.flatnonzero((not_above > 0) & (normal[not_above - 1] == value))
    below[tied] = np.searchsorted(normal, value[tied], side="left")
    at_least = len(normal) - below
    true = (last + 1).astype(np.float64)  # defect pixels >= value

    precision, recall = true / (true + at_least), true / n_defect
    f1 = 2 * true / (true + at_least + n_defect)
    overlap = np.cumsum(weight)[last]
    return {
        # The Mann-Whitney statistic: the share of pairs in which the defect pixel is higher, a tie counting one half.
        "P-AUROC": float(np.diff(true, prepend=0.0) @ (not_above + below)) / (2 * n_defect * len(normal)),
        "P-AP": float(np.sum(np.diff(recall, prepend=0.0) * precision)),
        "P-F1max": float(f1.max()),
        "AUPRO": _area_to(fpr_limit, len(normal) - not_above, at_least, overlap, len(normal)) / fpr_limit,
    }


def overlap_weights(masks: np.ndarray) -> np.ndarray:
    """For each defect pixel, in the order of ``maps[masks]``: 1 / (number of components x its component's size)."""
    weights, n_components = [], 0
    for mask in masks:
        if mask.any():
            labelled, n = ndimage.label(mask, structure=np.ones((3, 3)))
            component = labelled[mask]
            weights.append(1.0 / np.bincount(component)[component])
            n_components += n
    return np.concatenate(weights) / n_components


def _area_to(limit: float, above: np.ndarray, at_least: np.ndarray, y: np.ndarray, n_normal: int) -> float:
    """Area under the curve (false-positive rate, y) from 0 to ``limit``. At each defect value, high to low, the
    threshold passes the normal pixels above it (y stays), then the ties at it (y rises on a straight line), which is
    the trapezoid of the ROC over distinct thresholds."""
    cut = limit * n_normal
    before = np.concatenate([[0.0], y[:-1]])  # the height at which each threshold starts
    passed = np.concatenate([[0], at_least[:-1]])  # the normal pixels that earlier thresholds have passed
    area = float(before @ (np.minimum(above, cut) - np.minimum(passed, cut)))
    tied = at_least > above
    start, end = np.minimum(above[tied], cut), np.minimum(at_least[tied], cut)
    slope = (y - before)[tied] / (at_least - above)[tied]
    area += float(((end - start) * (before[tied] + slope * ((start + end) / 2 - above[tied]))).sum())
    area += float(y[-1]) * max(0.0, cut - float(at_least[-1]))
    return area / n_normal


def _require_finite(what: str, values: np.ndarray) -> None:
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{what}: {bad} of {values.size} values are NaN or infinite; no metric is defined")
