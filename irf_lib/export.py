"""A fitted detector as one ONNX file: pixels in, verdicts out, with no Python and no irf_lib where it runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .detector import Detector
from .files import InputError, RunError, write_atomically
from .irf import inverse_residual_field, network_input, predicted_x0
from .networks.fast import fold
from .scoring import anomaly_map, image_score


class Exported(nn.Module):
    """The pipeline of detector.py in one graph, under the detector's own reading.

    image (N, 3, H, H) in [0, 1], of the detector's image_size -> score (N,) and map (N, H, H) in nats, and the
    conformal p_value (N,) in (0, 1]. A part is defective at the false-alarm rate alpha where p_value <= alpha.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.backbone, self.reading, self.size = detector.backbone, detector.reading, detector.settings.image_size
        self.net, self.density = fold(detector.denoiser, self.reading.t), detector.density()
        noise = detector._noise(self.reading, detector.mean.expand(1, -1, *2 * [detector.backbone.size]))
        held_out = torch.from_numpy(detector.calibration()).float()
        for name, value in {"mean": detector.mean, "std": detector.std, "abar": detector.abar, "noise": noise,
                            "held_out": held_out}.items():  # fmt: skip
            self.register_buffer(name, value)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, how = self.reading.t, self.reading.input
        x0 = (self.backbone.maps(image) - self.mean) / self.std
        field = inverse_residual_field(self.net, x0, t, self.abar, how, self.noise)
        estimate = predicted_x0(network_input(x0, t, self.abar, how, self.noise), field, self.abar[t])
        nll = self.density.nll(field, estimate)
        score = image_score(nll, self.reading.image_score)
        at_least = (self.held_out >= score[:, None]).sum(dim=1)
        return score, anomaly_map(nll, self.size), (1 + at_least) / (len(self.held_out) + 1)


def export_onnx(detector: Detector, path: Path) -> Path:
    """Write ``path``, one ONNX file with the inputs and outputs of :class:`Exported`, N free; returns ``path``.

    Raises RunError where the packages are missing or the file cannot be written, InputError for a detector with parts
    that ONNX cannot express, such as a density of one's own that branches on values.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise RunError("an export needs onnx and onnxscript: pip install 'irf-lib[onnx]'") from None
    module, size = Exported(detector.cpu()).eval(), detector.settings.image_size
    try:
        program = torch.onnx.export(
            module,
            (torch.rand(2, 3, size, size),),
            input_names=["image"],
            output_names=["score", "map", "p_value"],
            dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(f"this detector cannot be written as ONNX: {str(error).splitlines()[0]}") from None
    return write_atomically(path, lambda temporary: program.save(temporary, external_data=False))
