"""A run's folder: its detectors, tables and figures, and the provenance of each file.

    results/<run>/<dataset>/<category>/seed<k>/    one detector and what the notebooks read from it
    results/<run>/                                 what is gathered from all of them

A notebook opens ``run = Run.open("05_score_and_detect", preset=preset, ...)`` with the parameters that it has, writes
only through it, and ends in ``run.finish()``: every file has one writer, however the notebook is executed.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from .. import metrics
from ..conformal import Scores
from ..data.cache import FeatureCache
from ..data.embedded import write_embedded
from ..data.images import content_hash, load_images, load_mask
from ..data.layouts import Category, category_hash, list_categories, read_category
from ..detector import Detector
from ..diffusion import resolve_device, resolve_precision
from ..files import InputError, file_sha256, in_few_colours, printable, read_json, write_atomically, write_json
from ..scoring import anomaly_map, image_score
from ..settings import Reading, Settings
from ..studies.resampling import auroc_interval, pixel_influences
from ..studies.tables import PULLS
from . import provenance
from .parts import checkpoint_of, load_same
from .presets import PRESETS, Parameters, project_root, validated

if TYPE_CHECKING:
    from accelerate import Accelerator
    from matplotlib.figure import Figure

UNIFIED = "unified"  # the "category" of a model of all categories
PACKAGES = ("torch", "diffusers", "numpy", "scipy", "scikit-learn")  # whose versions are kept with the results


@dataclass(frozen=True)
class TestSet:
    """A category's test images, ready to be scored."""

    category: Category
    image_size: int
    x0: Tensor  # (N, C, s, s) standardised features
    labels: np.ndarray  # (N,) bool, True = anomalous
    masks: np.ndarray | None  # (N, image_size, image_size) bool, None where the data set has none

    @property
    def names(self) -> list[str]:
        """Each test image's name in the tables: kind/file."""
        return [printable(f"{one.kind}/{one.path.name}") for one in self.category.test]

    def images(self, n: int) -> np.ndarray:
        """The first ``n`` images, (n, 3, H, W) in [0, 1], for timing."""
        return load_images([one.path for one in self.category.test[:n]], self.image_size)


