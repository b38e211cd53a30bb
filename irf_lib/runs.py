"""A run: its parameters, its files and their provenance, and the notebooks that papermill executes for it.

Every notebook opens the same object, ``run = Run.open("03_train", preset=preset, ...)``, writes only through it, and
ends with ``run.finish()``; so the runner, plain papermill and Run All in JupyterLab leave the same files.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from . import datasets, embedded, metrics
from .datasets import Category
from .detector import DetectorSettings, OneStepDetector, remove_leftovers
from .diffusion import ALONE, Processes, resolve_device, resolve_precision
from .scoring import anomaly_map, image_score
from .storage import StorageError, cannot_write, file_sha256, locked, read_json, write_atomically, write_json


class RunError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class ParameterError(RunError):
    """A parameter or option that is unknown, mistyped or out of range; nothing was started."""


# --- what there is to run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """A named setting: what it is for, the seeds it runs by default, and what it changes in DetectorSettings."""

    purpose: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    unified: bool = False


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        "the embedded data in minutes on two CPU cores; what CI runs",
        seeds=(0,),
        settings={"feature_size": 16, "patch_size": 2, "steps": 100, "width": 128, "depth": 3},
    ),
    "reference": Preset("real data on a CPU: a quarter of an hour a category and seed", seeds=(0, 1, 2), settings={}),
    "paper": Preset(
        "the published setting, as far as it is known from InvAD's code: one model for all categories, on a GPU",
        seeds=(0, 1, 2),
        settings={
            "backbone": "efficientnet-b4",
            "feature_size": 16,
            "patch_size": 1,
            "input": "clean",
            "width": 2048,
            "depth": 16,
            "precondition": False,
            "optimizer": "adamw",
            "epochs": 300,
            "batch_size": 32,
            "lr": 5e-5,
            "warmup": 40 / 300,
            "ema": 0.03,  # about the published 0.999 a step on MVTec AD's 3,629 training images
        },
        unified=True,
    ),
}


@dataclass(frozen=True)
class Stage:
    """One notebook: the question it answers, and the files it reads and leaves, as globs under the results folder."""

    question: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    needs_labels: bool = False  # whether it makes sense only with good and anomalous test images
    alone: bool = False  # whether no other notebook may run beside it


STAGES: dict[str, Stage] = {
    "00_start_here": Stage("What is here, and in which order does one read it?"),
    "01_data": Stage(
        "What do the images look like, and do raw pixels give the defects away?",
        writes=("data.csv", "raw_pixels.csv", "figures/samples.*"),
    ),
    "02_toy_ddpm": Stage(
        "Does a DDPM trained by our code reach the optimum that is known in closed form?",
        writes=("toy.csv", "figures/toy_optimum.*"),
    ),
    "03_train": Stage(
        "Does the DDPM learn what normal features look like?",
        writes=(
            "training.csv",
            "denoising.csv",
            "detectors/*/*/seed*/detector.json",
            "detectors/*/*/seed*/detector.*.safetensors",
            "figures/training.*",
        ),
    ),
    "04_inverse_residual_field": Stage(
        "What is the inverse residual field of one image, step by step?",
        reads=("detectors/*/*/seed*/detector.json",),
        writes=("field.csv", "figures/field.*"),
        needs_labels=True,
    ),
    "05_score_and_detect": Stage(
        "How well does one network evaluation detect and localise defects?",
        reads=("detectors/*/*/seed*/detector.json",),
        writes=(
            "metrics.csv",
            "intervals.csv",
            "image_scores.csv",
            "decisions.csv",
            "scores/*.npz",
            "figures/scores.*",
        ),
        needs_labels=True,
    ),
    "06_timestep_invariance": Stage(
        "Does the inverse residual field hold for any neighbouring timestep?",
        reads=("detectors/*/*/seed*/detector.json",),
        writes=(
            "timestep_invariance.csv",
            "timestep_scores.csv",
            "timestep_choice.csv",
            "dip.csv",
            "breaks.csv",
            "claims.csv",
            "figures/invariance_field.*",
            "figures/invariance_ranking.*",
            "figures/invariance_detection.*",
            "figures/invariance_scores.*",
            "figures/invariance_dip.*",
            "figures/invariance_breaks.*",
        ),
        needs_labels=True,
    ),
    "07_normality": Stage(
        "Is the field of good parts Gaussian, and does it matter?",
        reads=("detectors/*/*/seed*/detector.json", "timestep_invariance.csv"),
        writes=(
            "normality.csv",
            "normality_tests.csv",
            "normality_holm.csv",
            "normality_controls.csv",
            "synthetic_controls.csv",
            "autocorrelation.csv",
            "qq.csv",
            "claims.csv",
            "figures/normality_qq.*",
            "figures/normality_joint.*",
            "figures/normality_controls.*",
            "figures/normality_timesteps.*",
            "figures/normality_detection.*",
        ),
        needs_labels=True,
    ),
    "08_ablations": Stage(
        "Which of our choices matter?",
        reads=("detectors/*/*/seed*/detector.json", "metrics.csv"),
        writes=("ablation_training.csv", "ablation_definition.csv", "figures/ablations.*"),
        needs_labels=True,
    ),
    "09_tables": Stage(
        "What does one network evaluation give beside what one would pick instead?",
        reads=("metrics.csv", "image_scores.csv"),
        writes=("summary.csv", "summary_table.md", "published_table.md", "claims.csv", "figures/differences.*"),
        needs_labels=True,
    ),
    "10_figures": Stage(
        "How do the results look on one page?",
        reads=("metrics.csv", "decisions.csv", "scores/*.npz"),
        writes=("figures/localisation.*", "figures/methods.*", "figures/timesteps.*"),
        needs_labels=True,
    ),
    "11_pipelines": Stage(
        "What happens to an image on its way to a score, in each pipeline?",
        reads=("detectors/*/*/seed*/detector.json",),
        writes=("trajectories.csv", "separation.csv", "figures/pipelines.*", "figures/trajectories.*"),
        needs_labels=True,
    ),
    "12_speed": Stage(
        "What does one network evaluation cost, and what do more cost?",
        writes=(
            "benchmark.csv",
            "benchmark_rounds.csv",
            "speed_targets.csv",
            "claims.csv",
            "figures/cost_parts.*",
            "figures/cost_rivals.*",
        ),
        alone=True,
    ),
    "13_your_own_parts": Stage(
        "How does one inspect one's own parts?",
        writes=("own_parts.csv", "own_parts/report.html", "figures/own_parts.*"),
    ),
    "14_explore": Stage(
        "What changes when one moves t, the input, the density or the threshold?",
        reads=("detectors/*/*/seed*/detector.json",),
        writes=("explore.csv", "figures/explore.*"),
        needs_labels=True,
    ),
}

METRIC_COLUMNS = (
    "dataset", "category", "seed", "method", "input", "t", "density", "image_score", "n_test_good", "n_test_anomalous",
    "I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO", "train_s", "ms_per_image", "commit",
)  # fmt: skip

VERDICTS = ("holds", "holds under a stated condition", "does not hold", "not tested")
CLAIM_COLUMNS = ("claim", "statement", "evidence", "verdict", "interval", "n", "dataset", "unified", "notebook")

# The modules that a detector's weights, density and threshold depend on.
WEIGHTS_CODE = (
    "detector", "scorer", "folding", "diffusion", "irf", "scoring", "features", "feature_store", "datasets",
)  # fmt: skip

# The packages whose versions a result depends on, for its provenance.
PACKAGES = ("torch", "diffusers", "numpy", "scipy", "scikit-learn")

# What a figure that shows images of a known data set has to name.
CREDITS = {
    "textures": "Images: generated by irf_lib",
    "mvtec": "Images: MVTec AD (Bergmann et al. 2019), CC BY-NC-SA 4.0",
    "visa": "Images: VisA (Zou et al. 2022), CC BY 4.0",
}


def project_root() -> Path:
    """The folder that holds notebooks/ and irf_lib/: the working directory or one above it, else the package's own."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "irf_lib" / "__init__.py").is_file():
            return folder
    return Path(__file__).resolve().parents[1]


