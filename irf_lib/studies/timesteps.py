"""The timestep study on trained detectors: one network read at many t, and networks spoiled on purpose.

Each ``*_rows`` function returns rows (dicts) with a value, a 95 % bootstrap interval over images (lo, hi) and n, the
images behind it. ``test`` is anything with x0 (N, C, s, s), labels (N,) bool, masks (N, H, W) or None, image_size and
seed. Densities are fitted on the detector's own good images; the image score is that of its reading, and so is the
input (``how``: clean, scaled or noised) where none is given.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from .. import irf, metrics
from ..conformal import Scores
from ..detector import Detector, Reading
from ..diffusion import denoising_loss, train
from ..networks.denoisers import gaussian_optimum
from ..networks.fast import FoldedSteps
from ..scoring import FullGaussian, anomaly_map, image_score
from .cutpaste import KINDS, cut_paste
from .invariance import cosine_similarity, field_gram, pixel_spearman, relative_change, spearman_matrix
from .resampling import auroc_difference_interval, auroc_interval, mean_interval

Row = dict[str, object]


def _row(head: Row, quantity: str, value: float, low: float = np.nan, high: float = np.nan) -> Row:
    return {**head, "quantity": quantity, "value": float(value), "lo": float(low), "hi": float(high)}


def reading_at(detector: Detector, t: int, how: str | None = None, density: str = "full") -> Reading:
    """The detector's reading at another timestep, input and density; its image score stays."""
    own = detector.reading
    return Reading(t=int(t), input=how or own.input, density=density, image_score=own.image_score)


def read_all(detector: Detector, x0: Tensor, readings: Mapping[str, Reading]) -> dict[str, Scores]:
    """Scores of features ``x0`` (N, C, s, s) under each reading: the network is asked once for each (t, input)."""
    found, place, fields = {}, None, None
    for name, reading in sorted(readings.items(), key=lambda one: (one[1].t, one[1].input)):
        if place != (reading.t, reading.input):
            place, fields = (reading.t, reading.input), detector.fields(x0, reading)
        found[name] = detector.read(x0, reading, fields)
    return {name: found[name] for name in readings}


Place = namedtuple("Place", "t how fields scores")  # one timestep and input: fields (N, C, s, s), Scores by density


def read_at(detector: Detector, x0: Tensor, t: int, how: str | None, densities: Iterable[str]) -> Place:
    """Fields of ``x0`` (N, C, s, s) at ``t``, and their scores under each of ``densities``."""
    fields = detector.fields(x0, reading_at(detector, t, how))
    scores = {one: detector.read(x0, reading_at(detector, t, how, one), fields) for one in densities}
    return Place(int(t), how or detector.reading.input, fields, scores)


def detection_rows(test: Any, place: Place) -> list[Row]:
    """I-AUROC (with its interval), P-AUROC and AUPRO of a test set, read at one place, under every density."""
    rows, head = [], {"study": "detection", "kind": "all", "input": place.how, "t": place.t, "n": len(test.labels)}
    for density, one in place.scores.items():
        maps = None if test.masks is None else anomaly_map(one.nll, test.image_size).numpy()
        found, here = metrics.evaluate(one.scores, test.labels, maps, test.masks), head | {"density": density}
        ends = auroc_interval(one.scores, test.labels, test.seed)[1:]
        rows.append(_row(here, "I-AUROC", found["I-AUROC"], *ends))
        rows += [_row(here, name, found[name]) for name in ("P-AUROC", "AUPRO")]
    return rows


def agreement_rows(test: Any, places: Sequence[Place]) -> list[Row]:
    """Agreement of fields, image rankings and location rankings for every pair of ``places`` (of one input).

    Quantities: ``cosine`` and ``relative change`` of fields, good and anomalous images apart; ``image ranking`` (also
    over all images together) and ``pixel ranking`` (inside each image) under the full and the standard density.
    """
    ts, head = [place.t for place in places], {"study": "agreement", "input": places[0].how}
    pairs, both_ways = (list(some(range(len(ts)), 2)) for some in (combinations, permutations))
    gram = field_gram([place.fields.numpy() for place in places])
    rows = _mean_rows(test, head, "cosine", ts, pairs, cosine_similarity(gram))
    rows += _mean_rows(test, head, "relative change", ts, both_ways, relative_change(gram))
    for density in ("full", "standard"):
        here, found = head | {"density": density}, [place.scores[density] for place in places]
        pixels, scores = pixel_spearman([one.nll.numpy() for one in found]), np.stack([one.scores for one in found])
        rows += _mean_rows(test, here, "pixel ranking", ts, pairs, pixels)
        for kind, chosen in {"good": ~test.labels, "anomalous": test.labels, "all": test.labels >= 0}.items():
            if (n := int(chosen.sum())) >= 3:
                interval = spearman_matrix(scores[:, chosen], test.seed)
                rows += _pair_rows(here | {"kind": kind, "n": n}, "image ranking", ts, pairs, interval)
    return rows


