"""One's own parts: a model fitted on a folder of good images, and what it says of new ones, for people and scripts.

detector = fit_model(good_images(Path("parts/good")), Path("model/detector.safetensors"))
result = inspect(detector, find_images([Path("incoming")]), Path("report"))
result.table            # one row per image, as in report/scores.csv
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from ..data.images import SIDE_FILES, SUFFIXES, content_hash, load_picture
from ..data.layouts import list_categories, read_category
from ..detector import Detector
from ..files import InputError, RunError, one_line, printable, read_json, write_atomically, write_json, write_text
from ..settings import Reading, Settings

CHUNK = 32  # images in memory at a time
PASSED, FLAGGED, UNREADABLE = "passed", "flagged", "unreadable"
COLUMNS = ("image", "verdict", "score", "p_value", "threshold", "message")


# --- fitting ------------------------------------------------------------------------------------------------------


def good_images(folder: Path) -> list[Path]:
    """The good images of one kind of part: those of ``folder`` or its good/, or the training images of a category.

    Raises InputError where there are none, or where the folder holds several categories.
    """
    names = list_categories(folder)
    if len(names) > 1:
        some = ", ".join(map(printable, names[:5]))
        raise InputError(f"{printable(folder)}: holds {len(names)} categories ({some}); name the folder of one.")
    return list(read_category(folder, names[0]).train)


def checkpoint_of(path: Path) -> Path:
    """Where a fit of the model ``path`` keeps its state, so that a killed one resumes."""
    return path.with_suffix(".checkpoint")


def fit_model(images: Sequence[Path], path: Path, settings: Settings | None = None, reading: Reading | None = None,
              seed: int = 0, device: str = "auto", progress: str | None = "training", force: bool = False,
              alpha: float | None = None) -> Detector:  # fmt: skip
    """The detector of the good ``images``, saved as ``path``; ``alpha`` is kept in it, as the default of a verdict.

    If it was fitted on them before, it is loaded, and another reading or alpha is saved without training. A killed fit
    resumes. Raises InputError where ``path`` holds another model, unless ``force``, for an image that cannot be read,
    and for fewer than 3 of them.
    """
    settings, reading = settings or Settings(), reading or Reading()
    if len(images) < 3:
        raise InputError(f"fitting needs at least 3 good images, and about 20 to be of use; there are {len(images)}.")
    made_from = {"images": content_hash(images), "n_images": len(images)}
    if path.exists() and not force:
        try:
            detector = Detector.load(path, device)
        except InputError as error:
            raise InputError(f"{error} --force replaces it.") from None
        same = detector.extra | made_from == detector.extra and detector.seed == seed
        if not same or detector.settings.model_dump() != settings.model_dump():
            raise InputError(f"{printable(path)} holds another model; choose another folder, or --force it.")
        if detector.reading != reading:
            detector = detector.attach(images).with_reading(reading)
        elif detector.extra.get("alpha") == alpha:
            return detector
    else:
        detector = Detector(settings, reading, seed, device).fit(images, progress, checkpoint_of(path))
    detector.extra = made_from | {"alpha": alpha}
    detector.save(path)
    checkpoint_of(path).unlink(missing_ok=True)
    return detector


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
    """What a detector says of N images: ``table`` has one row per image and the columns COLUMNS."""

    table: pd.DataFrame
    worst: tuple[Finding, ...]  # those with the highest scores, the highest first
    root: Path  # the folder that the names in the table start from

    def count(self, verdict: str) -> int:
        """How many images are PASSED, FLAGGED or UNREADABLE."""
        return int((self.table.verdict == verdict).sum())

    def name(self, path: Path) -> str:
        return printable(path.relative_to(self.root).as_posix())


def find_images(places: Sequence[Path], leave_out: Path | None = None) -> list[Path]:
    """The image files among ``places``, and those in its folders and their subfolders (linked ones too), by name.

    Absolute, each once. Hidden files and what lies in the folder ``leave_out`` are left out; files of another type are,
    too, with a warning that names them. Raises InputError for a place that is not there, a folder that cannot be
    listed, a named file that is no image, and if there is no image at all.
    """
    found: dict[Path, None] = {}
    foreign: list[str] = []
    without = Path(os.path.abspath(leave_out)) if leave_out else None
    for place in (Path(os.path.abspath(place)) for place in places):
        if not place.exists():
            raise InputError(f"{printable(place)}: no such file or folder; check the path to the images.")
        if not place.is_dir() and place.suffix.lower() not in SUFFIXES:
            raise InputError(f"{printable(place)}: not an image by its name; there are {', '.join(SUFFIXES)}.")
        for path in _files(place, set()) if place.is_dir() else [place]:
            if path.suffix.lower() in SUFFIXES and not (without and path.is_relative_to(without)):
                found[path] = None
            elif path.suffix.lower() not in (*SIDE_FILES, *SUFFIXES):
                foreign.append(printable(path.name))
    if foreign:
        names = ", ".join(sorted(foreign)[:3]) + (", ..." if len(foreign) > 3 else "")
        warnings.warn(f"{len(foreign)} files of another type are left out ({names}); convert them.", stacklevel=2)
    if not found:
        raise InputError(f"{', '.join(map(printable, places))}: no image there ({', '.join(SUFFIXES)}); add some.")
    return list(found)


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The files of ``folder`` by name, then those of its folders, without hidden ones; each real folder once."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{printable(folder)}: cannot be listed; check its permissions.")
    seen.add(os.path.realpath(folder))
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield from (path for path in there if not path.is_dir())
    for path in there:
        if path.is_dir() and os.path.realpath(path) not in seen:
            yield from _files(path, seen)


def findings(detector: Detector, images: Sequence[Path], alpha: float = 0.05) -> Iterator[Finding]:
    """One Finding per image, in their order, a few images in memory at a time. An unreadable one stops no other."""
    threshold = detector.threshold(alpha)
    for start in range(0, len(images), CHUNK):
        yield from _read(detector, images[start : start + CHUNK], threshold)


def _read(detector: Detector, images: Sequence[Path], threshold: float) -> list[Finding]:
    try:
        found = detector.read(images)
    except ValueError as error:  # one of them, most often an InputError: which one is found out one at a time
        if len(images) == 1:
            return [Finding(images[0], problem=printable(one_line(error)))]
        return [finding for path in images for finding in _read(detector, [path], threshold)]
    numbers = zip(images, found.scores.tolist(), found.p_values.tolist(), found.maps, strict=True)
    return [Finding(path, score, p, score > threshold, heat) for path, score, p, heat in numbers]


def inspect(detector: Detector, images: Sequence[Path], folder: Path, worst: int = 20, overlays: str = "all",
            alpha: float = 0.05, progress: str | None = "scoring", model: str = "") -> Inspection:  # fmt: skip
    """Score ``images``; write ``folder``/scores.csv, scores.json (provenance), overlays/ and report.html.

    ``overlays``: all, flagged or none. The page shows the ``worst`` images and is one file; ``model`` is what it calls
    the detector. All files are made apart and replace those of an earlier call together, at the end; of its overlays,
    those that this call did not draw are removed. An image whose picture cannot be drawn (removed meanwhile, say) keeps
    its score, with a message. Raises OSError or RunError where nothing can be written.
    """
    images = [Path(os.path.abspath(path)) for path in images]
    root = Path(os.path.commonpath([path.parent for path in images]))
    threshold, rows, kept, drawn = detector.threshold(alpha), [], [], []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        found = findings(detector, images, alpha)
        for number, one in enumerate(tqdm(found, progress, len(images), disable=progress is None, unit="image")):
            name, message = one.path.relative_to(root).as_posix(), one.problem
            wanted = overlays == "all" or (overlays == "flagged" and one.flagged)
            among = worst > 0 and (len(kept) < worst or one.score > kept[-1][0])
            if not message and (wanted or among):
                try:
                    picture = load_picture(one.path)
                    covered = overlay(detector, one, picture, alpha)
                    if wanted:
                        target = Path(new, "overlays", f"{name}.jpg")
                        write_atomically(target, lambda path, drawing=covered: _write_jpeg(drawing, path))
                        drawn.append(f"{name}.jpg")
                    if among:  # of equal scores the first image is kept
                        kept.append((one.score, -number, one, [_data_url(p) for p in (picture, covered)]))
                        kept = sorted(kept, key=lambda item: item[:2], reverse=True)[:worst]
                except (InputError, RunError) as error:
                    message = f"scored, but without a picture: {error}"
            rows.append([_cell(name), one.verdict, one.score, one.p_value, threshold, _cell(message)])
        result = Inspection(pd.DataFrame(rows, columns=COLUMNS), tuple(one for _, _, one, _ in kept), root)
        facts = _facts(detector, result, alpha, threshold, model) | {"overlays": drawn}
        write_text(Path(new, "report.html"), _page(detector, result, [shown for *_, shown in kept], threshold, facts))
        write_text(Path(new, "scores.csv"), result.table.to_csv(index=False))
        write_json(Path(new, "scores.json"), facts)
        _replace(folder, Path(new), drawn)
    return result


def _replace(folder: Path, new: Path, drawn: Sequence[str]) -> None:
    """Move the new files to ``folder``; remove the overlays that an earlier call has drawn, and no other file."""
    place, before = (folder / "overlays").resolve(), []
    with contextlib.suppress(InputError, KeyError, TypeError):
        before = [str(name) for name in read_json(folder / "scores.json")["overlays"]]
    for name in before:
        if name not in drawn and (place / name).resolve().is_relative_to(place):
            (place / name).unlink(missing_ok=True)
    for name in (*(f"overlays/{name}" for name in drawn), "report.html", "scores.csv", "scores.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, folder / name)


def _cell(text: str) -> str:
    """``text`` for a table that a spreadsheet may open: no control characters, and no formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _facts(detector: Detector, result: Inspection, alpha: float, threshold: float, model: str) -> dict:
    return {
        "model": printable(model), "images": printable(os.path.relpath(result.root)), "n": len(result.table),
        **{verdict: result.count(verdict) for verdict in (FLAGGED, PASSED, UNREADABLE)},
        "alpha": alpha, "threshold": threshold if math.isfinite(threshold) else None,
        "n_calibration": len(detector.calibration_index), "settings": detector.settings.model_dump(),
        "reading": detector.reading.model_dump(), "seed": detector.seed, "device": str(detector.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


# --- pictures and the page ----------------------------------------------------------------------------------------


def colour_limits(detector: Detector) -> tuple[float, float]:
    """Where an overlay starts to colour and where it is full, in nats: from the median score of the held-out good
    images to four times as far from it as their highest. The model's own, so that all its overlays can be compared."""
    scores = detector.calibration()
    low, top = float(np.median(scores)), float(scores.max())
    return low, low + 4 * (top - low or 1.0)


def overlay(detector: Detector, finding: Finding, picture: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """The finding's map over ``picture``, its image at any size (data.images.load_picture); both uint8 (H, W, 3)."""
    from ..studies.figures import heat_overlay

    size = picture.shape[1], picture.shape[0]
    heat = np.asarray(Image.fromarray(finding.heat).resize(size, Image.Resampling.BILINEAR))
    with warnings.catch_warnings(action="ignore"):  # a threshold that flags nothing was warned of before
        return heat_overlay(picture, heat, colour_limits(detector), detector.threshold(alpha))


def _write_jpeg(picture: np.ndarray, path: Path | io.BytesIO, longest: int = 1024) -> None:
    image = Image.fromarray(picture)
    image.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    image.save(path, "JPEG", quality=88)


def _data_url(picture: np.ndarray) -> str:
    _write_jpeg(picture, file := io.BytesIO(), longest=384)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _page(detector: Detector, result: Inspection, pictures: Sequence[list[str]], threshold: float, facts: dict) -> str:
    """The report as one HTML file: no script, no request, every name escaped."""
    import jinja2

    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template).render(
        facts=facts,
        shown=[(result.name(one.path), one, *shown) for one, shown in zip(result.worst, pictures, strict=True)],
        unreadable=list(result.table[result.table.verdict == UNREADABLE].message),
        limits=colour_limits(detector),
        histogram=_histogram(detector, result.table.score.dropna().to_numpy(), threshold),
    )  # fmt: skip


def _histogram(detector: Detector, scores: np.ndarray, threshold: float) -> str:
    """The histogram as a data URL; empty if no image could be read."""
    import matplotlib.pyplot as plt

    from ..studies.figures import score_histogram

    if not len(scores):
        return ""
    figure = score_histogram(detector.calibration(), scores, threshold)
    figure.savefig(file := io.BytesIO(), format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
