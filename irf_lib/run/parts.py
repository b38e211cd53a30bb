"""One's own parts: a model fitted on a folder of good images, and what it says of new ones, for people and scripts.

detector = fit_model(good_images(Path("parts/good")), Path("model/detector.safetensors"))
result = inspect(detector, find_images([Path("incoming")]), Path("report"))
result.table            # one row per image, as in report/scores.csv
"""

import base64
import contextlib
import io
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from ..conformal import conformal_threshold
from ..data.images import SIDE_FILES, SUFFIXES, content_hash, load_picture
from ..data.layouts import list_categories, read_category
from ..detector import Detector
from ..files import InputError, RunError, one_line, printable, read_json, write_atomically, write_json
from ..settings import Reading, Settings

PASSED, FLAGGED, UNREADABLE = "passed", "flagged", "unreadable"
COLUMNS = ("image", "verdict", "score", "p_value", "threshold", "message")


def good_images(folder: Path) -> list[Path]:
    """The good images of one kind of part: those of ``folder`` or its good/, or the training images of a category.
    Raises InputError where there are none, or where the folder holds several categories."""
    name, *more = list_categories(folder)
    if more:
        raise InputError(f"{printable(folder)}: holds several categories ({name}, {more[0]}); name the folder of one.")
    return list(read_category(folder, name).train)


def checkpoint_of(path: Path) -> Path:
    """Where a fit of the model ``path`` keeps its state, so that a killed one resumes."""
    return path.with_suffix(".checkpoint")


def load_same(path: Path, settings: Settings, seed: int, made_from: Mapping, device: str = "auto",
              cache: Callable | None = None) -> Detector | None:  # fmt: skip
    """The detector in ``path`` if it has these settings, seed and ``made_from``; None if another, damaged or none."""
    with contextlib.suppress(InputError):
        one = Detector.load(path, device, cache)
        same = (one.settings.model_dump(), one.seed) == (settings.model_dump(), seed)
        return one if same and made_from.items() <= one.extra.items() else None


def fit_model(images: Sequence[Path], path: Path, settings: Settings | None = None, reading: Reading | None = None,
              seed: int = 0, device: str = "auto", progress: str | None = "training", force: bool = False,
              alpha: float | None = None) -> Detector:  # fmt: skip
    """The detector of the good ``images``, saved as ``path``; ``alpha`` is kept in it, as the default of a verdict.

    If it was fitted on them before, it is loaded, and another reading or alpha is saved without training. A killed fit
    resumes. Raises InputError for another model in ``path``, unless ``force``."""
    settings, reading = settings or Settings(), reading or Reading()
    made_from = {"images": content_hash(images), "n_images": len(images)}
    detector = None if force else load_same(path, settings, seed, made_from, device)
    if detector is None:
        if path.exists() and not force:
            raise InputError(f"{printable(path)} holds another model, or is damaged; take another folder or --force.")
        detector = Detector(settings, reading, seed, device).fit(images, progress, checkpoint_of(path))
    elif detector.asked != reading:
        detector = detector.attach(images).with_reading(reading)
    elif detector.extra.get("alpha") == alpha:
        return detector
    detector.save(path, made_from | {"alpha": alpha})
    checkpoint_of(path).unlink(missing_ok=True)
    return detector


@dataclass(frozen=True)
class Finding:
    """What a detector says of one image; where it could not be read, ``problem`` says why and the rest is empty."""

    path: Path
    verdict: str  # PASSED, FLAGGED or UNREADABLE
    score: float = math.nan  # nats, high = anomalous
    p_value: float = math.nan
    heat: np.ndarray | None = None  # (image_size, image_size), nats
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """What a detector says of N images: ``table`` has one row per image and the columns COLUMNS."""

    table: pd.DataFrame
    worst: tuple[Finding, ...]  # those with the highest scores, the highest first

    def count(self, verdict: str) -> int:
        """How many images are PASSED, FLAGGED or UNREADABLE."""
        return int((self.table.verdict == verdict).sum())


