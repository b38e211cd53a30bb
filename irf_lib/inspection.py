"""One's own parts: a model fitted on a folder of good images, and what it says of new ones, for people and scripts.

detector = fit_model(good_images(Path("parts/good")), Path("model"))
result = inspect(detector, find_images([Path("incoming")]), Path("report"))
result.table            # one row an image, as in report/scores.csv
"""

from __future__ import annotations

import base64
import heapq
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from . import datasets, plots
from .datasets import SUFFIXES, DataError
from .detector import DetectorSettings, OneStepDetector, remove_leftovers
from .storage import locked, read_json, write_atomically, write_json, write_text

CHUNK = 32  # images in memory at a time
PASSED, FLAGGED, UNREADABLE = "passed", "flagged", "unreadable"
COLUMNS = ("image", "verdict", "score", "p_value", "threshold", "message")


# --- fitting ------------------------------------------------------------------------------------------------------


def good_images(folder: Path) -> list[Path]:
    """The good images of one kind of part: those of ``folder`` or its good/, or the training images of a category.

    Raises DataError where there are none, or where the folder holds several categories.
    """
    names = datasets.list_categories(folder)
    if len(names) > 1:
        raise DataError(f"{folder}: holds {len(names)} categories ({', '.join(names[:5])}); name the folder of one.")
    return list(datasets.read_category(folder, names[0]).train)


def fit_model(
    images: Sequence[Path],
    folder: Path,
    settings: DetectorSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: str | None = "training",
    force: bool = False,
) -> OneStepDetector:
    """The detector of the good ``images``, saved in ``folder``; loaded if it was fitted on them before.

    A fit that was killed goes on where it was. Raises DataError where ``folder`` holds another model, unless ``force``,
    for an image that cannot be read, and for fewer than 3 of them.
    """
    settings, folder = settings or DetectorSettings(), Path(folder)
    if len(images) < 3:
        raise DataError(f"fitting needs at least 3 good images, and about 20 to be of use; there are {len(images)}.")
    made_from = {"images": datasets.content_hash(images), "n_images": len(images)}
    wanted = {"settings": settings.model_dump(), "seed": seed, "extra": made_from}
    with locked(folder / ".lock", f"{folder}: another fit is writing there; waiting for that one to end"):
        if not force and (folder / "detector.json").exists():
            meta = _meta(folder)
            if {key: meta.get(key) for key in wanted} == wanted:
                return OneStepDetector.load(folder, device)
            raise DataError(f"{folder} holds a model of other images or settings; choose another folder, or force it.")
        detector = OneStepDetector(settings, seed, device)
        detector.fit(images, progress, checkpoint=folder / "checkpoint.json")
        detector.save(folder, made_from)
        remove_leftovers(folder)
    return detector


def _meta(folder: Path) -> dict:
    meta = read_json(folder / "detector.json")
    return meta["meta"] if isinstance(meta, dict) and isinstance(meta.get("meta"), dict) else {}


# --- inspecting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a detector says of one image; where it could not be read, ``problem`` says why and the rest is empty."""

    path: Path
    score: float = math.nan  # nats, high = anomalous
    p_value: float = math.nan
    flagged: bool = False
    heat: np.ndarray | None = None  # (image_size, image_size), nats
    problem: str = ""

    @property
    def verdict(self) -> str:
        return UNREADABLE if self.problem else FLAGGED if self.flagged else PASSED