def notebook_paths(root: Path) -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


# --- parameters ---------------------------------------------------------------------------------------------------


class RunParameters(BaseModel):
    """The parameters that all notebooks share; wrong names and types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    preset: Literal["quick", "reference", "paper"] = "quick"
    data: str = ""  # a folder of images, relative to the project; "" is the embedded data
    categories: list[str] = []  # [] is all there are
    seeds: list[Annotated[int, Field(ge=0)]] = []  # [] is the preset's
    unified: Literal["auto", "yes", "no"] = "auto"  # one model for all categories; auto is the preset's choice
    settings: dict[str, Any] = {}  # changes to the preset's DetectorSettings
    out: str = ""  # results folder, relative to the project; "" is results/<preset>
    device: str = "auto"

    @property
    def part(self) -> str:
        """Which part of all that could be run this is, for names of files; "" where nothing was chosen.

        Runs of different data, categories or seeds have different parts: they may fill one results folder side by side,
        and what each keeps of itself must not bear the other's name.
        """
        words = [Path(self.data).name, *self.categories, {"auto": "", "yes": "unified", "no": "single"}[self.unified]]
        name = "_".join([*filter(None, words), *(f"seed{seed}" for seed in self.seeds)])
        short = len(name) <= 100  # a file's name may have 255 bytes
        return name if short else f"{name[:80]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"

    @field_validator("seeds", "categories")
    @classmethod
    def _no_value_twice(cls, values: list) -> list:
        if len(set(values)) < len(values):
            raise ValueError("the same value stands there twice")  # and would be trained on twice
        return values


def explain(error: ValidationError) -> str:
    """pydantic's report in one line: which parameter, what is wrong with it."""
    return "; ".join(
        f"{'.'.join(str(part) for part in one['loc']) or 'parameters'}: {one['msg']} (got {one['input']!r})"
        for one in error.errors()
    )


@dataclass(frozen=True)
class Job:
    """One detector to train: its name (a category, or 'unified'), its seed, and the categories it covers."""

    name: str
    seed: int
    categories: tuple[Category, ...]

    @property
    def train(self) -> list[Path]:
        return [path for category in self.categories for path in category.train]

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class TestSet:
    """A category's test images, ready to be scored."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    key: str  # the name of its pieces
    category: Category
    seed: int
    unified: bool
    image_size: int
    x0: Tensor  # (N, C, s, s) standardised features
    labels: np.ndarray  # (N,) bool, True = anomalous
    masks: np.ndarray | None  # (N, image_size, image_size) bool, None where the data set has none

    @property
    def names(self) -> list[str]:
        """Each test image's name in the tables: kind/file."""
        return [f"{one.kind}/{one.path.name}" for one in self.category.test]

    def images(self, n: int) -> np.ndarray:
        """The first ``n`` images, (n, 3, H, W) in [0, 1], for timing."""
        return datasets.load_images([one.path for one in self.category.test[:n]], self.image_size)


