"""One's own parts: a model fitted on a folder of good images, and what it says of new ones, for people and scripts.

detector = fit_model(good_images(Path("parts/good")), Path("model"))
result = inspect(detector, find_images([Path("incoming")]), Path("report"))
result.table            # one row an image, as in report/scores.csv
"""

from __future__ import annotations

import base64
import contextlib
import heapq
import io
import math
import os
import warnings
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
from .datasets import SIDE_FILES, SUFFIXES, DataError
from .detector import DetectorSettings, OneStepDetector, remove_leftovers
from .storage import StorageError, locked, read_json, write_atomically, write_json, write_text

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
            with contextlib.suppress(StorageError):  # damaged, or of another version
                meta = _meta(folder)
                if {key: meta.get(key) for key in wanted} == wanted:
                    return OneStepDetector.load(folder, device)
            raise DataError(
                f"{folder} holds another model, or one that cannot be read; choose another folder, or --force it."
            )
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
        return _name(path, self.root)


def _name(path: Path, root: Path) -> str:
    # A file's name is bytes, a table is UTF-8: what is not, is shown escaped.
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def find_images(places: Sequence[Path], leave_out: Path | None = None) -> list[Path]:
    """The image files among ``places``, and those in its folders and their subfolders (linked ones too), by name.

    Absolute, each once. Hidden files and what lies in the folder ``leave_out`` are left out; files of another type are,
    too, with a warning that names them. Raises DataError for a place that is not there, a folder that cannot be listed,
    a named file that is no image, and if there is no image at all.
    """
    found: dict[Path, None] = {}
    foreign: list[str] = []
    without = None if leave_out is None else Path(os.path.abspath(leave_out))
    for place in (Path(os.path.abspath(place)) for place in places):
        if place.is_dir():
            for path in _files(place):
                if without and path.is_relative_to(without):
                    continue
                if path.suffix.lower() in SUFFIXES:
                    found[path] = None
                elif path.suffix.lower() not in SIDE_FILES:
                    foreign.append(path.name)
        elif not place.exists():
            raise DataError(f"{place}: no such file or folder; check the path to the images.")
        elif place.suffix.lower() not in SUFFIXES:
            raise DataError(f"{place}: not an image by its name; there are {', '.join(SUFFIXES)}.")
        else:
            found[place] = None
    if foreign:
        names = ", ".join(sorted(foreign)[:3]) + (", ..." if len(foreign) > 3 else "")
        warnings.warn(f"{len(foreign)} files of another type are left out ({names}); convert them.", stacklevel=2)
    if not found:
        raise DataError(f"{', '.join(map(str, places))}: no image there ({', '.join(SUFFIXES)}); add some.")
    return list(found)