@dataclass(frozen=True)
class Inspection:
    """What a detector says of N images: ``table`` has a row an image and the columns COLUMNS."""

    table: pd.DataFrame
    worst: tuple[Finding, ...]  # those with the highest scores, the highest first
    root: Path  # the folder that the names in the table start from

    def count(self, verdict: str) -> int:
        """How many images are PASSED, FLAGGED or UNREADABLE."""
        return int((self.table.verdict == verdict).sum())

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def find_images(places: Sequence[Path]) -> list[Path]:
    """The image files among ``places``, and those in its folders and their subfolders, by name, each once.

    Hidden files and folders are left out. Raises DataError for a place that is not there, a file that is named and is
    no image, and if there is no image at all.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if place.is_dir():
            inside = (path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
            found |= dict.fromkeys(path for path in inside if not _is_hidden(path.relative_to(place)))
        elif not place.exists():
            raise DataError(f"{place}: no such file or folder; check the path to the images.")
        elif place.suffix.lower() not in SUFFIXES:
            raise DataError(f"{place}: not an image by its name; there are {', '.join(SUFFIXES)}.")
        else:
            found[place] = None
    if not found:
        raise DataError(f"{', '.join(map(str, places))}: no image there ({', '.join(SUFFIXES)}); add some.")
    return list(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def findings(detector: OneStepDetector, images: Sequence[Path]) -> Iterator[Finding]:
    """One Finding an image, in their order, a few images in memory at a time. An unreadable one stops no other."""
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        try:
            yield from _score(detector, chunk)
        except DataError:  # one of them: which one is found out one at a time
            for path in chunk:
                try:
                    yield from _score(detector, [path])
                except DataError as error:
                    yield Finding(path, problem=str(error))


def _score(detector: OneStepDetector, images: Sequence[Path]) -> list[Finding]:
    found = detector.score(images)
    numbers = zip(found.scores.tolist(), found.p_values.tolist(), found.flagged.tolist(), found.maps, strict=True)
    return [Finding(path, *one) for path, one in zip(images, numbers, strict=True)]


def inspect(
    detector: OneStepDetector,
    images: Sequence[Path],
    folder: Path,
    worst: int = 20,
    overlays: Literal["all", "flagged", "none"] = "all",
    progress: str | None = "scoring",
    model: str = "",
) -> Inspection:
    """Score ``images``; write ``folder``/scores.csv, scores.json (provenance), overlays/ and report.html.

    The page shows the ``worst`` images and is one file. Table and page appear when all is done, each whole. ``model``
    is what they call the detector.
    """
    folder, rows, heap = Path(folder), [], []
    root = Path(os.path.commonpath([path.parent for path in images]))
    bar = tqdm(findings(detector, images), progress, len(images), disable=progress is None, unit="image", mininterval=1)
    for number, one in enumerate(bar):
        name = one.path.relative_to(root).as_posix()
        rows.append([name, one.verdict, one.score, one.p_value, detector.threshold, one.problem])
        if one.problem:
            continue
        if overlays == "all" or (overlays == "flagged" and one.flagged):
            write_atomically(folder / "overlays" / f"{name}.jpg", partial(_write_jpeg, overlay(detector, one)))
        heapq.heappush(heap, (one.score, -number, one))  # of equal scores the first image is kept
        if len(heap) > worst:
            heapq.heappop(heap)
    table = pd.DataFrame(rows, columns=COLUMNS)
    result = Inspection(table, tuple(one for *_, one in sorted(heap, key=lambda item: item[:2], reverse=True)), root)
    facts = _facts(detector, result, model)
    write_text(folder / "report.html", _page(detector, result, facts))
    write_json(folder / "scores.json", facts)
    write_text(folder / "scores.csv", table.to_csv(index=False))
    return result


def _facts(detector: OneStepDetector, result: Inspection, model: str) -> dict:
    threshold = detector.threshold
    return {
        "model": model,
        "images": os.path.relpath(result.root),
        "n": len(result.table),
        **{verdict: result.count(verdict) for verdict in (FLAGGED, PASSED, UNREADABLE)},
        "alpha": detector.settings.alpha,
        "threshold": threshold if math.isfinite(threshold) else None,
        "n_calibration": len(detector.calibration_scores),
        "settings": detector.settings.model_dump(),
        "seed": detector.seed,
        "device": str(detector.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# --- pictures and the page ----------------------------------------------------------------------------------------


def colour_limits(detector: OneStepDetector) -> tuple[float, float]:
    """Where an overlay starts to colour and where it is full, in nats: from the median score of the held-out good
    images to four times as far from it as their highest. The model's own, so that all its overlays can be compared."""
    scores = detector.calibration_scores
    low, top = float(np.median(scores)), float(scores.max())
    return low, low + 4 * (top - low or 1.0)


def overlay(detector: OneStepDetector, finding: Finding, longest: int = 1024) -> np.ndarray:
    """The finding's map over its image, uint8 (H, W, 3), the longer side at most ``longest`` pixels."""
    picture = datasets.load_picture(finding.path, longest)
    size = picture.shape[1], picture.shape[0]
    heat = np.asarray(Image.fromarray(finding.heat).resize(size, Image.Resampling.BILINEAR))
    return plots.heat_overlay(picture, heat, colour_limits(detector), detector.threshold)


def _write_jpeg(picture: np.ndarray, path: Path | io.BytesIO) -> None:
    Image.fromarray(picture).save(path, "JPEG", quality=88)


def _data_url(picture: np.ndarray) -> str:
    file = io.BytesIO()
    _write_jpeg(picture, file)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _page(detector: OneStepDetector, result: Inspection, facts: dict) -> str:
    """The report as one HTML file: no script, no request, every name escaped."""
    shown = [
        {
            "name": result.name(one.path),
            "verdict": one.verdict,
            "score": one.score,
            "p_value": one.p_value,
            "picture": _data_url(datasets.load_picture(one.path, 384)),
            "overlay": _data_url(overlay(detector, one, 384)),
        }
        for one in result.worst
    ]
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template).render(
        facts=facts,
        shown=shown,
        unreadable=result.table[result.table.verdict == UNREADABLE].to_dict("records"),
        limits=colour_limits(detector),
        histogram=_histogram(detector, result),
    )  # fmt: skip


def _histogram(detector: OneStepDetector, result: Inspection) -> str:
    """The histogram as a data URL; empty if no image could be read."""
    scores = result.table.score.dropna().to_numpy()
    if not len(scores):
        return ""
    figure, file = plots.score_histogram(detector.calibration_scores, scores, detector.threshold), io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
