"""How long a call takes, and how much memory, measured fairly on a shared machine; the cases stand in notebook 12.

Times on a shared machine are noisy, so nothing is compared across processes or minutes: the cases of a group are called
in turn, round after round, and a ratio is the median over rounds of the ratio inside one round.
"""

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..files import InputError
from .resampling import Interval, percentile_interval


def interleaved(
    cases: dict[str, Callable[[], object]], batch: int, repeats: int, device: torch.device, warmup: int = 2,
    in_a_row: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Call every case ``repeats`` times after ``warmup``, in turn; rows (name, batch, round, ms), one for a timed call.
    Each round has an order of its own, drawn with a fixed seed, and of ``in_a_row`` calls of a case the last is timed:
    a case may leave the machine in a state that the next one pays for, such as another runtime's threads that spin."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    rows = []
    for number in range(-warmup, repeats):
        for name in np.random.default_rng(number + warmup).permutation(list(cases)).tolist():
            for _ in range(in_a_row):
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


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
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
    columns = ["name", "batch", "n", "ms_median", "ms_p10", "ms_p90", "ratio_to_floor", "ratio_lo", "ratio_hi"]
    return pd.DataFrame(rows, columns=columns)
