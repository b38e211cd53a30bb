"""A detector as one safetensors file, its settings as JSON in the header, under one hash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from .diffusion import pack_history, unpack_history
from .files import InputError, load_tensors, one_line, printable, save_tensors
from .scoring import density_class
from .settings import CUSTOM, Reading, Settings

FORMAT = 3


class SavedAsOneFile(nn.Module):
    """Saving and loading, which :class:`detector.Detector` inherits."""

    def save(self, path: Path, extra: dict | None = None) -> Path:
        """Write one safetensors file: weights, statistics, the default reading's density and held-out values, and in
        its header, as JSON, settings and ``extra``. Returns ``path``."""
        density, held_out = self._normal(self.reading)
        tensors = {name: one for name, one in self.state_dict().items() if not name.startswith("backbone.")}
        tensors |= {f"density.{name}": one for name, one in density.state_dict().items()}
        tensors |= {"held_out_nll": held_out, "history": pack_history(self.history)}
        tensors |= {name: torch.from_numpy(getattr(self, name)) for name in ("fit_index", "calibration_index")}
        meta = {name: getattr(self, name) for name in ("best_t", "seed", "train_seconds")}
        meta |= {"format": FORMAT, "backbone_fingerprint": self.backbone.fingerprint}
        meta |= {"settings": self.settings.model_dump(), "reading": self.asked.model_dump()}
        meta["extra"] = self.extra if extra is None else extra
        return save_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Path, device: str = "auto", cache: Callable | None = None, **objects: Any) -> Self:
        """The detector saved in ``path``; no hub is asked. ``objects`` (backbone, denoiser, density) stand in for those
        of your own that it was made with. Raises InputError if the file is missing, damaged, foreign, of another
        version, or was fitted on another backbone's features than this installation makes."""
        tensors, meta = load_tensors(path)
        shown, parts = printable(path), [meta.get("settings", {}), meta.get("reading", {})]
        if meta.get("format") != FORMAT:
            raise InputError(f"{shown} has format {meta.get('format')!r}, this version reads {FORMAT}; fit it again.")
        for name, own in ((name, str(own)) for part in parts for name, own in part.items()):
            if own.startswith(CUSTOM) and name not in objects:
                raise InputError(f"{shown} was made with {own.removeprefix(CUSTOM)}: load(path, {name}=...) with it.")
        settings, reading = (part | {name: one for name, one in objects.items() if name in part} for part in parts)
        try:
            self = cls(Settings(**settings), Reading(**reading), meta["seed"], device, cache, local_only=True)
            if self.backbone.fingerprint != meta["backbone_fingerprint"]:
                raise InputError(f"{shown} was fitted on another {parts[0]['backbone']}; fit it again.")
            self._restore(tensors, meta)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{shown} is no detector of ours ({one_line(error)}); fit it again.") from None
        return self

    def _restore(self, tensors: dict[str, Tensor], meta: dict) -> None:
        names = ("held_out_nll", "history", "fit_index", "calibration_index")
        held_out, history, *indices = (tensors.pop(name) for name in names)
        names = [name for name in tensors if name.startswith("density.")]
        density = {name.removeprefix("density."): tensors.pop(name) for name in names}
        with torch.device("meta"):  # only the shapes: no memory, however large a file says that its network is
            expected = {f"denoiser.{name}": one.shape for name, one in self.new_denoiser().state_dict().items()}
        expected |= {"mean": self.mean.shape, "std": self.std.shape}
        if expected != {name: one.shape for name, one in tensors.items()}:
            raise ValueError("its tensors are not those of its settings")
        self.denoiser = self.new_denoiser().to(self.device).eval()
        self.load_state_dict(tensors, strict=False)  # all but the backbone, which its fingerprint has checked
        self.best_t, self.train_seconds, self.extra = (meta[name] for name in ("best_t", "train_seconds", "extra"))
        self.fit_index, self.calibration_index = (one.numpy() for one in indices)
        self.history = unpack_history(history)
        fitted = density_class(self.reading.density)(**density)
        self._fitted[self.reading.t, self.reading.input, self.reading.density] = fitted, held_out
