"""One detector read in any way one likes, quickly enough to move a slider: what notebook 14 shows.

Nothing is trained. A change of timestep or input asks the network anew (the good images too: density and threshold
are theirs), a change of density fits it anew, and a change of image or of alpha costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .detector import OneStepDetector
from .scoring import DENSITIES, anomaly_map, conformal_p_values, conformal_threshold, image_score


@dataclass(frozen=True)
class View:
    """One image under one reading of the detector; values in nats but for the norm."""

    field_norm: np.ndarray  # (s, s), length of the field's vector at each location, no unit
    heat: np.ndarray  # (image_size, image_size)
    score: float
    p_value: float  # in (0, 1]
    calibration_scores: np.ndarray  # (n,), of the held-out good images under the same reading
    threshold: float  # +inf where n images cannot promise alpha


class Explorer:
    """Views of the images whose features are ``x0`` (N, C, s, s), by ``detector``.

    ``fit_x0`` and ``calibration_x0`` (n, C, s, s) are the good images to fit densities on and to hold out. The last few
    readings are kept.
    """

    def __init__(self, detector: OneStepDetector, fit_x0: Tensor, calibration_x0: Tensor, x0: Tensor):
        self.detector, self.x0 = detector, x0
        self._good = {"fit": fit_x0, "held out": calibration_x0}
        self._kept: dict[Hashable, object] = {}

    def view(self, index: int, t: int, how: str, density: str, alpha: float) -> View:
        """Image ``index`` at timestep ``t`` and input ``how`` under ``density``; the threshold is that of ``alpha``.

        Raises IndexError for an image that is not there, KeyError for an unknown density, ValueError for an alpha
        outside (0, 1).
        """
        x0 = self.x0[[index]]
        field = self._remember(("field", index, t, how), lambda: self.detector.fields(x0, t, how))
        fitted = self._remember(("density", t, how, density), lambda: self._fit(t, how, density))
        held_out = self._remember(("scores", t, how, density), lambda: self._held_out_scores(fitted, t, how))
        nll = fitted.nll(field, self.detector.denoised(x0, field, t, how))
        score = float(self._score(nll)[0])
        return View(
            field_norm=torch.linalg.vector_norm(field[0], dim=0).numpy(),
            heat=anomaly_map(nll, self.detector.settings.image_size)[0].numpy(),
            score=score,
            p_value=float(conformal_p_values(held_out, np.array([score]))[0]),
            calibration_scores=held_out,
            threshold=conformal_threshold(held_out, alpha),
        )

    def _score(self, nll: Tensor) -> np.ndarray:
        return image_score(nll, self.detector.settings.image_score).double().numpy()

    def _good_fields(self, which: str, t: int, how: str) -> tuple[Tensor, Tensor]:
        """(fields, denoised estimates) of the good images."""
        x0 = self._good[which]
        fields = self._remember((which, t, how), lambda: self.detector.fields(x0, t, how))
        return fields, self.detector.denoised(x0, fields, t, how)

    def _fit(self, t: int, how: str, density: str):
        return DENSITIES[density].fit(*self._good_fields("fit", t, how))

    def _held_out_scores(self, fitted, t: int, how: str) -> np.ndarray:
        return self._score(fitted.nll(*self._good_fields("held out", t, how)))

    def _remember(self, key: Hashable, make: Callable):
        if key not in self._kept:
            made = make()
            while len(self._kept) >= 32:  # the oldest goes first; fields of the good images take megabytes each
                del self._kept[next(iter(self._kept))]
            self._kept[key] = made
        return self._kept[key]
