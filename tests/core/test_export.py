"""The exported graph says what the detector says, on batches of any size."""

import numpy as np
import pytest
import torch

from irf_lib import Detector, Reading, Settings
from irf_lib.scoring import Density

onnxruntime = pytest.importorskip("onnxruntime")
from irf_lib.export import export_onnx  # noqa: E402
from irf_lib.files import InputError  # noqa: E402

READINGS = [
    (Reading(), "efficientnet-lite0"),
    (Reading(t=50, input="noised", density="local", image_score="max"), "rgb"),
    (Reading(input="clean", density="location", image_score="spread"), "rgb"),
]


@pytest.mark.parametrize(("reading", "backbone"), READINGS)
def test_onnx_runtime_agrees_with_pytorch(tmp_path, reading, backbone):
    images = np.random.default_rng(0).random((36, 3, 64, 64), dtype=np.float32)
    settings = Settings(backbone=backbone, image_size=64, feature_size=8, width=64, depth=2, steps=3, batch_size=4)
    detector = Detector(settings, reading, device="cpu").fit(images[:30], progress=None)
    session = onnxruntime.InferenceSession(export_onnx(detector, tmp_path / "model.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "one file"
    for part in (images[30:], images[detector.fit_index[:1]]):  # a held-out image would tie with itself, up to rounding
        score, heat, p_value = session.run(["score", "map", "p_value"], {"image": part})
        expected = detector.read(part)
        assert score == pytest.approx(expected.scores, rel=1e-3)
        assert np.abs(heat - expected.maps).max() < 1e-3 * np.abs(expected.maps).max()
        assert p_value == pytest.approx(expected.p_values)


class Branching(Density):
    """A density of one's own that no graph can hold."""

    @classmethod
    def fit(cls, fields, estimate=None):
        return cls(scale=fields.abs().mean())

    def nll(self, fields, estimate=None):
        return fields.square().sum(dim=1) * (2 if float(fields.sum()) > 0 else 1)


def test_what_cannot_be_exported_says_so(tmp_path, tiny_detector):
    torch.manual_seed(0)
    with pytest.raises(InputError, match="cannot be written as ONNX"):
        export_onnx(tiny_detector.with_reading(Reading(density=Branching)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
