"""What there is to run: presets, notebooks with the files that they read and leave, and their common parameters.

Nothing heavy is imported here, so that a scheduler can plan a run without loading torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


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
    "reference": Preset("real data on a CPU, ten minutes a category and seed", seeds=(0, 1, 2), settings={}),
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
