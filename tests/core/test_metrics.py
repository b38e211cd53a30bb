"""Metrics against scikit-learn, a hand-worked AUPRO, and a literal per-threshold AUPRO."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from irf_lib.metrics import METRICS, evaluate, pixel_metrics

rng = np.random.default_rng(0)
# Six images, some components of which touch only at corners; the first two are good.
MASKS = ndimage.gaussian_filter(rng.standard_normal((6, 24, 24)), (0, 2, 2)) > 0.18
MASKS[:2] = False
LABELS = MASKS.any(axis=(1, 2))
MAPS = rng.standard_normal(MASKS.shape) + 0.8 * MASKS


def literal_aupro(maps, masks, limit=0.3):
    """The definition, threshold by threshold: every distinct value is a threshold."""
    components = []
    for i, mask in enumerate(masks):
        labelled, n = ndimage.label(mask, structure=np.ones((3, 3)))
        components += [maps[i][labelled == k] for k in range(1, n + 1)]
    normal = maps[~masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([(component >= threshold).mean() for component in components])
        points.append(((normal >= threshold).mean(), overlap))
    fpr, pro = np.array(points).T
    cut = np.interp(limit, fpr, pro)
    keep = fpr < limit
    return np.trapezoid(np.append(pro[keep], cut), np.append(fpr[keep], limit)) / limit


CASES = {"few ties": MAPS, "many ties": np.round(2 * MAPS), "perfect": MASKS, "inverted": ~MASKS, "constant": 0 * MAPS}


@pytest.mark.parametrize("name", CASES)
def test_pixel_metrics_equal_the_definitions(name):
    maps = CASES[name].astype(np.float32)
    got, y, s = pixel_metrics(maps, MASKS), MASKS.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(y, s)
    assert got["P-AUROC"] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert got["P-AP"] == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert got["P-F1max"] == pytest.approx((2 * precision * recall / (precision + recall + 1e-300)).max(), abs=1e-12)
    assert got["AUPRO"] == pytest.approx(literal_aupro(maps, MASKS), abs=1e-9)


def test_all_seven_are_ones_where_everything_is_found():
    assert evaluate(LABELS + 0.0, LABELS, MASKS + 0.0, MASKS) == pytest.approx(dict.fromkeys(METRICS, 1.0))


def test_aupro_by_hand():
    # One image, 10 normal pixels, two components: one pixel (score 9) and two pixels (scores 5 and 1).
    maps = np.array([[[9, 0, 5, 1, 0, 0, 8, 0, 0, 0, 0, 0, 0]]], dtype=np.float32)
    masks = np.zeros((1, 1, 13), dtype=bool)
    masks[0, 0, [0, 2, 3]] = True
    # Thresholds: 9 -> PRO 1/2 at FPR 0; 8 -> FPR 0.1; 5 -> PRO 3/4 at 0.1; 1 -> PRO 1 at 0.1; then FPR 1.
    # Area to 0.3: 0.1 x 1/2 + 0.2 x 1 = 0.25; divided by 0.3.
    assert pixel_metrics(maps, masks)["AUPRO"] == pytest.approx(0.25 / 0.3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(3, 0, 0), MASKS], ids=["a normal pixel", "defect pixels"])
def test_not_finite_is_refused(bad, place, refused):
    scores, maps = np.zeros(6), np.zeros(MASKS.shape)
    maps[place] = bad
    refused("maps: values are NaN or infinite", evaluate, scores, LABELS, maps, MASKS, kind=ValueError)
    scores[1] = bad
    refused("image scores: 1 of 6", evaluate, scores, LABELS, kind=ValueError)


def test_what_is_not_defined_is_nan_and_said():
    with pytest.warns(UserWarning, match="all 3 test images are good"):
        got = evaluate(np.arange(3.0), np.zeros(3))
    assert all(math.isnan(value) for value in got.values())
    with pytest.warns(UserWarning, match="no pixel is marked"):
        assert math.isnan(pixel_metrics(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool))["AUPRO"])


def test_wrong_shapes_and_wrong_masks(refused):
    refused("scores and labels", evaluate, np.zeros(3), np.zeros(4), kind=ValueError)
    for masks, words in ((np.zeros((2, 8, 8)), "maps and masks"), (np.ones((2, 4, 4)), "image 0 is labelled good")):
        refused(words, evaluate, np.arange(2.0), np.array([0, 1]), np.zeros((2, 4, 4)), masks, kind=ValueError)


def test_memory_is_bounded():
    # 2,000 maps of 256 x 256 must fit in 4 GiB; 100 of them are a twentieth, input included.
    tracemalloc.start()
    maps = rng.standard_normal((100, 256, 256), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[50:, 100:160, 100:160] = True
    pixel_metrics(maps, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**30 / 20
