"""The timestep study on trained detectors: one network read at many t, and networks spoiled on purpose.

Each function returns rows (dicts) with a value, a 95 % bootstrap interval over images where one makes sense (lo, hi),
and n, the images behind it. ``test`` is anything with x0 (N, C, s, s), labels (N,) bool, masks (N, H, W) or None,
image_size and seed. Scores are those of the detector's own image-score rule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from . import invariance, irf, metrics
from .cutpaste import KINDS, cut_paste
from .detector import OneStepDetector
from .diffusion import (
    Denoiser,
    ddpm_loss,
    denoising_loss,
    gaussian_optimum,
    train,
    training_batch,
)
from .folding import FoldedSteps
from .resampling import mean_interval
from .scorer import batch_size
from .scoring import DENSITIES, FullGaussian, StandardNormal, anomaly_map, image_score

Row = dict[str, object]
NOISE_MODES = ("one draw for each image", "one fixed draw", "one draw a batch")


# --- reading one network at another timestep ----------------------------------------------------------------------


def scores_of(detector: OneStepDetector, nll: Tensor) -> np.ndarray:
    """Image scores (N,) of anomaly values (N, s, s), by the detector's rule."""
    return image_score(nll, detector.settings.image_score).double().numpy()


@dataclass(frozen=True)
class Reading:
    """A test set read at one timestep and input."""

    t: int
    how: str
    fields: Tensor  # (N, C, s, s)
    nll: Mapping[str, Tensor]  # density -> (N, s, s), fitted on training images read in the same way


def read_at(
    detector: OneStepDetector, fit_x0: Tensor, x0: Tensor, t: int, how: str, densities: Iterable[str] = tuple(DENSITIES)
) -> Reading:
    """Fields and anomaly values of ``x0`` at ``t``, under each of ``densities``."""
    fit, new = ((one, detector.denoised(x, one, t, how)) for x in (fit_x0, x0) for one in [detector.fields(x, t, how)])
    return Reading(t, how, new[0], {name: DENSITIES[name].fit(*fit).nll(*new) for name in densities})


def detection_rows(detector: OneStepDetector, test, reading: Reading) -> list[Row]:
    """I-AUROC (with its interval), P-AUROC and AUPRO of one reading under every density."""

    def rows(density: str) -> list[Row]:
        nll = reading.nll[density]
        scores = scores_of(detector, nll)
        maps = None if test.masks is None else anomaly_map(nll, test.image_size).numpy()
        found = metrics.evaluate(scores, test.labels, maps, test.masks)
        _, low, high = metrics.auroc_interval(scores, test.labels, seed=test.seed)
        head = {"study": "detection", "kind": "all", "input": reading.how, "t": reading.t, "density": density}
        three = [{**head, "quantity": one, "value": found[one], "n": len(scores)} for one in _DETECTION]
        three[0] |= {"lo": low, "hi": high}
        return three

    with ThreadPoolExecutor(2) as pool:  # NumPy's sort lets the other thread work
        return [row for part in pool.map(rows, reading.nll) for row in part]


_DETECTION = ("I-AUROC", "P-AUROC", "AUPRO")


# --- agreement between timesteps ----------------------------------------------------------------------------------


