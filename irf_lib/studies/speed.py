"""What scoring costs: latency, throughput and memory of each part and of each rival, as ratios to a floor.

Times on a shared machine are noisy, so nothing is compared across processes or minutes: the cases of a group are called
in turn, round after round, and a ratio is the median over rounds of the ratio inside one round. The floor is what no
method that asks the same network once can go below: the bare backbone and one bare DiT, as fast as we know how to run
them (micro-batches, the timestep folded in), and nothing between them. Weights do not matter for the time.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..detector import Detector, Reading, Settings
from ..files import InputError
from ..networks.fast import fold
from ..scoring import FullGaussian, anomaly_map, image_score
from .resampling import Interval, percentile_interval
from .rivals import FeatureGaussian, Inversion, NearestNeighbour, Reconstruction

Case = Callable[[], object]
Cases = dict[str, Case]
TIMES = ["name", "batch", "n", "ms_median", "ms_p10", "ms_p90", "ratio_to_floor", "ratio_lo", "ratio_hi"]
COLUMNS = (*TIMES, "peak_mib", "device", "threads", "dtype")


def interleaved(cases: Cases, batch: int, repeats: int, device: torch.device, warmup: int = 2) -> pd.DataFrame:
    """Call every case ``repeats`` times after ``warmup``, in turn; rows (name, batch, round, ms), one for a timed call.
    The order is turned by one each round, so that no case always follows the same other."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    rows = []
    for number in range(-warmup, repeats):
        for name in np.roll(list(cases), -number).tolist():
            synchronise()
            start = time.perf_counter()
            cases[name]()
            synchronise()
            rows.append((name, batch, number, 1000 * (time.perf_counter() - start)))
    return pd.DataFrame(rows[warmup * len(cases) :], columns=["name", "batch", "round", "ms"])


def milliseconds_per_image(score: Callable[[np.ndarray], object], images: np.ndarray, repeats: int = 2) -> float:
    """Median wall time of ``score(images)`` for each image, from pixels (N, 3, H, W) to result, after a warm-up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return interleaved({"": lambda: score(images)}, len(images), repeats, device, 1).ms.median() / len(images)


def peak_mib(call: Case, device: torch.device) -> float:
    """Most memory in MiB that ``call`` holds beyond what was held before: allocated on the device, or resident in this
    process on Linux, with glibc asked to give back first what it keeps free. NaN where neither can be read."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    forget = Path("/proc/self/clear_refs")
    if platform.libc_ver()[0] != "glibc" or not os.access(forget, os.W_OK):
        return np.nan
    call()  # what is made once and kept is not the call's
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    peaks = []
    for step in (lambda: forget.write_text("5"), call):  # 5: the peak is what is held now
        step()
        peaks.append(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
    return (peaks[1] - peaks[0]) / 1024


def ratio(rounds: pd.DataFrame, name: str, other: str, batch: int, seed: int = 0) -> Interval:
    """Time of ``name`` over time of ``other``: (median over rounds, low, high), a 95 % bootstrap interval over rounds.
    Raises InputError if the two share no round of that batch."""
    wide = rounds[rounds.batch == batch].pivot(index="round", columns="name", values="ms")
    both = wide.reindex(columns=[name, other]).dropna().to_numpy()
    if not len(both):
        raise InputError(f"{name} and {other} were never timed in the same round at batch {batch}")
    ratios = both[:, 0] / both[:, 1]
    draws = np.random.default_rng(seed).choice(ratios, (2000, len(ratios)))
    return float(np.median(ratios)), *map(float, percentile_interval(np.median(draws, axis=1)))


def summarise_rounds(rounds: pd.DataFrame, floor: str = "floor") -> pd.DataFrame:
    """One row for each name and batch: n (timed calls), ms_median, ms_p10, ms_p90 (of a whole call, not of an image),
    ratio_to_floor with its interval where the floor was timed in the same rounds."""
    rows, floored = [], set(rounds.batch[rounds.name == floor])
    for (name, batch), part in rounds.groupby(["name", "batch"], sort=False):
        found = ratio(rounds, name, floor, batch) if batch in floored else 3 * (np.nan,)
        rows.append((name, batch, len(part), *np.quantile(part.ms, [0.5, 0.1, 0.9]), *found))
    return pd.DataFrame(rows, columns=TIMES)


def benchmark_detector(settings: Settings, device: str = "auto", reading: Reading | None = None) -> Detector:
    """A detector of these sizes, fitted for one step on 48 random images."""
    images = np.random.default_rng(0).random((48, 3, settings.image_size, settings.image_size), dtype=np.float32)
    one_step = settings.model_copy(update={"steps": 1, "epochs": 0})
    return Detector(one_step, reading, 0, device).fit(images, progress=None)


def scoring_cases(detector: Detector, images: np.ndarray, steps: Sequence[int]) -> tuple[Cases, dict[str, str]]:
    """name -> a call that scores ``images`` (B, 3, H, W), or one part of that; and the dtype of those not in fp32.
    ``floor``: backbone and DiT alone. ``backbone``, ``denoiser``, ``density`` (the detector's own), ``density_full``,
    ``upsample`` (with the image score): the parts of ``score``, which is end to end, as are ``inversion3``, ``knn``,
    ``gaussian`` and ``reconstruct<k>``, maps and scores included, each with its denoiser folded beforehand;
    ``inversion3_denoiser`` and, for the last k, ``reconstruct<k>_denoiser`` start from the features."""
    reading, backbone, pixels = detector.reading, detector.backbone, torch.from_numpy(images).to(detector.device)
    scorer, half, density = detector.scorer(), detector.scorer("bf16"), detector.density().to(detector.device)
    at_t = fold(detector.denoiser, reading.t)
    bare = fold(detector.denoiser.net, reading.t) if detector.settings.precondition else at_t
    x0 = detector.features(images)
    fields = detector.fields(x0)
    full, on_cpu = FullGaussian.fit(fields), fields.split(detector.batch_size)
    on_device = [one.to(detector.device) for one in (x0, fields, detector.network_input(x0))]
    x0_parts, field_parts, z_parts = (one.split(detector.batch_size) for one in on_device)
    rivals = {
        "inversion3": Inversion(detector),
        "gaussian": FeatureGaussian(detector),
        "knn": NearestNeighbour(detector),
    }
    rivals |= {f"reconstruct{k}": Reconstruction(detector, k) for k in steps}

    def upsample(nll: torch.Tensor) -> object:
        return image_score(nll, reading.image_score), anomaly_map(nll, detector.settings.image_size)

    nll = detector.read(x0, fields=fields).nll.to(detector.device)
    cases = {
        "floor": lambda: (backbone(pixels), [bare(part) for part in z_parts]),
        "score": lambda: scorer(pixels),
        "score_bf16": lambda: half(pixels),
        "backbone": lambda: backbone(pixels),
        "denoiser": lambda: [at_t(part) for part in z_parts],
        "density": lambda: [density.nll(*pair) for pair in zip(field_parts, x0_parts, strict=True)],
        "density_full": lambda: [full.nll(part) for part in on_cpu],
        "upsample": lambda: upsample(nll),
    }
    for name, rival in rivals.items():
        cases[name] = lambda rival=rival: upsample(rival.nll(detector.features(images)))
    for name in ("inversion3", f"reconstruct{steps[-1]}"):
        cases[f"{name}_denoiser"] = lambda path=rivals[name].path: [path(part) for part in x0_parts]
    return {name: torch.no_grad()(case) for name, case in cases.items()}, {"score_bf16": "bf16"}
