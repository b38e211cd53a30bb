"""One image under one reading of a detector: what notebooks 05 and 14 show, quickly enough to move a slider.

The detector keeps the densities and fields of the good images for each reading, so a change of image costs one
evaluation of the network, and a change of alpha none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..conformal import conformal_threshold
from ..detector import Detector, Reading


@dataclass(frozen=True)
class View:
    """One image under one reading of the detector; values in nats but for the norm."""

    field_norm: np.ndarray  # (s, s), length of the field's vector at each location, no unit
    heat: np.ndarray  # (image_size, image_size)
    score: float
    p_value: float  # in (0, 1]
    calibration_scores: np.ndarray  # (n,), of the held-out good images under the same reading
    threshold: float  # +inf where n images cannot promise alpha


def view(detector: Detector, x0: Tensor, reading: Reading, alpha: float) -> View:
    """The image whose standardised features are ``x0`` (1, C, s, s), read by ``reading``; the threshold is that of
    ``alpha``. Raises ValueError for an alpha outside (0, 1)."""
    fields = detector.fields(x0, reading)  # (1, C, s, s)
    seen = detector.read(x0, reading, fields=fields)
    return View(
        field_norm=fields[0].norm(dim=0).numpy(),
        heat=seen.maps[0],
        score=float(seen.scores[0]),
        p_value=float(seen.p_values[0]),
        calibration_scores=seen.calibration,
        threshold=conformal_threshold(seen.calibration, alpha),
    )
