"""What scoring costs: latency, throughput and memory of each part and of each rival, as ratios to a floor.

Times on a shared machine are noisy, so nothing here is compared across processes or minutes: the cases of a group are
called in turn, round after round, and a ratio is the median over rounds of the ratio inside one round. The floor is
what no method that asks the same network once can go below: the bare backbone and one bare DiT, both as fast as we know
how to run them (micro-batches, the timestep folded in), and nothing between them.

The weights do not matter for the time, so the detector is one of the right sizes fitted on random images.
"""

from __future__ import annotations

import copy
import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from . import baselines, metrics
from .datasets import load_images
from .detector import DetectorSettings, OneStepDetector
from .diffusion import (
    TrainSettings,
    alpha_bars,
    build_optimizers,
    ddpm_loss,
    resolve_precision,
    train,
    training_batch,
)
from .folding import FoldedSteps, fold
from .irf import inversion_path, network_input
from .resampling import percentile_interval
from .scorer import batch_size
from .scoring import FullGaussian, anomaly_map, image_score

Case = Callable[[], object]
COLUMNS = (
    "name", "batch", "n", "ms_median", "ms_p10", "ms_p90", "ratio_to_floor", "ratio_lo", "ratio_hi", "peak_mib",
    "device", "threads", "dtype",
)  # fmt: skip


# --- the clock ----------------------------------------------------------------------------------------------------


