"""What a run can be: the presets, and the parameters that notebooks share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..files import InputError


@dataclass(frozen=True)
class Preset:
    """A named setting: what it is for, the seeds it runs, and what it changes in Settings and Reading."""

    purpose: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    unified: bool = False  # whether one model of all categories is what it is about


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        "the embedded data in minutes on two CPU cores; what CI runs",
        seeds=(0,),
        settings={
            "feature_size": 16, "patch_size": 2, "steps": 50, "batch_size": 8, "token_share": 1.0, "width": 128,
            "depth": 3,
        },
    ),
    "reference": Preset("real data on a CPU, minutes per category and seed", seeds=(0, 1, 2)),
    "paper": Preset(
        "the published setting, as far as it is known from InvAD's code: one model for all categories, on a GPU",
        seeds=(0, 1, 2),
        settings={
            "backbone": "efficientnet-b4", "feature_size": 16, "patch_size": 1, "width": 2048, "depth": 16,
            "precondition": False, "optimizer": "adamw", "epochs": 300, "batch_size": 32, "lr": 5e-5,
            "warmup": 40 / 300, "token_share": 1.0,
            "ema": 0.03,  # about the published 0.999 a step on MVTec AD's 3,629 training images
        },
        reading={"input": "clean"},
        unified=True,
    ),
}  # fmt: skip


class Parameters(BaseModel):
    """The parameters that notebooks share; wrong names and types are refused. Folders are relative to the project."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    preset: Literal[tuple(PRESETS)] = "quick"
    data: str = ""  # a folder of images; "" is the embedded data
    category: str = ""  # "" is the first; "unified" is one model for all categories
    seed: int = Field(0, ge=0, lt=2**63)
    test: str = ""  # with category "unified": the category to test; "" is the first
    settings: dict[str, Any] = {}  # changes to the preset's Settings
    reading: dict[str, Any] = {}  # changes to the preset's Reading
    out: str = ""  # results folder; "" is results/<preset>
    device: str = "auto"

    @field_validator("device")
    @classmethod
    def _there(cls, name: str) -> str:
        from ..diffusion import resolve_device  # torch takes seconds to import, and whoever plans a run needs none

        return str(resolve_device(name)) if name != "auto" else name


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: Mapping[str, Any]) -> Model:
    """``model(**values)``. Raises InputError that says in one line which parameter is wrong, and what is."""
    try:
        return model(**values)
    except ValidationError as error:
        found: dict[tuple, list[str]] = {}  # where a value may be of two kinds, there is a message for each
        for one in error.errors():
            place = str(one["loc"][0]) if one["loc"] else "together", repr(one["input"])
            found.setdefault(place, []).append(one["msg"].removeprefix("Value error, "))
        said = (f"{name}: {' or '.join(what)} (got {given})" for (name, given), what in found.items())
        raise InputError(f"wrong {model.__name__.lower()}: {'; '.join(said)}") from None


def project_root() -> Path:
    """The folder that holds notebooks/ and irf_lib/: the working directory or one above it, else the package's own."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "irf_lib" / "__init__.py").is_file():
            return folder
    return Path(__file__).resolve().parents[2]