def _files(folder: Path) -> Iterator[Path]:
    """The files below ``folder``, folder by folder, sorted, without hidden ones; each real folder once."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions.") from error

    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def findings(detector: OneStepDetector, images: Sequence[Path]) -> Iterator[Finding]:
    """One Finding an image, in their order, a few images in memory at a time. An unreadable one stops no other."""
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        try:
            yield from _score(detector, chunk)
        except ValueError:  # one of them, most often a DataError: which one is found out one at a time
            for path in chunk:
                try:
                    yield from _score(detector, [path])
                except DataError as error:
                    yield Finding(path, problem=str(error))
                except ValueError as error:
                    yield Finding(path, problem=f"{path}: cannot be scored ({error}); look at the image.")


def _score(detector: OneStepDetector, images: Sequence[Path]) -> list[Finding]:
    found = detector.score(images)
    numbers = zip(found.scores.tolist(), found.p_values.tolist(), found.flagged.tolist(), found.maps, strict=True)
    return [Finding(path, *one) for path, one in zip(images, numbers, strict=True)]


class _Worst:
    """The findings with the highest scores, and a small picture and overlay of each."""

    def __init__(self, most: int):
        self.most = most
        self._heap: list[tuple[float, int, Finding, list[np.ndarray]]] = []

    def wants(self, score: float) -> bool:
        return self.most > 0 and (len(self._heap) < self.most or score > self._heap[0][0])

    def add(self, number: int, finding: Finding, pictures: Sequence[np.ndarray]) -> None:
        small = [_thumbnail(picture) for picture in pictures]
        heapq.heappush(self._heap, (finding.score, -number, finding, small))  # of equal scores the first image is kept
        if len(self._heap) > self.most:
            heapq.heappop(self._heap)

    def ordered(self) -> list[tuple[Finding, list[np.ndarray]]]:
        """The highest score first."""
        return [one[2:] for one in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


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

    The page shows the ``worst`` images and is one file. Table and page appear when all is done, each whole, and replace
    those of an earlier call; its overlays are removed. ``model`` is what they call the detector. An image whose picture
    cannot be drawn (removed meanwhile, say) keeps its score, with a message. Raises StorageError where nothing can be
    written.
    """
    folder, images = Path(folder), [Path(os.path.abspath(path)) for path in images]
    root = Path(os.path.commonpath([path.parent for path in images]))
    with locked(folder / ".lock", f"{folder}: another command is writing there; waiting for that one to end"):
        rows, kept, drawn = [], _Worst(worst), set()
        hidden = progress is None
        bar = tqdm(findings(detector, images), progress, len(images), disable=hidden, unit="image", mininterval=1)
        for number, one in enumerate(bar):
            name, message = _name(one.path, root), one.problem
            wanted = not message and (overlays == "all" or (overlays == "flagged" and one.flagged))
            if wanted or (not message and kept.wants(one.score)):
                try:
                    picture = datasets.load_picture(one.path)
                    covered = overlay(detector, one, picture)
                    if kept.wants(one.score):
                        kept.add(number, one, (picture, covered))
                    if wanted:
                        target = folder / "overlays" / f"{one.path.relative_to(root)}.jpg"
                        drawn.add(write_atomically(target, partial(_write_jpeg, covered)))
                except (DataError, StorageError) as error:
                    message = f"scored, but without a picture: {error}"
            rows.append([name, one.verdict, one.score, one.p_value, detector.threshold, message])
        table = pd.DataFrame(rows, columns=COLUMNS)
        result = Inspection(table, tuple(one for one, _ in kept.ordered()), root)
        facts = _facts(detector, result, model)
        write_text(folder / "scores.csv", table.to_csv(index=False))
        write_json(folder / "scores.json", facts)
        write_text(folder / "report.html", _page(detector, result, kept, facts))
        _remove_others(folder / "overlays", drawn)
    return result


def _remove_others(folder: Path, drawn: set[Path]) -> None:
    """Remove overlays that an earlier call has left; other files stay."""
    ours = tuple(f"{suffix}.jpg" for suffix in SUFFIXES)
    for path in list(folder.rglob("*.jpg")):
        if path not in drawn and path.name.lower().endswith(ours):
            path.unlink(missing_ok=True)


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


def overlay(detector: OneStepDetector, finding: Finding, picture: np.ndarray) -> np.ndarray:
    """The finding's map over ``picture``, its image at any size (datasets.load_picture); both uint8 (H, W, 3)."""
    size = picture.shape[1], picture.shape[0]
    heat = np.asarray(Image.fromarray(finding.heat).resize(size, Image.Resampling.BILINEAR))
    return plots.heat_overlay(picture, heat, colour_limits(detector), detector.threshold)


def _write_jpeg(picture: np.ndarray, path: Path | io.BytesIO) -> None:
    Image.fromarray(picture).save(path, "JPEG", quality=88)


def _data_url(picture: np.ndarray) -> str:
    file = io.BytesIO()
    _write_jpeg(picture, file)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _thumbnail(picture: np.ndarray, longest: int = 384) -> np.ndarray:
    image = Image.fromarray(picture)
    image.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _page(detector: OneStepDetector, result: Inspection, kept: _Worst, facts: dict) -> str:
    """The report as one HTML file: no script, no request, every name escaped."""
    shown = [
        {
            "name": result.name(one.path),
            "verdict": one.verdict,
            "score": one.score,
            "p_value": one.p_value,
            "picture": _data_url(picture),
            "overlay": _data_url(drawn),
        }
        for one, (picture, drawn) in kept.ordered()
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