def interleaved(
    cases: Mapping[str, Case], batch: int, repeats: int, device: torch.device, warmup: int = 2
) -> pd.DataFrame:
    """Call every case ``repeats`` times, in turn; rows (name, batch, round, ms), one for each timed call.

    The order is turned by one each round, so that no case always follows the same other. The device is synchronised
    before the clock is read.
    """
    rows, names = [], list(cases)
    for number in range(-warmup, repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            _synchronise(device)
            start = time.perf_counter()
            cases[name]()
            _synchronise(device)
            if number >= 0:
                ms = (time.perf_counter() - start) * 1000
                rows.append({"name": name, "batch": batch, "round": number, "ms": ms})
    return pd.DataFrame(rows)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(call: Case, device: torch.device) -> float:
    """Most memory in MiB that ``call`` holds beyond what was held before: allocated on the device, or resident in this
    process on Linux, with glibc asked to give back first what it keeps free. NaN where neither can be read."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    call()  # what is made once and kept is not the call's
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status_kib("VmRSS")
        call()
        return max(0.0, (_status_kib("VmHWM") - before) / 1024)
    except (OSError, AttributeError):  # not Linux, or another libc
        return float("nan")


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def ratio(rounds: pd.DataFrame, name: str, other: str, batch: int, seed: int = 0) -> tuple[float, float, float]:
    """Time of ``name`` over time of ``other``: (median over rounds, low, high), a 95 % bootstrap interval over rounds.

    Raises ValueError if the two share no round of that batch.
    """
    wide = rounds[rounds.batch == batch].pivot(index="round", columns="name", values="ms")
    if name not in wide or other not in wide or wide[[name, other]].dropna().empty:
        raise ValueError(f"{name} and {other} were never timed in the same round at batch {batch}")
    ratios = (wide[name] / wide[other]).dropna().to_numpy()
    draws = np.random.default_rng(seed).choice(ratios, (2000, len(ratios)))
    low, high = percentile_interval(np.median(draws, axis=1))
    return float(np.median(ratios)), float(low), float(high)


def summarise_rounds(rounds: pd.DataFrame, floor: str = "floor") -> pd.DataFrame:
    """One row for each name and batch: n (timed calls), ms_median, ms_p10, ms_p90 (of a whole call, not of an image),
    ratio_to_floor with its interval where the floor was timed in the same rounds."""
    rows = []
    for (name, batch), part in rounds.groupby(["name", "batch"], sort=False):
        low, middle, high = np.quantile(part.ms, [0.1, 0.5, 0.9])
        row = {"name": name, "batch": batch, "n": len(part), "ms_median": middle, "ms_p10": low, "ms_p90": high}
        if ((rounds.name == floor) & (rounds.batch == batch)).any():
            row |= dict(zip(("ratio_to_floor", "ratio_lo", "ratio_hi"), ratio(rounds, name, floor, batch), strict=True))
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS[:9])


# --- what is timed ------------------------------------------------------------------------------------------------


def benchmark_detector(settings: DetectorSettings, device: str = "auto", n: int = 48) -> OneStepDetector:
    """A detector of these sizes, fitted for one step on ``n`` random images."""
    images = np.random.default_rng(0).random((n, 3, settings.image_size, settings.image_size), dtype=np.float32)
    one_step = settings.model_copy(update={"steps": 1, "epochs": 0, "alpha": 0.5})
    return OneStepDetector(one_step, 0, device).fit(images, progress=None)


def scoring_cases(
    detector: OneStepDetector, images: np.ndarray, steps: Sequence[int] = (10, 50)
) -> tuple[dict[str, Case], dict[str, str]]:
    """name -> a call that scores ``images`` (B, 3, H, W), or one part of that; and the dtype of those not in fp32.

    ``floor``: backbone and DiT alone. ``backbone``, ``denoiser``, ``density`` (the detector's own), ``density_full``,
    ``upsample`` (with the image score): the parts of ``score``, which is end to end. ``inversion3``,
    ``reconstruct<k>``, ``gaussian`` and ``knn`` are end to end too, maps and scores included, each with its denoiser
    folded beforehand as the scorer's is; ``inversion3_denoiser`` and ``reconstruct<k>_denoiser``, for the last k of
    ``steps``, start from the features.
    """
    device, settings = detector.device, detector.settings
    pixels, size = torch.from_numpy(images).to(device), settings.image_size
    backbone, scorer = detector.store.backbone, detector.scorer()
    with torch.no_grad():
        x0 = ((backbone(pixels) - detector.mean.to(device)) / detector.std.to(device)).contiguous()
        z = network_input(x0, scorer.t, scorer.abar, "scaled")
        field = scorer.denoiser(z)
        nll = scorer.density.nll(field, x0)
        normal = ((detector.raw_features(images) - detector.mean) / detector.std).cpu()
    bare = fold(detector.denoiser.net if settings.precondition else detector.denoiser, scorer.t)
    small = z.split(batch_size(device))
    full, rival = FullGaussian.fit(field.cpu()), baselines.gaussian(normal)
    neighbours = baselines.NearestNeighbour.fit(normal)

    def end_to_end(anomaly: Callable) -> Case:
        def call() -> None:
            values = anomaly((detector.raw_features(images) - detector.mean) / detector.std)
            image_score(values, settings.image_score), anomaly_map(values, size)

        return call

    def with_steps(times: Sequence[int]) -> OneStepDetector:
        other = copy.copy(detector)
        other.denoiser = FoldedSteps(detector.denoiser, times)
        return other

    inversion = with_steps(baselines.InversionScorer.timesteps)
    three = baselines.InversionScorer(inversion, torch.zeros(2), torch.ones(2))
    half = detector.scorer("bf16")
    cases = {
        "floor": lambda: (backbone(pixels), [bare(part) for part in small]),
        "score": lambda: scorer(pixels),
        "score_bf16": lambda: half(pixels),
        "backbone": lambda: backbone(pixels),
        "denoiser": lambda: [scorer.denoiser(part) for part in small],
        "density": lambda: [
            scorer.density.nll(*pair) for pair in zip(*(v.split(batch_size(device)) for v in (field, x0)), strict=True)
        ],
        "density_full": lambda: [full.nll(part) for part in field.cpu().split(batch_size(device))],
        "upsample": lambda: (image_score(nll, settings.image_score), anomaly_map(nll, size)),
        "inversion3": end_to_end(three.nll),
        "inversion3_denoiser": lambda: [
            inversion_path(inversion.denoiser, part, three.timesteps, detector.abar)
            for part in x0.split(batch_size(device))
        ],
        "gaussian": end_to_end(rival.nll),
        "knn": end_to_end(neighbours.nll),
    }
    on_cpu = x0.cpu()
    for k in steps:
        other = with_steps(baselines.reconstruction_times(settings.t, k))
        rebuild = lambda x, other=other, k=k: baselines.reconstruction_error(other, x, k)  # noqa: E731
        cases[f"reconstruct{k}"] = end_to_end(rebuild)
    cases[f"reconstruct{k}_denoiser"] = lambda: rebuild(on_cpu)  # of the last, which has most steps
    return {name: torch.no_grad()(case) for name, case in cases.items()}, {"score_bf16": "bf16"}


def training_cases(detector: OneStepDetector, n: int = 64, steps: int = 10_000) -> tuple[dict[str, Case], str]:
    """``train_step``: the next step of the library's loop. ``train_bare``: forward, backward and optimiser step of the
    same network in the same precision on one batch of random tensors, and nothing else. Returns the precision, too."""
    settings = TrainSettings(**detector.settings.model_dump(include=set(TrainSettings.model_fields)) | {"steps": steps})
    size, channels = detector.settings.feature_size, detector.store.backbone.channels
    x0 = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    ours, bare = detector.new_denoiser(), detector.new_denoiser().to(detector.device).train()
    loop = train(ours, x0, settings, 0, detector.device)
    precision = resolve_precision(settings.precision, detector.device)
    optimizers = build_optimizers(bare, settings)
    draw = training_batch(x0, settings.batch_size, torch.Generator().manual_seed(0))
    batch, t, eps = (one.to(detector.device) for one in draw)
    abar = alpha_bars(detector.device)

    def bare_step() -> None:
        with torch.autocast(detector.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = ddpm_loss(bare, batch, t, eps, abar)
        bare.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return {"train_step": lambda: next(loop), "train_bare": bare_step}, precision


def synthetic_maps(n: int, size: int = 256, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores (n,), maps (n, size, size) float32, masks bool): heavy-tailed maps, a disc of a defect on every other."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_t(4, (n, size, size)).astype(np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    rows, columns = np.mgrid[:size, :size]
    for i in range(0, n, 2):
        y, x, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(size / 32, size / 8)
        masks[i] = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    maps[masks] += 1.5
    return maps.max(axis=(1, 2)).astype(np.float64), maps, masks


def metric_cases(n: int, n_literal: int) -> dict[str, Case]:
    """``metrics<n>``: all seven metrics of n maps; ``sort<n>``: one float32 sort of the same pixels; ``label<n>``: the
    component labelling alone. ``metrics<n_literal>``, ``sklearn<n_literal>`` and ``aupro<n_literal>_literal``: ours
    against scikit-learn's three pixel metrics and an AUPRO threshold by threshold, on fewer maps."""

    def seven(scores: np.ndarray, maps: np.ndarray, masks: np.ndarray) -> object:
        return metrics.evaluate(scores, masks.any(axis=(1, 2)), maps, masks)

    many, few = synthetic_maps(n), synthetic_maps(n_literal)
    return {
        f"metrics{n}": lambda: seven(*many),
        f"sort{n}": lambda: np.sort(many[1], axis=None),
        f"label{n}": lambda: [ndimage.label(mask, np.ones((3, 3))) for mask in many[2] if mask.any()],
        f"metrics{n_literal}": lambda: seven(*few),
        f"sklearn{n_literal}": lambda: sklearn_pixel_metrics(*few[1:]),
        f"aupro{n_literal}_literal": lambda: literal_aupro(*few[1:]),
    }


def sklearn_pixel_metrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """P-AUROC, P-AP and P-F1max by scikit-learn, which sorts all pixels for each of the three."""
    values, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return {
        "P-AUROC": float(roc_auc_score(truth, values)),
        "P-AP": float(average_precision_score(truth, values)),
        "P-F1max": float(f1.max()),
    }


def literal_aupro(maps: np.ndarray, masks: np.ndarray, thresholds: int = 200) -> float:
    """AUPRO as it is defined, one threshold after the other, at ``thresholds`` quantiles of the normal pixels.

    The yardstick for the exact one in metrics.py, not a metric to report: it depends on how many thresholds there are.
    """
    normal = maps[~masks]
    components = [(i, labels == k) for i, (labels, n) in _labelled(masks) for k in range(1, n + 1)]
    rates, overlaps = [0.0], [0.0]
    for limit in np.quantile(normal, np.linspace(1, 1 - metrics.FPR_LIMIT, thresholds)):
        above = maps > limit
        rates.append(float((above & ~masks).sum() / normal.size))
        overlaps.append(float(np.mean([above[i][part].mean() for i, part in components])))
    return float(np.trapezoid(overlaps, rates)) / metrics.FPR_LIMIT


def _labelled(masks: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, int]]]:
    return ((i, ndimage.label(mask, np.ones((3, 3)))) for i, mask in enumerate(masks) if mask.any())


def decode_case(paths: Sequence[Path], size: int) -> Case:
    """Decoding ``paths`` to (N, 3, size, size), as scoring from files does first."""
    return lambda: load_images(paths, size)


def score_many(detector: OneStepDetector, n: int) -> Case:
    """Scoring ``n`` images, 64 at a time as from a stream, so that memory holds no more than that."""
    scorer, size = detector.scorer(), detector.settings.image_size
    block = torch.rand(64, 3, size, size, generator=torch.Generator().manual_seed(0))

    def call() -> None:
        for start in range(0, n, 64):
            scorer(block[: n - start].to(detector.device))

    return call


def image_size_cases(settings: DetectorSettings, sizes: Sequence[int], batch: int, device: str) -> dict[str, Case]:
    """``score_<size>px`` for each size of image; the feature map stays as it is."""

    def case(size: int) -> Case:
        scorer = benchmark_detector(settings.model_copy(update={"image_size": size}), device).scorer()
        images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(scorer.abar.device)
        return lambda: scorer(images)

    return {f"score_{size}px": case(size) for size in sizes}
