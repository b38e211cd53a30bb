"""A fitted detector as one ONNX file: pixels in, verdicts out, with no Python and no irf_lib where it runs."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .detector import Detector
from .files import InputError, RunError, write_atomically
from .scoring import anomaly_map, image_score


class Exported(nn.Module):
    """The pipeline of detector.py in one graph, under the detector's own reading.

    image (N, 3, H, H) in [0, 1], of the detector's image_size -> score (N,) and map (N, H, H) in nats, and the
    conformal p_value (N,) in (0, 1]. A part is defective at the false-alarm rate alpha where p_value <= alpha."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector, self.density = detector, detector.density()
        detector.fields(torch.zeros(1, detector.backbone.channels, *2 * [detector.backbone.size]))  # folds the network
        self.register_buffer("held_out", torch.from_numpy(detector.calibration()).float())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        detector, reading = self.detector, self.detector.reading
        x0 = detector._standardised([detector.backbone.maps(image)])
        ((_, nll),) = detector._stages(x0, reading, self.density)
        score = image_score(nll, reading.image_score)
        at_least = (self.held_out >= score[:, None]).sum(dim=1)
        return score, anomaly_map(nll, detector.settings.image_size), (1 + at_least) / (len(self.held_out) + 1)


def export_onnx(detector: Detector, path: Path) -> Path:
    """Write ``path``, one ONNX file with the inputs and outputs of :class:`Exported`, N free; returns ``path``.

    Raises RunError where the packages are missing or the file cannot be written, InputError for a detector with parts
    that ONNX cannot express, such as a density of one's own that branches on values."""
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise RunError("an export needs onnx and onnxscript: pip install 'irf-lib[onnx]'")
    for name in ("torch.onnx", "onnxscript"):  # they warn of each optional package and each step that they leave out
        logging.getLogger(name).setLevel(logging.ERROR)
    module, size = Exported(detector.cpu()).eval(), detector.settings.image_size
    options = {"input_names": ["image"], "output_names": ["score", "map", "p_value"], "dynamo": True, "verbose": False}
    shapes = {"image": {0: torch.export.Dim("N")}}
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of one part of torch about another
            program = torch.onnx.export(module, (torch.rand(2, 3, size, size),), dynamic_shapes=shapes, **options)
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(f"this detector cannot be written as ONNX: {str(error).splitlines()[0]}") from None
    return write_atomically(path, lambda temporary: program.save(temporary, external_data=False))