def agreement_rows(detector: OneStepDetector, test, readings: Sequence[Reading]) -> list[Row]:
    """Agreement of fields, image rankings and location rankings for every pair of ``readings``.

    Quantities: ``cosine`` and ``relative change`` of fields, good and anomalous images apart; ``image ranking`` (also
    over all images together) and ``pixel ranking`` (inside each image) under the full and the standard density.
    """
    ts = [reading.t for reading in readings]
    gram = invariance.field_gram([reading.fields.numpy() for reading in readings])
    cosine, change = invariance.cosine_similarity(gram), invariance.relative_change(gram)
    rows = []
    for kind, chosen in {"good": ~test.labels, "anomalous": test.labels, "all": test.labels >= 0}.items():
        n, seed, apart = int(chosen.sum()), test.seed, kind != "all"
        if apart:
            rows += _pair_rows(ts, "cosine", kind, n, mean_interval(cosine[chosen], seed))
            rows += _pair_rows(ts, "relative change", kind, n, mean_interval(change[chosen], seed), symmetric=False)
        for density in ("full", "standard"):
            nll = [reading.nll[density][torch.from_numpy(chosen)] for reading in readings]
            scores = np.stack([scores_of(detector, one) for one in nll])
            if n >= 3:
                rows += _pair_rows(ts, "image ranking", kind, n, invariance.spearman_matrix(scores, seed), density)
            if apart:
                pixels = mean_interval(invariance.pixel_spearman([one.numpy() for one in nll]), seed)
                rows += _pair_rows(ts, "pixel ranking", kind, n, pixels, density)
    return rows


def _pair_rows(ts, quantity, kind, n, interval, density=None, symmetric=True) -> list[Row]:
    """A row for every pair of timesteps from (value, low, high), each (T, T); the upper half will do if symmetric."""
    head = {"study": "agreement", "quantity": quantity, "kind": kind, "input": "clean", "density": density, "n": n}
    value, low, high = interval
    return [
        {**head, "t": ts[i], "t2": ts[j], "value": value[i, j], "lo": low[i, j], "hi": high[i, j]}
        for i, j in np.ndindex(len(ts), len(ts))
        if i < j or (i > j and not symmetric)
    ]


def neighbour_rows(detector: OneStepDetector, test, offsets: Sequence[int] = (1, 10, 50)) -> list[Row]:
    """Cosine and relative change of the field between the detector's t and t + offset (t - offset at the end)."""
    t, last = detector.settings.t, len(detector.abar) - 1
    others = [t + offset if t + offset <= last else t - offset for offset in offsets]
    gram = invariance.field_gram([detector.fields(test.x0, one, "clean").numpy() for one in (t, *others)])
    measures = {"cosine": invariance.cosine_similarity(gram), "relative change": invariance.relative_change(gram)}
    rows = []
    for kind, chosen in {"good": ~test.labels, "anomalous": test.labels}.items():
        for quantity, values in measures.items():
            head = {"study": "neighbour", "quantity": quantity, "kind": kind, "input": "clean", "t": t}
            mean, low, high = (one[0] for one in mean_interval(values[chosen], test.seed))
            rows += [
                {**head, "t2": other, "value": mean[i], "lo": low[i], "hi": high[i], "n": int(chosen.sum())}
                for i, other in enumerate(others, start=1)
            ]
    return rows