def neighbour_rows(detector: Detector, test: Any, offsets=(1, 10, 50), how: str | None = None) -> list[Row]:
    """Cosine and relative change of the field between the detector's t and t + offset (t - offset at the end)."""
    t, last = detector.reading.t, len(detector.abar) - 1
    ts = [t, *(t + offset if t + offset <= last else t - offset for offset in offsets)]
    gram = field_gram([detector.fields(test.x0, reading_at(detector, one, how)).numpy() for one in ts])
    head, pairs = {"study": "neighbour", "input": how or detector.reading.input}, [(0, i) for i in range(1, len(ts))]
    rows = _mean_rows(test, head, "cosine", ts, pairs, cosine_similarity(gram))
    return rows + _mean_rows(test, head, "relative change", ts, pairs, relative_change(gram))


def _mean_rows(test: Any, head: Row, quantity: str, ts: list[int], pairs: list, values: np.ndarray) -> list[Row]:
    """Means over good images, and over anomalous ones, of ``values`` (N, T, T), for each of ``pairs`` (i, j)."""
    rows = []
    for kind, chosen in (("good", ~test.labels), ("anomalous", test.labels)):
        here = head | {"kind": kind, "n": int(chosen.sum())}
        rows += _pair_rows(here, quantity, ts, pairs, mean_interval(values[chosen], test.seed))
    return rows


def _pair_rows(head: Row, quantity: str, ts: list[int], pairs: list, interval: tuple) -> list[Row]:
    return [_row(head | {"t": ts[i], "t2": ts[j]}, quantity, *(one[i, j] for one in interval)) for i, j in pairs]


