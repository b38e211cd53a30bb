"""What weights depend on (Settings), and how a trained network is asked (Reading).

Unknown names and wrong types are refused. An object of your own may stand in the place of a name.
"""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from .diffusion import T, TrainSettings
from .networks.backbones import BACKBONES
from .networks.denoisers import DENOISERS
from .scoring import DENSITIES, image_score

CUSTOM = "custom:"  # what a file says in place of an object that has no name of ours


def _known(value: Any, table: dict[str, Any]) -> Any:
    if isinstance(value, str) and value not in table:
        raise ValueError(f"unknown name {value!r}; known: {', '.join(table)}, or pass an object of your own")
    return value


def _name(value: Any) -> str:
    return value if isinstance(value, str) else CUSTOM + getattr(value, "__name__", type(value).__name__)


class Settings(TrainSettings):
    """What a network's weights depend on, besides its images and its seed."""

    backbone: Any = "efficientnet-lite0"  # a name in BACKBONES, or a Backbone
    backbone_weights: str | None = None  # a local file or folder, or a hub name; None: the backbone's own
    image_size: int = Field(256, ge=32, le=2048)  # pixels
    feature_size: int = Field(32, ge=4, le=512)  # locations a side
    denoiser: Any = "dit"  # a name in DENOISERS, or a class with the constructor of denoisers.DiT
    patch_size: int = Field(2, ge=1)  # locations a side of one of the DiT's tokens; a UNet has none
    width: int = Field(256, ge=8, le=8192)
    depth: int = Field(4, ge=1, le=128)
    precondition: bool = True  # start the denoiser at the Gaussian optimum of the training features
    calibration: float = Field(0.1, gt=0, lt=1)  # share of the good images held out; at least 20 where there are 30

    _backbone = field_validator("backbone")(lambda value: _known(value, BACKBONES))
    _denoiser = field_validator("denoiser")(lambda value: _known(value, DENOISERS))
    _names = field_serializer("backbone", "denoiser")(_name)

    @model_validator(mode="after")
    def _network_can_be_built(self) -> Self:
        kind = DENOISERS[self.denoiser] if isinstance(self.denoiser, str) else self.denoiser
        getattr(kind, "check", lambda *_: None)(self.feature_size, self.width, self.depth, self.patch_size)
        return self


class Reading(BaseModel):
    """How a trained network is asked: nothing here needs training. (alpha is the argument of a verdict.)"""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # The timestep of the one evaluation; "auto" is the one that the detector chose in fit, without labels.
    t: Annotated[int, Field(ge=0, lt=T)] | Literal["auto"] = "auto"
    input: Literal["clean", "scaled", "noised"] = "scaled"
    density: Any = "full"  # a name in DENSITIES, or a class derived from scoring.Density
    image_score: str = "top10"

    _density = field_validator("density")(lambda value: _known(value, DENSITIES))
    _names = field_serializer("density")(_name)

    @field_validator("image_score")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        image_score(torch.zeros(1, 2, 2), rule)  # raises ValueError, which pydantic reports with the field's name
        return rule