@torch.no_grad()
def step_rows(detector: OneStepDetector, fit_x0: Tensor, test, stride: int = 100, steps: int = 5) -> list[Row]:
    """What further steps of inversion change: after k = 1, 2, ... network evaluations along one path from the clean
    features at the detector's t, the image AUROC, its paired difference from k = 1, and the rank correlation with it.

    The field of every step is scored under a full covariance fitted on the training images' fields of the same step.
    """
    last = len(detector.abar) - 1
    stride = max(1, min(stride, (last - detector.settings.t) // max(1, steps - 1)))  # a late t leaves little room
    path = list(range(detector.settings.t, last + 1, stride))[:steps]
    pairs = zip(_path_fields(detector, fit_x0, path), _path_fields(detector, test.x0, path), strict=True)
    scores = [scores_of(detector, FullGaussian.fit(fit).nll(seen)) for fit, seen in pairs]
    rows = []
    for k, (t, score) in enumerate(zip(path, scores, strict=True), start=1):
        head = {"study": "steps", "kind": "all", "input": "clean", "density": "full", "t": t, "k": k, "n": len(score)}
        difference = metrics.auroc_difference_interval(score, scores[0], test.labels, test.seed)
        rows.append(_row(head, "I-AUROC", metrics.auroc_interval(score, test.labels, test.seed)))
        rows.append(_row(head, "I-AUROC minus one step", difference))
        rows.append({**head, "quantity": "image ranking", "value": float(stats.spearmanr(score, scores[0]).statistic)})
    return rows


def _path_fields(detector: OneStepDetector, x0: Tensor, path: Sequence[int]) -> list[Tensor]:
    denoiser = FoldedSteps(detector.denoiser, path)
    batches = [
        irf.inversion_path(denoiser, one.to(detector.device), path, detector.abar)
        for one in x0.split(batch_size(detector.device))
    ]
    return [torch.cat([batch[k][1].float().cpu() for batch in batches]) for k in range(len(path))]


def _row(head: Row, quantity: str, interval: tuple) -> Row:
    value, low, high = (float(one) for one in interval)
    return {**head, "quantity": quantity, "value": value, "lo": low, "hi": high}


# --- choosing t from good images alone ----------------------------------------------------------------------------


def choice_rows(
    detector: OneStepDetector, fit_x0: Tensor, held_out_x0: Tensor, held_out: np.ndarray, ts: Sequence[int]
) -> list[Row]:
    """Two label-free measures at every t, on held-out good images only; the larger, the better the t.

    ``gain``: how much lower the network's denoising loss is than the Gaussian optimum's. ``CutPaste AUROC``: how well
    the score tells cut-paste copies of the images ``held_out`` (N, 3, H, W) from the originals, whose standardised
    features are ``held_out_x0``. Its interval draws originals and copies as if they were unrelated images, which makes
    it wider than it need be.
    """
    seed = detector.seed
    ours, theirs = _losses(detector, detector.denoiser, fit_x0, held_out_x0, ts)
    spoiled = [detector.features(cut_paste(held_out, kind, seed)[0]) for kind in KINDS]
    everything = torch.cat([held_out_x0, *spoiled])
    labels = np.arange(len(everything)) >= len(held_out_x0)
    rows = []
    for t, gain in zip(ts, theirs - ours, strict=True):
        density = FullGaussian.fit(detector.fields(fit_x0, t, "clean"))
        scores = scores_of(detector, density.nll(detector.fields(everything, t, "clean")))
        head = {"study": "choice", "kind": "held-out good", "input": "clean", "density": "full", "t": t}
        head["n"] = len(held_out_x0)
        rows.append(_row(head, "gain", mean_interval(gain, seed)))
        rows.append(_row(head, "CutPaste AUROC", metrics.auroc_interval(scores, labels, seed)))
    return rows


def _losses(detector: OneStepDetector, denoiser: Denoiser, fit_x0: Tensor, x0: Tensor, ts: Sequence[int]):
    """Denoising losses of ``x0``, each (T, n): ``denoiser``'s and those of the Gaussian optimum of ``fit_x0``."""
    models = (denoiser, gaussian_optimum(fit_x0, detector.device))
    return [denoising_loss(one, x0, list(ts), detector.seed, detector.device).numpy() for one in models]


# --- other networks on the same features --------------------------------------------------------------------------


def curve_rows(
    name: str,
    detector: OneStepDetector,
    denoiser: Denoiser,
    data: tuple,
    ts: Sequence[int],
    how: str = "clean",
    scale: float = 1.0,
    n_fit: int = 96,
) -> list[Row]:
    """``denoiser`` in the place of the detector's, on ``data`` = (fit_x0, held_out_x0, test), features times ``scale``.

    At every t: ``I-AUROC`` under a full covariance fitted on ``n_fit`` of the training images, evenly taken; ``loss /
    optimum``, held-out denoising loss over the Gaussian optimum's; ``cosine`` of the test images' fields with those at
    the detector's t.
    """
    other = copy.copy(detector)
    other.denoiser = denoiser
    (fit_x0, held_out_x0), test = (scale * one for one in data[:2]), data[2]
    ours, theirs = _losses(detector, denoiser, fit_x0, held_out_x0, ts)
    density_x0 = fit_x0[torch.linspace(0, len(fit_x0) - 1, min(n_fit, len(fit_x0))).round().long()]
    default = other.fields(scale * test.x0, detector.settings.t, how).numpy()
    rows = []
    for t, ratio in zip(ts, ours / theirs, strict=True):
        fields = other.fields(scale * test.x0, t, how)
        nll = FullGaussian.fit(other.fields(density_x0, t, how)).nll(fields)
        cosine = invariance.cosine_similarity(invariance.field_gram([default, fields.numpy()]))[:, 0, 1]
        head = {"seed": test.seed, "network": name, "t": t}
        scores = scores_of(detector, nll)
        rows.append(_row(head | {"n": len(nll)}, "I-AUROC", metrics.auroc_interval(scores, test.labels, test.seed)))
        rows.append(_row(head | {"n": len(ratio)}, "loss / optimum", mean_interval(ratio, test.seed)))
        rows.append(_row(head | {"n": len(nll)}, "cosine", mean_interval(cosine, test.seed)))
    return rows


def plain_network(detector: OneStepDetector, x0: Tensor, steps: int) -> nn.Module:
    """A network without preconditioning, trained on ``x0`` (N, C, s, s) as the detector's is, but for ``steps``."""
    net = detector.new_denoiser(precondition=False).eval()
    settings = detector.settings.model_copy(update={"steps": steps, "epochs": None})
    for _ in train(net, x0, settings, detector.seed, detector.device):
        pass
    return net


def one_timestep_network(detector: OneStepDetector, x0: Tensor, t: int, steps: int) -> nn.Module:
    """A preconditioned network that has seen no timestep but ``t``; AdamW at a quarter of the settings' rate."""
    net = detector.new_denoiser(precondition=True)
    net.fit_gaussian(x0)
    net.to(detector.device).train()
    settings, generator = detector.settings, torch.Generator().manual_seed(detector.seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr / 4)
    for _ in range(steps):
        batch, _, eps = (one.to(detector.device) for one in training_batch(x0, settings.batch_size, generator))
        loss = ddpm_loss(net, batch, torch.full((len(batch),), t, device=detector.device), eps, detector.abar)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.grad_clip)
        optimizer.step()
    return net.eval()


# --- the leak ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def leak_auroc(detector: OneStepDetector, x0: Tensor, t: int, mode: str, seed: int, batch_size: int) -> float:
    """AUROC of *good* images against good images, the second half called anomalous as in a loader sorted by class.

    The noised input at ``t`` is read under N(0, I), its noise drawn by ``mode`` (one of NOISE_MODES). The images are
    shuffled by ``seed`` first, so there is nothing to find and the truth is 0.5. Raises ValueError for another mode.
    """
    x0 = x0[torch.randperm(len(x0), generator=torch.Generator().manual_seed(seed))]
    draws: dict[str, Callable[[torch.Generator], Iterator[Tensor]]] = {
        "one draw for each image": lambda g: (torch.randn(part.shape, generator=g) for part in x0.split(batch_size)),
        "one fixed draw": lambda g: iter([torch.randn((1, *x0.shape[1:]), generator=g)] * len(x0)),
        "one draw a batch": lambda g: (torch.randn((1, *x0.shape[1:]), generator=g) for _ in x0.split(batch_size)),
    }
    if mode not in draws:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(NOISE_MODES)}")
    noise = draws[mode](torch.Generator().manual_seed(seed))
    fields = [
        irf.inverse_residual_field(
            detector.denoiser, part.to(detector.device), t, detector.abar, "noised",
            next(noise).to(detector.device),
        ).float().cpu()
        for part in x0.split(batch_size)
    ]  # fmt: skip
    labels = np.arange(len(x0)) >= len(x0) // 2
    return metrics.auroc_interval(scores_of(detector, StandardNormal().nll(torch.cat(fields))), labels, seed)[0]