def find_images(places: Sequence[Path], leave_out: Path | None = None) -> list[Path]:
    """The image files among ``places``, and those in its folders and their subfolders (linked ones too), by name.

    Absolute, each once. Hidden files and the folder ``leave_out`` are left out, and files of another type, with a
    warning. Raises InputError for a place that is missing or no image, and where there is none."""
    found: list[Path] = []
    for place in (Path(os.path.abspath(place)) for place in places):
        if not place.exists():
            raise InputError(f"{printable(place)}: no such file or folder; check the path to the images.")
        if not place.is_dir() and place.suffix.lower() not in SUFFIXES:
            raise InputError(f"{printable(place)}: not an image by its name; there are {', '.join(SUFFIXES)}.")
        found += _files(place, leave_out) if place.is_dir() else [place]
    images = [path for path in dict.fromkeys(found) if path.suffix.lower() in SUFFIXES]
    foreign = [printable(path.name) for path in found if path.suffix.lower() not in (*SIDE_FILES, *SUFFIXES)]
    if foreign:
        names = ", ".join(foreign[:3])
        warnings.warn(f"{len(foreign)} files of another type are left out ({names}); convert them.", stacklevel=2)
    if not images:
        raise InputError(f"{', '.join(map(printable, places))}: no image there ({', '.join(SUFFIXES)}); add some.")
    return images


