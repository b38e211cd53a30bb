"""What a full run would cost, from what the committed reference run took: ``python workflow/estimate.py``.

Training takes as long for every category, because a step draws a batch of the same size from however many images there
are; scoring grows with the test images. So one category and seed costs

    hours = (train + start + a + b x test images) / 3600

on one core: ``train`` the mean of train_s over results/reference/metrics.csv; a and b the line through the seconds that
notebook 05 took (wall_s beside its pieces), against their test images; ``start`` an allowance for what no table
records. On P cores the wall time is that of ceil(categories x seeds / P) of them one after the other, plus the
gathering on one core: the committed executed notebooks of GATHERED, which found trained detectors and finished rows,
took so long for nine detectors. Money is core-hours times your price of one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"
SEEDS = 3
CORES = (2, 16, 64)
START = 60.0  # seconds: runner and kernel start twice, features are computed once, 03 measures and draws
GATHERED = ("03", "05", "09", "10", "11")

# name: (categories, test images in all of them, what that is). As these papers give them; the files of VisA and MPDD
# were not there to be counted.
DATASETS = {
    "MVTec AD": (15, 1725, "Bergmann et al. 2019: 3,629 training and 1,725 test images"),
    "VisA": (12, 2162, "Zou et al. 2022, one-class split: 8,659 training and 2,162 test images"),
    "MPDD": (6, 458, "Jezek et al. 2021: 888 training and 458 test images"),
}


def measured(folder: Path = REFERENCE) -> tuple[float, float, float, float]:
    """(train, a, b, gather): seconds; seconds; seconds an image; seconds a category and seed. One core each."""
    table = pd.read_csv(folder / "metrics.csv")
    rows = table[table.method == "irf"]
    images = rows.n_test_good + rows.n_test_anomalous
    names = rows.dataset + "_" + rows.category + "_seed" + rows.seed.astype(str)
    seconds = [json.loads((folder / f"pieces/metrics/{name}.json").read_text())["wall_s"] for name in names]
    b, a = np.polyfit(images, seconds, 1)
    found = [json.loads(next(folder.glob(f"notebooks/{n}_*.ipynb")).read_text()) for n in GATHERED]
    gather = sum(notebook["metadata"]["papermill"]["duration"] for notebook in found) / len(rows)
    return float(rows.train_s.mean()), float(a), float(b), gather


def estimate(categories: int, test_images: int, train: float, a: float, b: float, gather: float) -> list[float]:
    """[core-hours, wall hours on each of CORES] of one data set, SEEDS seeds."""
    jobs = SEEDS * categories
    each = (train + START + a + b * test_images / categories) / 3600
    last = jobs * gather / 3600
    return [jobs * each + last, *(math.ceil(jobs / cores) * each + last for cores in CORES)]


def markdown() -> str:
    """The table of the README."""
    head = ["data set", "categories x seeds", "test images", "core-hours", *(f"hours on {n} cores" for n in CORES)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows = {name: estimate(n, images, *measured()) for name, (n, images, _) in DATASETS.items()}
    for name, numbers in rows.items():
        n, images, _ = DATASETS[name]
        lines.append(f"| {name} | {n} x {SEEDS} | {images:,} | " + " | ".join(f"{x:.1f}" for x in numbers) + " |")
    everything = [sum(column) for column in zip(*rows.values(), strict=True)]
    n, images = (sum(one[i] for one in DATASETS.values()) for i in (0, 1))
    lines.append(f"| all | {n} x {SEEDS} | {images:,} | " + " | ".join(f"{x:.1f}" for x in everything) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    train, a, b, gather = measured()
    print(
        f"train {train:.0f} s, start {START:.0f} s, scoring {a:.0f} s + {b:.2f} s a test image, gather {gather:.0f} s"
    )
    print(markdown())
    for name, (*_, source) in DATASETS.items():
        print(f"{name}: {source}")
