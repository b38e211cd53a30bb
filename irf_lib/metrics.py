"""The seven metrics of the field, exact: I-AUROC, I-AP, I-F1max, P-AUROC, P-AP, P-F1max and AUPRO.

All are scikit-learn's, and AUPRO is the definition of Bergmann et al. 2021 (MVTec AD, IJCV, Sec. 5.2). Normal pixels
between two neighbouring values of defect pixels are counted, not listed, so that 2,000 maps of 256 x 256 fit in memory
and take seconds. No thresholds are sampled and nothing is rescaled: a strictly increasing change of the scores moves no
metric.
"""

import math
import warnings
from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

PIXEL_METRICS = ("P-AUROC", "P-AP", "P-F1max", "AUPRO")
METRICS = ("I-AUROC", "I-AP", "I-F1max", *PIXEL_METRICS)
FPR_LIMIT = 0.3


def evaluate(
    scores: np.ndarray, labels: np.ndarray, maps: np.ndarray | None = None, masks: np.ndarray | None = None
) -> Mapping[str, float]:
    """All metrics of one category, as fractions.

    scores: (N,) image scores; labels: (N,) bool, True = anomalous; maps: (N, H, W) anomaly maps; masks: (N, H, W)
    bool, all False for a good image. A metric that is not defined (no masks; only good or only anomalous images; no
    defect pixel) is NaN, the last two with a warning. Raises ValueError for NaN or infinite scores or maps, for shapes
    that do not fit, and for a mask on a good image."""
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


def f1_max(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The largest F1 over all thresholds; labels (N,) bool, scores (N,), weights (N,) or None for equal ones."""
    precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)))


def pixel_metrics(maps: np.ndarray, masks: np.ndarray, fpr_limit: float = FPR_LIMIT) -> dict[str, float]:
    """P-AUROC, P-AP, P-F1max and AUPRO of maps (N, H, W) against masks (N, H, W) bool, all images pooled.

    AUPRO is the area under the per-region overlap (the mean, over all 8-connected defect components, of the share above
    the threshold) against the false-positive rate of all normal pixels, from 0 to ``fpr_limit``, over ``fpr_limit``."""
    where = np.flatnonzero(masks)
    n_normal = masks.size - len(where)
    if not (len(where) and n_normal):
        _require_finite("maps", maps)
        kind = "every pixel" if len(where) else "no pixel"
        warnings.warn(f"{kind} is marked as a defect: the pixel metrics are not defined", stacklevel=3)
        return dict.fromkeys(PIXEL_METRICS, math.nan)
    # One copy, sorted in place. Gathering the normal pixels first would cost a good part of the sort, so the defects
    # are taken out by sending them to the end.
    values = np.array(maps, dtype=maps.dtype if maps.dtype.kind == "f" else np.float64, order="C").reshape(-1)
    defect = values[where]
    values[where] = np.inf
    values.sort()
    normal = values[:n_normal]
    # Sorted, what is not finite lies at the ends: no pass over all pixels is spent on looking for it.
    if not (np.isfinite(normal[[0, -1]]).all() and np.isfinite(defect).all()):
        _require_finite("maps", maps)
    # Every metric depends on the order of the values alone. The n distinct values of defect pixels have the odd ranks
    # up to 2n - 1; normal pixels share these, or have an even rank, between two of them, and are counted for each rank.
    levels, level = np.unique(defect, return_inverse=True)
    edges = np.stack([np.searchsorted(normal, levels, side) for side in ("left", "right")], axis=1).ravel()
    normal_count = np.diff(edges, prepend=0, append=n_normal)
    rank = np.concatenate([np.arange(len(normal_count)), 2 * np.arange(len(levels)) + 1])
    label = np.arange(len(rank)) >= len(normal_count)
    count = np.concatenate([normal_count, np.bincount(level)])
    overlap = np.concatenate([normal_count, np.bincount(level, overlap_weights(masks))])
    fpr, pro, _ = roc_curve(label, rank, sample_weight=overlap)
    kept = fpr <= fpr_limit
    area = np.trapezoid([*pro[kept], np.interp(fpr_limit, fpr, pro)], [*fpr[kept], fpr_limit])
    return {
        "P-AUROC": float(roc_auc_score(label, rank, sample_weight=count)),
        "P-AP": float(average_precision_score(label, rank, sample_weight=count)),
        "P-F1max": f1_max(label, rank, count),
        "AUPRO": float(area) / fpr_limit,
    }


def overlap_weights(masks: np.ndarray) -> np.ndarray:
    """For each defect pixel, in the order of ``maps[masks]``: 1 / (number of components x its component's size)."""
    apart = np.zeros((3, 3, 3), bool)
    apart[1] = True  # neighbours in one image, corners included, and never in another
    component = ndimage.label(masks, structure=apart)[0][masks]
    size = np.bincount(component)
    return 1.0 / ((len(size) - 1) * size[component])


def _require_finite(what: str, values: np.ndarray) -> None:
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{what}: {bad} of {values.size} values are NaN or infinite; no metric is defined")