@torch.no_grad()
def step_rows(detector: Detector, test: Any, stride: int = 100, steps: int = 5, how: str | None = None) -> list[Row]:
    """What further steps of inversion change: after k = 1, 2, ... network evaluations along one path from the network's
    input at the detector's t, the image AUROC, its paired difference from k = 1, and the rank correlation with it. Each
    step is scored under a full covariance fitted on the training images' fields of the same step."""
    reading, last = reading_at(detector, detector.reading.t, how), len(detector.abar) - 1
    stride = max(1, min(stride, (last - reading.t) // max(1, steps - 1)))  # a late t leaves little room
    path = list(range(reading.t, last + 1, stride))[:steps]
    denoiser, fields = FoldedSteps(detector.denoiser, path), []
    for x0 in (detector.good[0], test.x0):
        starts = (detector.network_input(part.to(detector.device), reading) for part in x0.split(detector.batch_size))
        batches = [irf.inversion_path(denoiser, start, path, detector.abar) for start in starts]
        fields.append([torch.cat([batch[k][1].float().cpu() for batch in batches]) for k in range(len(path))])
    head = {"study": "steps", "kind": "all", "input": reading.input, "density": "full", "n": len(test.labels)}
    rows, scores = [], [_pooled(detector, FullGaussian.fit(fit).nll(seen)) for fit, seen in zip(*fields, strict=True)]
    for k, (t, score) in enumerate(zip(path, scores, strict=True), start=1):
        at, pair = head | {"t": t, "k": k}, (score, scores[0])
        rows.append(_row(at, "I-AUROC", *auroc_interval(score, test.labels, test.seed)))
        rows.append(_row(at, "I-AUROC minus one step", *auroc_difference_interval(*pair, test.labels, test.seed)))
        rows.append(_row(at, "image ranking", stats.spearmanr(*pair).statistic))
    return rows


def _pooled(detector: Detector, nll: Tensor) -> np.ndarray:
    return image_score(nll, detector.reading.image_score).double().numpy()


def choice_rows(detector: Detector, held_out: np.ndarray, ts: Sequence[int], how: str | None, x0: Tensor) -> list[Row]:
    """Two label-free measures at every t, on held-out good images only; the larger, the better the t.

    ``gain``: how much lower the network's denoising loss is than the Gaussian optimum's. ``CutPaste AUROC``: how well
    the score tells cut-paste copies of the images ``held_out`` (N, 3, H, W), whose features are ``x0``, from the
    originals; its interval draws the two as if they were unrelated, and is too wide.
    """
    ours, theirs = _losses(detector, detector.good[0], x0, ts)
    everything = torch.cat([x0, *(detector.features(cut_paste(held_out, kind, detector.seed)[0]) for kind in KINDS)])
    labels, rows = np.arange(len(everything)) >= len(x0), []
    for t, gain in zip(ts, theirs - ours, strict=True):
        reading = reading_at(detector, t, how)
        scores = detector.read(everything, reading).scores
        head = {"study": "choice", "kind": "held-out good", "input": reading.input, "density": "full", "t": t}
        rows.append(_row(head | {"n": len(x0)}, "gain", *mean_interval(gain, detector.seed)))
        rows.append(_row(head | {"n": len(x0)}, "CutPaste AUROC", *auroc_interval(scores, labels, detector.seed)))
    return rows


def _losses(detector: Detector, fit_x0: Tensor, x0: Tensor, ts: Sequence[int]) -> list[np.ndarray]:
    """Denoising losses of ``x0``, each (T, n): the detector's and those of the Gaussian optimum of ``fit_x0``."""
    models = (detector.denoiser, gaussian_optimum(fit_x0, detector.device))
    return [denoising_loss(one, x0, list(ts), detector.seed, detector.device).numpy() for one in models]


def curve_rows(
    name: str, detector: Detector, denoiser: irf.Denoiser, test: Any, ts: Sequence[int],
    how: str | None = None, scale: float = 1.0, held_out_x0: Tensor | None = None,
) -> list[Row]:  # fmt: skip
    """``denoiser`` in the place of the detector's, with all features times ``scale``. At every t: ``I-AUROC`` under a
    full covariance of 96 training images, evenly taken; ``loss / optimum``: denoising loss over the Gaussian optimum's
    on ``held_out_x0`` (None: the detector's); ``cosine`` of the test images' fields with those at the detector's t."""
    other, held_out_x0 = detector.with_network(denoiser), detector.good[1] if held_out_x0 is None else held_out_x0
    fit_x0, test_x0 = scale * detector.good[0], scale * test.x0
    ours, theirs = _losses(other, fit_x0, scale * held_out_x0, ts)
    density_x0 = fit_x0[torch.linspace(0, len(fit_x0) - 1, min(96, len(fit_x0))).round().long()]
    default = other.fields(test_x0, reading_at(detector, detector.reading.t, how)).numpy()
    rows = []
    for t, ratio in zip(ts, ours / theirs, strict=True):
        reading = reading_at(detector, t, how)
        fields = other.fields(test_x0, reading)
        scores = _pooled(detector, FullGaussian.fit(other.fields(density_x0, reading)).nll(fields))
        cosine = cosine_similarity(field_gram([default, fields.numpy()]))[:, 0, 1]
        head = {"seed": test.seed, "network": name, "t": t, "n": len(scores)}
        rows.append(_row(head, "I-AUROC", *auroc_interval(scores, test.labels, test.seed)))
        rows.append(_row(head | {"n": len(ratio)}, "loss / optimum", *mean_interval(ratio, test.seed)))
        rows.append(_row(head, "cosine", *mean_interval(cosine, test.seed)))
    return rows


def plain_network(detector: Detector, steps: int, scale: float = 1.0) -> nn.Module:
    """A network without preconditioning, trained as the detector's, for ``steps`` and on features times ``scale``."""
    net = detector.new_denoiser(precondition=False).eval()
    settings = detector.settings.model_copy(update={"steps": steps, "epochs": 0})
    list(train(net, scale * detector.good[0], settings, detector.seed, detector.device))  # a generator, to its end
    return net