def _files(top: Path, leave_out: Path | None) -> Iterator[Path]:
    """The files of ``top`` by name, then those of its folders, without hidden ones; each real folder once."""

    def refuse(error: OSError) -> None:  # os.walk would skip a folder that cannot be listed
        raise error

    seen = {os.path.realpath(leave_out)} if leave_out else set()
    for folder, below, names in os.walk(top, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def findings(detector: Detector, images: Sequence[Path], alpha: float = 0.05, at_once: int = 32) -> Iterator[Finding]:
    """One Finding per image, in their order, with ``at_once`` images in memory. An unreadable one stops no other."""
    threshold = conformal_threshold(detector.calibration(), alpha)
    for paths in (images[start : start + at_once] for start in range(0, len(images), at_once)):
        try:
            found = detector.read(paths)
        except ValueError as error:  # one of them, most often an InputError: which one is found out one at a time
            alone = [Finding(paths[0], UNREADABLE, problem=printable(one_line(error)))]
            yield from alone if len(paths) == 1 else findings(detector, paths, alpha, 1)
        else:
            verdicts = np.where(found.scores > threshold, FLAGGED, PASSED).tolist()
            columns = paths, verdicts, found.scores.tolist(), found.p_values.tolist(), found.maps
            yield from (Finding(*one) for one in zip(*columns, strict=True))


def inspect(detector: Detector, images: Sequence[Path], folder: Path, worst: int = 20, overlays: str = "all",
            alpha: float = 0.05, progress: str | None = "scoring", model: str = "") -> Inspection:  # fmt: skip
    """Score ``images``; write ``folder``/scores.csv, scores.json (provenance), overlays/ and report.html.

    ``overlays``: all, flagged or none. The page shows the ``worst`` images and calls the detector ``model``. All files
    are made apart and replace those of an earlier call together, at the end. An image whose picture cannot be drawn
    (removed meanwhile, say) keeps its score, with a message. Raises OSError or RunError where nothing can be written.
    """
    images = [Path(os.path.abspath(path)) for path in images]
    root = Path(os.path.commonpath([path.parent for path in images]))
    threshold, rows, kept, drawn, new = detector.threshold(alpha), [], [], [], folder / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a call that was killed
    new.mkdir(parents=True)
    try:
        found = findings(detector, images, alpha)
        for one in tqdm(found, progress, len(images), disable=progress is None, unit="image"):
            name, message = one.path.relative_to(root).as_posix(), one.problem
            wanted = overlays in ("all", one.verdict)
            among = len(kept) < worst or (kept and one.score > kept[-1][0].score)
            if not message and (wanted or among):
                try:
                    picture = load_picture(one.path)
                    covered = overlay(detector, one, picture, alpha)
                    if wanted:
                        write_atomically(new / "overlays" / f"{name}.jpg", partial(_write_jpeg, covered))
                        drawn.append(f"{name}.jpg")
                    if among:  # the sort is stable: of equal scores the first image is kept
                        small = [_data_url("jpeg", partial(_write_jpeg, p, longest=384)) for p in (picture, covered)]
                        kept = sorted([*kept, (one, printable(name), *small)], key=lambda item: -item[0].score)[:worst]
                except (InputError, RunError) as error:
                    message = f"scored, but without a picture: {error}"
            rows.append([_cell(name), one.verdict, one.score, one.p_value, threshold, _cell(message)])
        result = Inspection(pd.DataFrame(rows, columns=COLUMNS), tuple(one for one, *_ in kept))
        facts = {
            "model": printable(model), "images": printable(os.path.relpath(root)), "n": len(images),
            **{verdict: result.count(verdict) for verdict in (FLAGGED, PASSED, UNREADABLE)},
            "alpha": alpha, "threshold": threshold if math.isfinite(threshold) else None,
            "n_calibration": len(detector.calibration_index), "settings": detector.settings.model_dump(),
            "reading": detector.reading.model_dump(), "seed": detector.seed, "device": str(detector.device),
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "overlays": drawn,
        }  # fmt: skip
        (new / "report.html").write_text(_page(detector, result.table, kept, facts), encoding="utf-8")
        result.table.to_csv(new / "scores.csv", index=False)
        write_json(new / "scores.json", facts)
        _replace(folder, new, drawn)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return result


def _replace(folder: Path, new: Path, drawn: Sequence[str]) -> None:
    """Move the new files to ``folder``; remove the overlays that an earlier call has drawn, and no other file."""
    place, before = (folder / "overlays").resolve(), []
    with contextlib.suppress(InputError, KeyError, TypeError):
        before = [str(name) for name in read_json(folder / "scores.json")["overlays"]]
    for name in set(before) - set(drawn):
        if (place / name).resolve().is_relative_to(place):
            (place / name).unlink(missing_ok=True)
    for name in (*(f"overlays/{name}" for name in drawn), "report.html", "scores.csv", "scores.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, folder / name)


def _cell(text: str) -> str:
    """``text`` for a table that a spreadsheet may open: no control characters, and no formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def colour_limits(detector: Detector) -> tuple[float, float]:
    """Where an overlay starts to colour and where it is full, in nats: from the median score of the held-out good
    images to four times as far from it as their highest. So all overlays of a model can be compared."""
    scores = detector.calibration()
    low, top = float(np.median(scores)), float(scores.max())
    return low, low + 4 * (top - low or 1.0)


def overlay(detector: Detector, finding: Finding, picture: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """The finding's map over ``picture``, its image at any size (data.images.load_picture), both uint8 (H, W, 3): in
    colour as :func:`colour_limits` says, with a line around what is above the threshold."""
    from matplotlib import colormaps

    size, (low, high) = (picture.shape[1], picture.shape[0]), colour_limits(detector)
    heat = np.asarray(Image.fromarray(finding.heat).resize(size, Image.Resampling.BILINEAR))
    strength = ((heat - low) / (high - low)).clip(0, 1)[..., None]
    colour = colormaps["inferno"](0.25 + 0.75 * strength[..., 0])[..., :3] * 255
    mixed = picture * (1 - 0.65 * strength) + colour * 0.65 * strength
    above = heat > conformal_threshold(detector.calibration(), alpha)
    mixed[above & ~ndimage.binary_erosion(above)] = (0, 255, 255)
    return mixed.round().astype(np.uint8)


def _write_jpeg(picture: np.ndarray, file: Path | io.BytesIO, longest: int = 1024) -> None:
    image = Image.fromarray(picture)
    image.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    image.save(file, "JPEG", quality=88)


def _data_url(kind: str, write: Callable[[io.BytesIO], Any]) -> str:
    write(file := io.BytesIO())
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _page(detector: Detector, table: pd.DataFrame, shown: Sequence[tuple], facts: dict) -> str:
    """The report as one HTML file, with a histogram of the scores: no script, no request, every name escaped."""
    import jinja2
    from matplotlib.figure import Figure

    from ..studies.figures import score_histogram

    scores, histogram = table.score.dropna().to_numpy(), ""
    if len(scores):
        figure, labels = Figure(figsize=(4.9, 1.9), layout="constrained"), ("held-out good", "these images")
        score_histogram(figure.subplots(), detector.calibration(), scores, labels, table.threshold[0])
        histogram = _data_url("png", partial(figure.savefig, format="png", dpi=110, bbox_inches="tight"))
    text = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    page = jinja2.Template(text, autoescape=True, undefined=jinja2.StrictUndefined)
    unreadable, limits = table.message[table.verdict == UNREADABLE], colour_limits(detector)
    return page.render(facts=facts, histogram=histogram, limits=limits, shown=shown, unreadable=list(unreadable))