@dataclass
class Run:
    """One results folder, and everything that a notebook needs to fill its part of it."""

    stage: str
    parameters: RunParameters
    settings: DetectorSettings
    root: Path
    folder: Path
    own: Mapping[str, Any] = field(default_factory=dict)  # the parameters that only this notebook has
    started: float = field(default_factory=time.monotonic)
    _written: list[Path] = field(default_factory=list)
    _key: str = ""
    _code: str = ""
    _cells: tuple[str, ...] = ()  # the notebook's code cells, without its parameters
    _git: tuple[str, bool] = ("unknown", False)

    # --- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, stage: str, own: Mapping[str, Any] | None = None, **parameters) -> Run:
        """Validate the parameters, bind the results folder, and check that the stage's inputs are there.

        ``own`` are the notebook's own parameters, which a finished stage depends on too.

        Raises ParameterError for an unknown or mistyped parameter, RunError for a results folder made with other
        settings or a missing input (naming the notebook that makes it).
        """
        if stage not in STAGES:
            raise RunError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
        try:
            given = RunParameters(**parameters)
            preset = PRESETS[given.preset]
            settings = DetectorSettings(**{**preset.settings, **given.settings})
            resolve_device(given.device)
        except ValidationError as error:
            raise ParameterError(f"wrong parameters: {explain(error)}") from None
        except ValueError as error:
            raise ParameterError(f"wrong parameters: {error}") from None
        root = project_root()
        run = cls(stage, given, settings, root, root / (given.out or f"results/{given.preset}"), dict(own or {}))
        run._bind_folder()
        for pattern in STAGES[stage].reads:
            if not run._found(pattern):
                maker = next(name for name, other in STAGES.items() if pattern in other.writes)
                raise RunError(f"{run.show(run.folder / pattern)} is missing: run {maker} first")
        if STAGES[stage].needs_labels and not run.labelled:
            raise RunError(
                f"{run.show(run.data_root)} has no category with good and anomalous test images, so {stage} has "
                f"nothing to measure; the detectors that 03_train saved can score images all the same"
            )
        # Taken now and not at the end: code that is edited while a notebook runs did not make its results.
        run._key, run._git = run._stage_key(), git_state(root)
        modules = [path.stem for path in sorted(Path(__file__).parent.glob("*.py"))]
        run._code = _code_hash(*(name for name in modules if name not in ("plots", "__main__", "__init__", "train")))
        run._cells = _code_cells(root / "notebooks" / f"{stage}.ipynb")
        return run

    def _bind_folder(self) -> None:
        # One folder, one setting: a table must never mix rows that were made in different ways.
        path = self.folder / "run.json"
        mine = {"preset": self.parameters.preset, "settings": self.settings.model_dump()}
        if not path.exists():
            try:
                with self._locked():  # of two runs that start at once, one must see what the other has written
                    if not path.exists():
                        write_json(path, mine)
            except StorageError as error:
                raise RunError(f"{error} Or choose another --out (in a notebook: out).") from None
        try:
            theirs = read_json(path)
            pairs = {**theirs["settings"], "preset": theirs["preset"]}
        except (StorageError, KeyError, TypeError):
            raise RunError(f"{self.show(path)} is damaged; delete it, or choose another --out") from None
        if theirs != mine:
            ours = {**mine["settings"], "preset": mine["preset"]}

            def said(settings: Mapping[str, Any], name: str) -> str:
                return repr(settings[name]) if name in settings else "nothing"  # a setting of another version

            names = [name for name in {**ours, **pairs} if said(pairs, name) != said(ours, name)]
            changed = [f"{name}: {said(pairs, name)} there, {said(ours, name)} now" for name in names]
            raise RunError(
                f"{self.show(self.folder)} holds results of other settings ({'; '.join(changed)}); "
                f"choose another --out (in a notebook: out), or delete that folder"
            )

    @property
    def preset(self) -> Preset:
        return PRESETS[self.parameters.preset]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.parameters.seeds or self.preset.seeds)

    @property
    def unified(self) -> bool:
        choice = self.parameters.unified
        return self.preset.unified if choice == "auto" else choice == "yes"

    @property
    def device(self) -> torch.device:
        return resolve_device(self.parameters.device)

    @cached_property
    def data_root(self) -> Path:
        """The data set's folder; the embedded data are generated on first use. Raises DataError."""
        if self.parameters.data:
            return self.root / self.parameters.data
        return embedded.write_embedded(self.root / "data" / "textures")

    @property
    def dataset(self) -> str:
        """The data set's name: its folder's, or the folder above where ``data`` is a single category of a set."""
        root = self.data_root.resolve()
        single = self.categories[0]
        return root.parent.name if single.name == root.name and single.layout in ("mvtec", "btad") else root.name

    @property
    def credit(self) -> str:
        """What a figure that shows this data set's images must say of them."""
        name = self.dataset.lower()
        known = next((credit for start, credit in CREDITS.items() if name.startswith(start)), None)
        return known or f"Images: {self.dataset}; see its own licence"

    @cached_property
    def categories(self) -> tuple[Category, ...]:
        """The chosen categories, their files found. Raises DataError."""
        names = self.parameters.categories or datasets.list_categories(self.data_root)
        return tuple(datasets.read_category(self.data_root, name) for name in names)

    @property
    def jobs(self) -> list[Job]:
        """The detectors of this run: one for each category and seed, or one for each seed when unified."""
        groups = [("unified", self.categories)] if self.unified else [(c.name, (c,)) for c in self.categories]
        return [Job(name, seed, members) for seed in self.seeds for name, members in groups]

    @cached_property
    def labelled(self) -> list[tuple[Job, Category]]:
        """Every (detector, category) pair that can be measured: with good and with anomalous test images."""
        return [
            (job, category)
            for job in self.jobs
            for category in job.categories
            if len({image.is_anomalous for image in category.test}) == 2
        ]

    # --- detectors -----------------------------------------------------------------------------------------------

    @property
    def cache(self) -> Path:
        return self.root / ".cache" / "features"

    def detector_folder(self, job: Job) -> Path:
        return self.folder / "detectors" / self.dataset / job.name / f"seed{job.seed}"

    def fit_detector(self, job: Job, progress: bool = True, processes: Processes = ALONE) -> OneStepDetector:
        """Train the job's detector, or load it if it was trained before on the same data, by the same code.

        Of several ``processes`` only the main one saves it, and has one to return that can score.
        """
        return self._fit(job, self.settings, self.detector_folder(job), progress, processes)

    def fit_variant(self, job: Job, name: str, changes: Mapping[str, Any]) -> OneStepDetector:
        """As :meth:`fit_detector`, with ``changes`` to the settings and kept apart, under variants/.
        Raises ParameterError for changes that no detector can have."""
        try:
            settings = DetectorSettings(**(self.settings.model_dump() | dict(changes)))
        except ValidationError as error:
            raise ParameterError(f"variant {name}: {explain(error)}") from None
        plain = re.sub(r"\W+", "-", name)
        return self._fit(job, settings, self.folder / "variants" / self.dataset / job.name / f"seed{job.seed}" / plain)

    def _fit(
        self,
        job: Job,
        settings: DetectorSettings,
        folder: Path,
        progress: bool = True,
        processes: Processes = ALONE,
    ) -> OneStepDetector:
        identity = self._identity(job, settings)
        with contextlib.ExitStack() as held:
            with processes.main_first():  # the others look once the main one has the lock, and so find what it finds
                if processes.is_main:
                    waiting = f"{job.label}: another run is training it; waiting for that one to end"
                    held.enter_context(locked(folder / ".lock", waiting))
            return self._load_or_fit(job, settings, folder, identity, progress, processes)

    def _load_or_fit(
        self,
        job: Job,
        settings: DetectorSettings,
        folder: Path,
        identity: dict[str, Any],
        progress: bool,
        processes: Processes,
    ) -> OneStepDetector:
        try:
            if read_json(folder / "detector.json")["meta"]["extra"] == identity:
                detector = OneStepDetector.load(folder, self.parameters.device, self.cache)
                if processes.is_main:
                    remove_leftovers(folder)  # a run that was killed right after its last save left them
                return detector
        except (StorageError, KeyError, TypeError):
            pass  # absent, damaged or another version's: trained again
        detector = OneStepDetector(settings, job.seed, self.parameters.device, self.cache)
        detector.fit(job.train, job.label if progress else None, folder / "checkpoint.json", processes)
        if processes.is_main:
            detector.save(folder, identity)
            remove_leftovers(folder)
        return detector

    def load_detector(self, job: Job) -> OneStepDetector:
        """The job's trained detector. Raises RunError if 03 has not trained it on these data with this code."""
        folder = self.detector_folder(job)
        try:
            detector = OneStepDetector.load(folder, self.parameters.device, self.cache)
            current = read_json(folder / "detector.json")["meta"]["extra"] == self._identity(job, self.settings)
        except StorageError as error:
            raise RunError(f"{error} Run 03_train for {job.label}.") from None
        if not current:
            raise RunError(f"{self.show(folder)} was trained on other data or by other code; run 03_train again")
        return detector

    def _identity(self, job: Job, settings: DetectorSettings) -> dict[str, Any]:
        """What a detector must have been made from to be this job's."""
        return {
            "settings": settings.model_dump(),
            "data": datasets.content_hash(job.train),
            "code": _code_hash(*WEIGHTS_CODE),
        }

    def normal_features(
        self, detector: OneStepDetector, job: Job, category: Category | None = None
    ) -> tuple[Tensor, Tensor]:
        """Standardised features of the job's normal images: those it was fitted on, and those held out (of one
        ``category`` only, if given: a unified model holds out images of each)."""
        x0 = detector.features(job.train)
        return x0[detector.fit_index], x0[self._held_out(detector, job, category)]

    @staticmethod
    def _held_out(detector: OneStepDetector, job: Job, category: Category | None) -> list[int]:
        return [i for i in detector.calibration_index if category is None or job.train[i] in set(category.train)]

    def held_out_images(self, detector: OneStepDetector, job: Job, category: Category) -> np.ndarray:
        """The held-out normal images of one category, (n, 3, H, W) in [0, 1]."""
        paths = [job.train[i] for i in self._held_out(detector, job, category)]
        return datasets.load_images(paths, self.settings.image_size)

    # --- results -------------------------------------------------------------------------------------------------

    def test_set(self, detector: OneStepDetector, job: Job, category: Category) -> TestSet:
        """The category's test images as the job's detector sees them, with labels and masks."""
        paths, size = [one.path for one in category.test], self.settings.image_size
        masks = [datasets.load_mask(one.mask, size) for one in category.test] if category.has_masks else None
        return TestSet(
            key=self.piece_key(job, category),
            category=category,
            seed=job.seed,
            unified=job.name == "unified",
            image_size=size,
            x0=detector.features(paths, progress=category.name),
            labels=np.array([one.is_anomalous for one in category.test]),
            masks=np.stack(masks) if masks else None,
        )

    def evaluate(
        self,
        test: TestSet,
        method: str,
        reading: Mapping[str, Any],
        nll: Tensor,
        train_s: float = math.nan,
        ms_per_image: float = math.nan,
        scores: np.ndarray | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
        """One method's row of metrics.csv, its row of intervals.csv and its rows of image_scores.csv, from its anomaly
        values ``nll`` (N, s, s).

        ``reading`` says how they were read: input, t, density and image_score, None where a method has no such thing.
        ``scores`` (N,) are the image scores of a method that has a rule of its own.
        """
        if scores is None:
            scores = image_score(nll, reading["image_score"]).double().numpy()
        maps = None if test.masks is None else anomaly_map(nll, test.image_size).numpy()
        n_anomalous = int(test.labels.sum())
        if test.unified != self.preset.unified:
            method += ("," if ":" in method else ":") + ("unified" if test.unified else "per-category")
        head = {"dataset": self.dataset, "category": test.category.name, "seed": test.seed, "method": method}
        row = {
            **head,
            **{name: reading[name] for name in ("input", "t", "density", "image_score")},
            "n_test_good": len(test.labels) - n_anomalous,
            "n_test_anomalous": n_anomalous,
            **metrics.evaluate(scores, test.labels, maps, test.masks),
            "train_s": round(train_s, 2),
            "ms_per_image": round(ms_per_image, 2),
            "commit": self._git[0],
        }
        value, low, high = metrics.auroc_interval(scores, test.labels, seed=test.seed)
        interval = {**head, "metric": "I-AUROC", "value": value, "lo": low, "hi": high, "n": len(scores)}
        images = pd.DataFrame({**head, "image": test.names, "anomalous": test.labels, "score": scores})
        return {name: row[name] for name in METRIC_COLUMNS}, interval, images

    def decisions(self, test: TestSet, detector: OneStepDetector) -> pd.DataFrame:
        """One row a test image: its score, p-value and verdict."""
        result = detector.score_features(test.x0)
        return pd.DataFrame(
            {
                "dataset": self.dataset,
                "category": test.category.name,
                "seed": test.seed,
                "unified": test.unified,
                "image": test.names,
                "anomalous": test.labels,
                "score": result.scores,
                "p_value": result.p_values,
                "flagged": result.flagged,
                "threshold": detector.threshold,
                "n_calibration": len(detector.calibration_scores),
            }
        )

    def save_nll(self, test: TestSet, nll: Tensor) -> Path:
        """Keep the anomaly values (N, s, s) of a test set, for the figures."""
        file = io.BytesIO()
        np.savez_compressed(file, nll=nll.numpy())
        return self._save_bytes(f"scores/{test.key}.npz", file.getvalue())

    def has_nll(self, job: Job, category: Category) -> bool:
        """Whether :meth:`save_nll` kept the anomaly values, and they are whole."""
        return bool(self._vouched_for(self._nll_path(job, category)))

    def read_nll(self, job: Job, category: Category) -> np.ndarray:
        """The anomaly values (N, s, s) that :meth:`save_nll` kept. Raises RunError if there are none, or not whole."""
        path = self._nll_path(job, category)
        if not self.has_nll(job, category):
            state = "damaged" if path.exists() else "missing"
            raise RunError(f"{self.show(path)} is {state}: run 05_score_and_detect first")
        with np.load(path) as file:
            return file["nll"]

    def _nll_path(self, job: Job, category: Category) -> Path:
        return self.path(f"scores/{self.piece_key(job, category)}.npz")

    # --- files ---------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.folder / name

    def show(self, path: Path) -> str:
        """``path`` as it reads from the project's folder, for messages."""
        return os.path.relpath(path, self.root)

    def save(self, name: str, write: Callable[[Path], None], **more: Any) -> Path:
        """Write a file under the results folder, atomically, with its provenance (and ``more``) as JSON beside it."""
        path = write_atomically(self.path(name), write)
        self._written.append(path)
        self._written.append(write_json(path.with_suffix(".json"), self.provenance() | more))
        return path

    def save_table(self, table: pd.DataFrame, name: str, **more: Any) -> Path:
        """``name`` (.csv) with its provenance (and ``more``) beside it, its own SHA-256 included."""
        return self._save_bytes(name, table.to_csv(index=False).encode(), **more)

    def _save_bytes(self, name: str, content: bytes, **more: Any) -> Path:
        digest = hashlib.sha256(content).hexdigest()
        return self.save(name, lambda path: path.write_bytes(content), **more, sha256=digest)

    def save_figure(self, figure: Figure, name: str) -> None:
        """figures/``name`` as PDF and PNG, with provenance."""
        # No creation date: the same figure is the same bytes.
        self.save(f"figures/{name}.pdf", lambda path: figure.savefig(path, metadata={"CreationDate": None}))
        self.save(f"figures/{name}.png", lambda path: figure.savefig(path, dpi=150))

    def pieces(
        self,
        names: Sequence[str],
        job: Job,
        category: Category,
        make: Callable[[], Sequence[pd.DataFrame]],
        depends: Any = None,
    ) -> list[pd.DataFrame]:
        """The tables that ``make()`` gives for one job and category, as pieces of ``names``, made only if need be.

        Pieces that an earlier run made from the very same detector, images, settings and code are kept, so a killed
        study goes on where it was, and other seeds or categories add to it. ``depends`` (anything JSON) is whatever
        else the rows depend on, such as what was read from another table. Returns all of each of ``names``; the rows
        of this run are :meth:`own_rows`. Raises RunError if the job has no detector.
        """
        key, made_from = self.piece_key(job, category), self._piece_inputs(names[0], job, category, depends)
        paths = [self.path(f"pieces/{Path(name).stem}/{key}.csv") for name in names]
        if all(self._vouched_for(path).get("made_from") == made_from for path in paths):
            with self._locked():
                return [self._join_pieces(name, key) for name in names]
        return [
            self.save_piece(table, name, key, made_from=made_from) for name, table in zip(names, make(), strict=True)
        ]

    def _piece_inputs(self, name: str, job: Job, category: Category, depends: Any) -> str:
        """Hash of everything that a job's rows of ``name`` depend on: not the notebook's prose, its figures, its cells
        after the one that makes the piece, nor the code that draws; its parameters are hashed as they were given."""
        makers = [i for i, source in enumerate(self._cells) if "run.pieces(" in source and f'"{name}"' in source]
        cells = self._cells[: makers[-1] + 1] if makers else self._cells
        detector = self.detector_folder(job) / "detector.json"
        if not detector.is_file():
            raise RunError(f"{self.show(detector)} is missing: run 03_train for {job.label}")
        parts = [
            self.settings.model_dump_json(),
            json.dumps([self.own, depends], sort_keys=True),
            str(package_versions()),
            category_hash(category),
            file_sha256(detector),
            self._code,
            *(source for source in cells if "run.save_figure(" not in source),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def own_rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of this run's data set, categories, seeds and kind of model: tables grow beyond a single run."""
        names = [category.name for category in self.categories]
        mine = (table.dataset == self.dataset) & table.category.isin(names) & table.seed.isin(self.seeds)
        return table[mine & (table.unified == self.unified)] if "unified" in table else table[mine]

    def save_piece(self, table: pd.DataFrame, name: str, key: str, **more: Any) -> pd.DataFrame:
        """Keep ``table`` as the piece ``key`` of ``name`` (.csv), and rebuild ``name`` from all the pieces there are.

        A run of other categories or seeds adds to what is there; a piece is whole or absent, so a killed run loses at
        most the one it was computing. Returns all of ``name``.
        """
        with self._locked():  # another notebook may be adding to the same table
            self.save_table(table, f"pieces/{Path(name).stem}/{key}.csv", **more)
            return self._join_pieces(name, key)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / ".lock")

    def _join_pieces(self, name: str, key: str) -> pd.DataFrame:
        """Write ``name`` from its pieces: from ``key``, and from all others that have the same columns."""
        folder = self.path(f"pieces/{Path(name).stem}")
        columns = list(pd.read_csv(folder / f"{key}.csv", nrows=0))
        tables, pieces, foreign = [], {}, []
        kept = ("commit", "dirty", "seeds", "dataset", "data_sha256", "created")
        for path in self._found(f"pieces/{folder.name}/*.csv"):
            if provenance := self._vouched_for(path):
                table = _read_csv(path)
                if table is None or list(table) != columns:
                    foreign.append(path.stem)
                    continue
                tables.append(table)
                pieces[path.stem] = {one: provenance.get(one) for one in kept}
        if foreign:
            print(
                f"{name} is made without {', '.join(foreign)}, pieces of another version with other columns: "
                f"run {self.stage} for them again, or delete them from {self.show(folder)}"
            )
        table = pd.concat(tables, ignore_index=True)
        self.save_table(table, name, pieces=pieces)
        return table

    def _found(self, pattern: str) -> list[Path]:
        """The files under the results folder that match, sorted; without the hidden ones, which killed writes left."""
        return sorted(path for path in self.folder.glob(pattern) if not path.name.startswith("."))

    @staticmethod
    def _vouched_for(path: Path) -> dict[str, Any]:
        """The provenance of a file of ours; {} if a killed write left the two apart, or it is no file of ours."""
        try:
            provenance = read_json(path.with_suffix(".json"))
            # Files of an earlier version carry no hash: their provenance, written after them, has to do.
            return provenance if provenance.get("sha256") in (None, file_sha256(path)) else {}
        except (StorageError, AttributeError, OSError):
            return {}

    def save_claims(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Add this notebook's verdicts on these data to claims.csv, replacing its earlier ones; returns all of it.

        Each row has claim (the letter in the README), statement, evidence, verdict (one of VERDICTS), interval and n.
        Raises ValueError for another verdict.
        """
        for row in rows:
            if row["verdict"] not in VERDICTS:
                raise ValueError(f"unknown verdict {row['verdict']!r}; known: {', '.join(VERDICTS)}")
        head = {"dataset": self.dataset, "unified": self.unified, "notebook": self.stage}
        table = pd.DataFrame([{name: ({**row, **head})[name] for name in CLAIM_COLUMNS} for row in rows])
        unified = "_unified" if self.unified else ""
        return self.save_piece(table, "claims.csv", f"{self.dataset}{unified}_{self.stage}")

    def piece_key(self, job: Job, category: Category | None = None) -> str:
        """The name of a job's piece, or of one of its categories': dataset, category, unified or not, seed."""
        unified = "_unified" if job.name == "unified" and category else ""
        return f"{self.dataset}_{category.name if category else job.name}{unified}_seed{job.seed}"

    def read_table(self, name: str) -> pd.DataFrame:
        """A table of this run. Raises RunError if it is missing or not whole, or if its settings are not this run's: a
        figure must never mix two runs."""
        path = self.path(name)
        maker = next((stage for stage, other in STAGES.items() if name in other.writes), "an earlier notebook")
        if not path.is_file():
            raise RunError(f"{self.show(path)} is missing: run {maker} first")
        with self._locked():  # another notebook may be adding to it
            provenance, table = self._vouched_for(path), _read_csv(path)
        if not provenance or table is None:
            raise RunError(f"{self.show(path)} is not what the JSON beside it vouches for: run {maker} again")
        if provenance.get("settings") != self.settings.model_dump():
            raise RunError(f"{self.show(path)} was made with other settings than this run's; make it again")
        return table

    def provenance(self) -> dict[str, Any]:
        """What made a file: code, parameters, data, packages, machine, time."""
        commit, dirty = self._git
        parameters = self.parameters.model_dump() | dict(self.own)
        reads_data = self.stage not in ("00_start_here", "02_toy_ddpm")
        return {
            "stage": self.stage,
            "commit": commit,
            "dirty": dirty,
            "parameters": parameters,
            "seeds": list(self.seeds),
            "unified": self.unified,
            "settings": self.settings.model_dump(),
            "precision": resolve_precision(self.settings.precision, self.device),
            "dataset": self.dataset if reads_data else None,
            "data_sha256": self._data_hashes if reads_data else {},
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "wall_s": round(time.monotonic() - self.started, 1),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    @cached_property
    def _data_hashes(self) -> dict[str, str]:
        return {category.name: category_hash(category) for category in self.categories}

    # --- the end of a notebook, and whether it needs to run again ---------------------------------------------------

    def finish(self) -> None:
        """Check that the stage left what it declares, and record it as done. Raises RunError otherwise."""
        for pattern in STAGES[self.stage].writes:
            if not self._found(pattern):
                raise RunError(f"{self.stage} should have written {pattern} under {self.show(self.folder)}")
        files = {path for path in self._written if path.is_file()}
        files |= {path for pattern in STAGES[self.stage].writes for path in self._found(pattern)}
        files -= set(self._others_detectors())
        # A table that several stages add to changes after this one is done; this one's own piece of it does not.
        writers = Counter(pattern for stage in STAGES.values() for pattern in stage.writes)
        common = [self.folder / pattern for pattern, n in writers.items() if n > 1]
        files = sorted(files - {*common, *(path.with_suffix(".json") for path in common)})
        record = {
            "key": self._key,
            "seconds": round(time.monotonic() - self.started, 1),
            "files": {path.relative_to(self.folder).as_posix(): digest for path, digest in _digests(files)},
        }
        write_json(self._record_path, record)
        print(f"{self.stage}: {len(files)} files under {self.show(self.folder)} in {record['seconds']:.0f} s")

    def _others_detectors(self) -> list[Path]:
        # Not this run's to vouch for, and perhaps being replaced at this moment by the run whose they are.
        own = {self.detector_folder(job) for job in self.jobs} if self.stage == "03_train" else set()
        return [path for path in self.folder.glob("detectors/*/*/seed*/*") if path.parent not in own]

    @property
    def _record_path(self) -> Path:
        return self.folder / "stages" / f"{self._name_of_part}.json"

    @property
    def _name_of_part(self) -> str:
        return f"{self.stage}.{self.parameters.part}" if self.parameters.part else self.stage

    def executed_path(self, apart: bool = False) -> Path:
        """Where the executed notebook goes; ``apart``: under a name that no other part of a parallel run has."""
        return self.folder / "notebooks" / (f"parts/{self._name_of_part}.ipynb" if apart else f"{self.stage}.ipynb")

    @property
    def partial_path(self) -> Path:
        """Where papermill writes while the notebook runs.

        Named by the part: two parts of a parallel run would otherwise write into one file, and the first to end would
        take it away from under the other.
        """
        return self.folder / "notebooks" / f"{self._name_of_part}.partial.ipynb"

    def _stage_key(self) -> str:
        """Hash of everything that the stage's files depend on: parameters, data, code, notebook, inputs."""
        notebook = self.root / "notebooks" / f"{self.stage}.ipynb"
        inputs = sorted(path for pattern in STAGES[self.stage].reads for path in self._found(pattern))
        parts = [
            self.parameters.model_dump_json(exclude={"out", "device"}),
            self.settings.model_dump_json(),
            json.dumps(self.own, sort_keys=True),
            str(package_versions()),
            str(self._data_hashes) if self.stage not in ("00_start_here", "02_toy_ddpm") else "",
            _code_hash(),
            file_sha256(notebook) if notebook.is_file() else "",
            *(file_sha256(path) for path in inputs),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def is_current(self) -> bool:
        """Whether the stage was finished with the very same inputs and all its files are still as it left them."""
        try:
            record = read_json(self._record_path)
            there = all(self._found(pattern) for pattern in STAGES[self.stage].writes)
            return (
                there
                and record["key"] == self._key
                and all(file_sha256(self.folder / name) == digest for name, digest in record["files"].items())
            )
        except (KeyError, TypeError, AttributeError, ValueError, OSError):  # of another version, or damaged
            return False

    def is_finished(self) -> bool:
        """Whether the stage's record is there, whatever it was made from."""
        return self._record_path.is_file()

    def forget(self) -> None:
        """Remove the stage's record: until the next :meth:`finish`, the stage is not current."""
        self._record_path.unlink(missing_ok=True)

    def executing(self) -> contextlib.AbstractContextManager[None]:
        """Hold the stage against other runners in the same folder, which wait: they would write into one notebook."""
        waiting = f"{self.stage}: another run in {self.show(self.folder)} is executing it; waiting for that one to end"
        return locked(self.folder / "stages" / f".{self._name_of_part}.lock", waiting)

    def print_header(self) -> None:
        """Two lines for a notebook's set-up cell: commit, seeds, device, folder."""
        commit, dirty = self._git
        state = f"commit {commit[:10]}{' (with changes)' if dirty else ''}"
        print(f"{self.stage} | preset {self.parameters.preset} | {state} | seeds {list(self.seeds)}")
        print(f"{device_name(self.device)} | results in {self.show(self.folder)}")


def _read_csv(path: Path) -> pd.DataFrame | None:
    """A table of ours, None if it is none: BTAD's categories are names, not numbers."""
    try:
        return pd.read_csv(path, dtype={"category": str})
    except (ValueError, OSError):
        return None


def _digests(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """(path, SHA-256) of every file that is still there: another run may replace its detector's tensors meanwhile."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append((path, file_sha256(path)))
    return found


def _code_cells(notebook: Path) -> tuple[str, ...]:
    """The sources of a notebook's code cells but its parameters; () where there is no such notebook."""
    if not notebook.is_file():
        return ()
    code = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    return tuple("".join(c["source"]) for c in code if "parameters" not in c["metadata"].get("tags", []))


def _code_hash(*modules: str) -> str:
    """SHA-256 over the named files of irf_lib, or over all of them."""
    folder = Path(__file__).parent
    files = [folder / f"{name}.py" for name in modules] if modules else sorted(folder.glob("*.py"))
    return hashlib.sha256("".join(file_sha256(path) for path in sorted(files)).encode()).hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """The installed versions of PACKAGES."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def category_hash(category: Category) -> str:
    """SHA-256 over a category's training images, test images and masks, and over what each of them is."""
    masks = [image.mask for image in category.test if image.mask]
    content = datasets.content_hash([*category.train, *(image.path for image in category.test), *masks])
    roles = [len(category.train), [[image.kind, image.path.name, image.mask is not None] for image in category.test]]
    return hashlib.sha256(f"{content} {json.dumps(roles)}".encode()).hexdigest()


def git_state(root: Path) -> tuple[str, bool]:
    """(commit, dirty) of the project; ("unknown", False) outside a git checkout."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--", "irf_lib", "notebooks", "requirements.lock"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
    return commit, bool(changes)


def device_name(device: torch.device) -> str:
    """What computes, in words that a reader of a table needs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {os.cpu_count()} cores"


# --- the runner -----------------------------------------------------------------------------------------------------


def run_notebooks(
    parameters: Mapping[str, Any],
    extras: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    force: bool = False,
    jobs: int = 0,
    apart: bool = False,
) -> Path:
    """Execute the notebooks through papermill; returns the results folder.

    ``parameters`` are RunParameters, ``extras`` parameters of single notebooks, ``only`` stage names or their numbers.
    Stages whose outputs are current are skipped unless ``force``. Up to ``jobs`` notebooks run side by side, each as
    soon as those it reads from are done, and share the cores; 0 is four, or as many as there are cores, on a CPU, and
    one on a GPU. ``apart`` keeps the executed notebooks where runs of other categories or seeds into the same folder do
    not put theirs (:meth:`Run.executed_path`). Everything is validated before the first notebook starts. Raises
    RunError or DataError for wrong input, and RunError at the first failing cell, once the notebooks that were running
    beside it have ended.
    """
    root = project_root()
    paths = {path.stem: path for path in _select(notebook_paths(root), only)}
    known = {name: notebook_parameters(path) for name, path in paths.items()}
    _check_extras(known, extras or {})
    if jobs < 0:
        raise ParameterError(f"jobs must be 0 (as many as fit) or more, got {jobs}")
    first = Run.open(next(iter(STAGES)), **parameters)
    for category in first.categories:
        datasets.check_category(category)
    print(
        f"preset {first.parameters.preset}, data {first.dataset} ({', '.join(c.name for c in first.categories)}), "
        f"seeds {list(first.seeds)}, results in {first.show(first.folder)}"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or (min(4, cores) if first.device.type == "cpu" else 1), len(paths))
    threads_given = os.environ.get("OMP_NUM_THREADS")

    def one(name: str, side_by_side: int) -> None:
        head = f"[{list(paths).index(name) + 1}/{len(paths)}] {name}"
        shared = {key: value for key, value in parameters.items() if key in known[name]}
        own = {key: default for key, (_, default) in known[name].items() if key not in RunParameters.model_fields}
        own |= {key: value for key, value in (extras or {}).items() if key in own}
        if STAGES[name].needs_labels and not first.labelled:
            print(f"{head}: no labelled test images, skipped", flush=True)
            return
        run = Run.open(name, own, **shared)
        executed = run.executed_path(apart)
        with run.executing():
            # A copy that is not complete was left by a run that was killed: the complete one is of an earlier run.
            if not force and executed.is_file() and not run.partial_path.exists() and run.is_current():
                print(f"{head}: current, skipped", flush=True)
                return
            print(f"{head}: {STAGES[name].question}", flush=True)
            # Kernels inherit it. Notebooks that run side by side are given the same, one that runs alone has no
            # neighbour.
            os.environ["OMP_NUM_THREADS"] = threads_given or str(max(1, cores // side_by_side))
            seconds = _execute(run, paths[name], executed, shared | own)
            print(f"{head}: done in {seconds:.0f} s", flush=True)

    try:
        with contextlib.chdir(root):  # papermill resolves paths against the working directory, not its cwd
            _in_order(list(paths), one, jobs)
    finally:
        if threads_given is None:
            os.environ.pop("OMP_NUM_THREADS", None)
    return first.folder


def _in_order(names: Sequence[str], start: Callable[[str, int], None], jobs: int) -> None:
    """Call ``start(name, jobs)`` for every stage, up to ``jobs`` at once, none before those it reads from.

    A stage that has to be ``alone`` comes after all others. The first exception is raised once what runs has ended,
    and nothing is started after it.
    """
    needs = {
        name: set(names) - {name}
        if STAGES[name].alone
        else {other for other in names if set(STAGES[other].writes) & set(STAGES[name].reads)} - {name}
        for name in names
    }

    def followers(name: str) -> int:
        direct = [other for other in names if name in needs[other] and not STAGES[other].alone]
        return len(direct) + sum(followers(other) for other in direct)

    waiting = sorted(names, key=followers, reverse=True)  # what most others wait for goes first
    running: dict[Future, str] = {}
    done: set[str] = set()
    failed: BaseException | None = None
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and failed is None):
            for name in [] if failed else [one for one in waiting if needs[one] <= done][: jobs - len(running)]:
                waiting.remove(name)
                running[pool.submit(start, name, 1 if STAGES[name].alone else jobs)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done.add(running.pop(future))
                failed = failed or future.exception()
                if failed and running:
                    print(f"a notebook failed; waiting for {', '.join(sorted(running.values()))} to end", flush=True)
    if failed:
        raise failed


def _select(paths: Sequence[Path], only: Sequence[str]) -> list[Path]:
    if not only:
        return list(paths)
    chosen = [path for path in paths if any(path.stem == name or path.stem.startswith(f"{name}_") for name in only)]
    for name in only:
        if not any(path.stem == name or path.stem.startswith(f"{name}_") for path in paths):
            raise ParameterError(f"no notebook {name!r}; there are {', '.join(path.stem for path in paths)}")
    return chosen


def notebook_parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """A notebook's parameters as papermill reads them: name -> (type annotated, default)."""
    from papermill import inspect_notebook

    found = inspect_notebook(str(path)).items()
    return {name: (one["inferred_type_name"].strip(), ast.literal_eval(one["default"])) for name, one in found}


_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


def _check_extras(known: Mapping[str, Mapping[str, tuple[str, Any]]], extras: Mapping[str, Any]) -> None:
    for name, value in extras.items():
        kinds = {found[name][0] for found in known.values() if name in found}
        if name in RunParameters.model_fields:
            raise ParameterError(f"{name} has an option of its own (see --help), or goes to --set")
        if not kinds:
            own = sorted({n for found in known.values() for n in found} - set(RunParameters.model_fields))
            raise ParameterError(f"no notebook has a parameter {name!r}; there are {', '.join(own) or 'none'}")
        for kind in kinds:
            expected = _TYPES.get(kind)
            if expected and (not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool")):
                raise ParameterError(f"parameter {name} must be {kind}, got {value!r}")


def _execute(run: Run, path: Path, executed: Path, parameters: Mapping[str, Any]) -> float:
    """One notebook through papermill. The executed copy gets its name only when it is complete.

    The working directory has to be the project's.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    start = time.monotonic()
    partial = run.partial_path
    try:
        for written in (partial, executed):
            written.parent.mkdir(parents=True, exist_ok=True)
        run.forget()  # so that a record found afterwards is this execution's
        papermill.execute_notebook(
            os.path.relpath(path, run.root),  # relative: executed copies name no folder of this machine
            os.path.relpath(partial, run.root),
            parameters=dict(parameters),
            cwd=".",
            kernel_name="python3",
            progress_bar=False,
            # Encrypted loopback sockets: nobody else on a shared machine reads them, and the kernel does not warn.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except DeadKernelError as error:
        raise RunError(
            f"{path.stem}: the kernel died ({error}), most often for want of memory; what ran is in {run.show(partial)}"
        ) from None
    except PapermillExecutionError as error:
        raise RunError(
            f"{path.stem} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The partly executed notebook is {run.show(partial)}"
        ) from None
    except OSError as error:  # the copy, the record, or Jupyter's own files
        named = Path(error.filename) if isinstance(error.filename, str) else partial
        raise RunError(f"{path.stem} stopped: {cannot_write(named, error)}") from None
    if not run.is_finished():
        raise RunError(f"{path.stem} ran to its end without run.finish(); see {run.show(partial)}")
    try:
        os.replace(partial, executed)
    except OSError as error:
        raise RunError(f"{path.stem}: {cannot_write(executed, error)}") from None
    return time.monotonic() - start