class Run:
    """One notebook's place in a results folder."""

    @classmethod
    def open(cls, stage: str, own: Mapping[str, Any] | None = None, **parameters: Any) -> Run:
        """Validate a notebook's parameters (those of Parameters that it has, and its ``own``) and bind the folder.
        Raises InputError for a wrong one, an ``out`` among sources or data, and a folder of other Settings."""
        return cls(stage, own or {}, validated(Parameters, parameters))

    def __init__(self, stage: str, own: Mapping[str, Any], given: Parameters):
        self.stage, self.own, self.parameters, self.started = stage, dict(own), given, time.monotonic()
        self.root, self.preset, self.seed = project_root(), PRESETS[given.preset], given.seed
        self.settings = validated(Settings, {**self.preset.settings, **given.settings})
        self.asked = self.reading = validated(Reading, {**self.preset.reading, **given.reading})
        self.device, self.git = resolve_device(given.device), provenance.git_state(self.root)
        self.top = provenance.checked_out(self.root, given.out or f"results/{given.preset}", given.data)
        self.cache, self._written = self.root / ".cache" / "features", set()
        self.unified, self.dataset = given.category == UNIFIED, None
        self.folder = self.home = self.top  # of this notebook's files, and of the detector
        self.category: Category | None = None  # the one under test; the data set's first where a notebook has no choice
        self.trained: tuple[Category, ...] = ()  # those that the detector is trained on
        if "data" in given.model_fields_set:
            self._find_data()
        self._bind()

    def _find_data(self) -> None:
        given, named = self.parameters, self.parameters.model_fields_set
        data = self.root / given.data if given.data else write_embedded(self.root / "data" / "textures")
        names = list_categories(data)
        self.dataset = provenance.dataset_name(data)
        self.credit = provenance.credit(self.dataset)
        self.category = read_category(data, (given.test if self.unified else given.category) or names[0])
        self.trained = tuple(read_category(data, name) for name in names) if self.unified else (self.category,)
        self.home = self.top / self.dataset / (UNIFIED if self.unified else self.category.name)
        self.home /= f"seed{self.seed}" if "seed" in named else ""
        if "category" in named:
            self.folder = self.home / self.category.name if self.unified else self.home

    def _bind(self) -> None:
        """One folder, one preset and one Settings: a table must never mix networks that were made in different ways.
        A notebook without the parameter settings binds nothing, and works with those of the folder."""
        path, mine = self.top / "run.json", {"preset": self.parameters.preset, "settings": self.settings.model_dump()}
        binds = "settings" in self.parameters.model_fields_set
        if binds and not path.exists():
            write_json(path, mine)
        kept = read_json(path) if path.exists() else mine
        if not binds:
            self.settings = validated(Settings, kept["settings"])
            mine["settings"] = kept["settings"]
        theirs, ours = ({"preset": one["preset"], **one["settings"]} for one in (kept, mine))
        if odd := [name for name in theirs | ours if theirs.get(name) != ours.get(name)]:
            changed = "; ".join(f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} now" for name in odd)
            said = f"{self.show(self.top)} holds results of other settings ({changed})"
            raise InputError(f"{said}; choose another out, or delete it.")

    @property
    def training(self) -> list[Path]:
        """The good images that the detector is trained on and calibrated with."""
        return [path for category in self.trained for path in category.train]

    @property
    def label(self) -> str:
        return f"{self.category.name}, seed {self.seed}" + (" (unified)" if self.unified else "")

    @property
    def place(self) -> dict[str, Any]:
        """The first columns of a table that grows over detectors."""
        return {"dataset": self.dataset, "category": self.category.name, "seed": self.seed, "unified": self.unified}

    def show(self, path: Path) -> str:
        """``path`` as it reads from the project's folder, for messages."""
        return printable(os.path.relpath(path, self.root))

    def print_header(self) -> None:
        """Two lines for a notebook's set-up cell: commit, detector, device, folder. Warnings become one line."""
        what = "" if self.folder == self.top else f" | {self.label}"
        state = f"commit {self.git[0][:10]}{' (with changes)' if self.git[1] else ''}"
        print(f"{self.stage} | preset {self.parameters.preset}{what} | {state}")
        print(f"{device_name(self.device)} | results in {self.show(self.folder)}")
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without a path of this machine

    def detector(self, progress: bool = True, accelerator: Accelerator | None = None) -> Detector:
        """The detector of these Settings, images and seed: loaded if it was trained before, by the same code; else
        trained and saved. It knows its good images, so that it can be read in any way."""
        detector = self._trained("detector", self.settings, progress, accelerator)
        self.reading = detector.reading  # its t is a number now
        return detector

    def variant(self, name: str, changes: Mapping[str, Any]) -> Detector:
        """As :meth:`detector`, with changed Settings, kept as variants/<name>.safetensors."""
        return self._trained(f"variants/{name}", validated(Settings, self.settings.model_dump() | dict(changes)))

    def _trained(self, name: str, settings: Settings, progress: bool = True, accelerator=None) -> Detector:
        path, store = self.home / f"{name}.safetensors", FeatureCache(self.cache)
        data = [content_hash(category.train) for category in self.trained]
        made_from = {"data": data, "code": provenance.training_code()}
        if detector := load_same(path, settings, self.seed, made_from, str(self.device), store):
            detector = detector.attach(self.training).with_reading(self.asked)
        else:
            detector = Detector(settings, self.asked, self.seed, str(self.device), store)
            detector.fit(self.training, self.label if progress else None, checkpoint_of(path), accelerator)
            if accelerator and not accelerator.is_main_process:
                return detector
            self._written.add(detector.save(path, made_from))
        checkpoint_of(path).unlink(missing_ok=True)
        return detector

    def held_out_images(self, detector: Detector) -> np.ndarray:
        """The held-out good images of the category under test, (n, 3, H, W) in [0, 1]."""
        paths, own = self.training, set(self.category.train)
        held_out = [paths[i] for i in detector.calibration_index if paths[i] in own]
        return load_images(held_out, self.settings.image_size)

    def test_set(self, detector: Detector) -> TestSet:
        """The category's test images as the detector sees them. Raises InputError where there is nothing to measure."""
        category, size = self.category, detector.settings.image_size
        if {one.is_anomalous for one in category.test} != {False, True}:
            said = f"{printable(category.root)} has no good and anomalous test images, so there is nothing to measure"
            raise InputError(f"{said}; the detector that 03_train saved can score images all the same.")
        masks = [load_mask(one.mask, size) for one in category.test] if category.has_masks else None
        x0 = detector.features([one.path for one in category.test], progress=category.name)
        labels = np.array([one.is_anomalous for one in category.test])
        return TestSet(category, size, x0, labels, np.stack(masks) if masks else None)

    def row(self, test: TestSet, method: str, found: Scores | Tensor, reading: Reading | Mapping | None = None,
            train_s: float = math.nan, ms_per_image: float = math.nan, scores: np.ndarray | Tensor | None = None,
            ) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:  # fmt: skip
        """One method's row of metrics.csv, its row of intervals.csv and its rows of image_scores.csv.

        ``found`` is what a detector read, or anomaly values (N, s, s); ``reading`` says how (None where a method has no
        such thing), by default as ``found`` was read, or as the run reads; ``scores`` (N,) are those of its own rule.
        """
        reading = reading or getattr(found, "reading", self.reading)
        how = reading.model_dump() if isinstance(reading, Reading) else reading
        nll, scores = (found.nll, found.scores) if isinstance(found, Scores) else (found, scores)
        scores = image_score(nll, how["image_score"]) if scores is None else scores
        scores = torch.as_tensor(scores).double().numpy()
        maps = None if test.masks is None else anomaly_map(nll, test.image_size).numpy()
        if self.unified != self.preset.unified:
            method += ("," if ":" in method else ":") + (UNIFIED if self.unified else "per-category")
        head = {"dataset": self.dataset, "category": test.category.name, "seed": self.seed, "method": method}
        row = head | {name: how[name] for name in ("input", "t", "density", "image_score")}
        row |= {"n_test_good": int((~test.labels).sum()), "n_test_anomalous": int(test.labels.sum())}
        row |= metrics.evaluate(scores, test.labels, maps, test.masks)
        row |= {"train_s": round(train_s, 2), "ms_per_image": round(ms_per_image, 2), "commit": self.git[0]}
        value, low, high = auroc_interval(scores, test.labels, seed=self.seed)
        interval = head | {"metric": "I-AUROC", "value": value, "lo": low, "hi": high, "n": len(scores)}
        images = head | {"image": test.names, "anomalous": test.labels, "score": scores}
        if maps is not None and test.masks.any():
            images |= {PULLS[metric]: pulls for metric, pulls in pixel_influences(maps, test.masks).items()}
        return row, interval, pd.DataFrame(images)

    def save(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let ``write(path)`` make a file of this notebook, atomically. A cell may end in it: it shows no path."""
        self._written.add(write_atomically(self.folder / name, write))

    def save_table(self, table: pd.DataFrame, name: str) -> None:
        self.save(name, lambda path: table.to_csv(path, index=False))

    def save_figure(self, figure: Figure, name: str) -> None:
        """figures/``name`` as PDF, and PNG of 256 colours, dithered; without a date, so that its bytes are its own."""
        self.save(f"figures/{name}.pdf", lambda path: figure.savefig(path, metadata={"CreationDate": None}))
        figure.savefig(drawn := io.BytesIO(), dpi=300)
        picture = in_few_colours(Image.open(drawn))
        self.save(f"figures/{name}.png", lambda path: picture.save(path, "png", optimize=True, dpi=(300, 300)))

    def read_table(self, name: str) -> pd.DataFrame:
        """A table that another notebook left in this folder. Raises InputError unless that one got to its end."""
        if not provenance.vouched(path := self.folder / name):
            state = "is not what its notebook finished" if path.is_file() else "is missing"
            raise InputError(f"{self.show(path)} {state}: run the notebook that writes it, to its end.")
        return _read_csv(path)

    def find(self, name: str) -> list[Path]:
        """The files of this name that finished notebooks left below the run's folder, sorted; others are named and left
        out. Raises InputError for those that were read in different ways."""
        made = {path: provenance.vouched(path) for path in sorted(self.top.glob(f"*/*/**/{name}"))}
        if unfinished := [self.show(path) for path, one in made.items() if not one]:
            print(f"left out, their notebook did not get to its end: {', '.join(unfinished)}")
        readings = sorted({json.dumps(one["reading"]) for one in made.values() if one and one["reading"]})
        if len(readings) > 1:
            raise InputError(f"{name}: different readings, {' and '.join(readings)}; make all by one or choose an out.")
        return [path for path, one in made.items() if one]

    def gather(self, name: str) -> pd.DataFrame:
        """All detectors' tables of this name as one. Raises InputError if there is none, and as :meth:`find`."""
        tables = [_read_csv(path) for path in self.find(name)]
        if not tables:
            raise InputError(f"{self.show(self.top)} holds no finished {name}; run the notebooks that write it first.")
        return pd.concat(tables, ignore_index=True)

    def finish(self) -> None:
        """Write provenance/<stage>.json: what made this notebook's files, and the SHA-256 of each."""
        self._bind()  # of two runs that start at once with different settings, one is refused here at the latest
        given = self.parameters.model_dump(include=self.parameters.model_fields_set)
        made = {
            "stage": self.stage, "commit": self.git[0], "dirty": self.git[1], "parameters": given | self.own,
            "settings": self.settings.model_dump(), "reading": self.asked.model_dump() if "reading" in given else None,
            "dataset": self.dataset, "data_sha256": {one.name: category_hash(one) for one in self.trained},
            "precision": resolve_precision(self.settings.precision, self.device), "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "device": device_name(self.device), "wall_s": round(time.monotonic() - self.started, 1),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": {os.path.relpath(path, self.folder): file_sha256(path) for path in sorted(self._written)},
        }  # fmt: skip
        write_json(self.folder / "provenance" / f"{self.stage}.json", made)
        print(f"{self.stage}: {len(self._written)} files under {self.show(self.folder)}, {made['wall_s']:.0f} s")


def device_name(device: torch.device) -> str:
    """What computes, in words that a reader of a table needs."""
    cpu = f"{device.type}, {platform.machine()}, {os.cpu_count()} cores"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu


_read_csv = partial(pd.read_csv, dtype={"category": str})  # BTAD's categories are names, not numbers
