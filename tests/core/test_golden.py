"""Golden numbers: the redesigned library computes what the code before it did (tests/golden/README.md)."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from irf_lib import Detector, Reading, Settings
from irf_lib.data.embedded import write_embedded
from irf_lib.data.images import load_mask
from irf_lib.data.layouts import read_category
from irf_lib.diffusion import resolve_precision
from irf_lib.metrics import METRICS, evaluate
from irf_lib.networks.denoisers import gaussian_optimum
from irf_lib.run.presets import PRESETS
from irf_lib.scoring import anomaly_map, image_score
from irf_lib.studies.rivals import RIVALS

ROOT = Path(__file__).parents[2]
TEXTURE = "printed_board"  # of the two that the table holds
GOLDEN = pd.read_csv(ROOT / "tests" / "golden" / "metrics.csv").set_index(["category", "method"]).loc[TEXTURE]
FIELDS = load_file(ROOT / "tests" / "golden" / "fields.safetensors")  # "category/kind/file" -> (C, s, s)
BF16 = resolve_precision("auto", torch.device("cpu")) == "bf16"
EXACT = 1e-5  # relative, of a metric with no training in it
TRAINED = 1e-2 if BF16 else 1e-4  # relative, of a metric of the trained network
FIELD = 5e-2 if BF16 else 1e-3  # relative, of the field of one image


@pytest.fixture(scope="module")
def found():
    """``rows``, method -> metric -> value, and ``fields`` of the golden images."""
    category = read_category(write_embedded(ROOT / "data" / "textures"), TEXTURE)
    settings = Settings(
        **(PRESETS["quick"].settings | {"steps": 100, "batch_size": 16})
    )  # as it was when they were taken
    detector = Detector(settings, Reading(t=200), seed=0, device="cpu").fit(list(category.train), progress=None)
    size = settings.image_size
    labels = np.array([image.is_anomalous for image in category.test])
    masks = np.stack([load_mask(image.mask, size) for image in category.test])
    x0 = detector.features([image.path for image in category.test])
    untrained = detector.with_network(gaussian_optimum(detector.good[0], detector.device))
    rows = {}
    for method, one in {"irf": detector, "irf:untrained": untrained}.items():
        read = one.read(x0)
        rows[method] = evaluate(read.scores, labels, read.maps, masks)
    for method in ("gaussian", "knn"):
        nll = RIVALS[method](detector).nll(x0)
        scores = image_score(nll, "top10").double().numpy()
        rows[method] = evaluate(scores, labels, anomaly_map(nll, size).numpy(), masks)
    names = [f"{category.name}/{image.path.parent.name}/{image.path.name}" for image in category.test]
    fields = {name: detector.fields(x0[i : i + 1])[0] for i, name in enumerate(names) if name in FIELDS}
    return SimpleNamespace(rows=rows, fields=fields)


@pytest.mark.parametrize("method", ["irf:untrained", "gaussian", "knn", "irf"])
def test_metrics_are_what_they_were(found, method):
    tolerance = TRAINED if method == "irf" else EXACT
    for metric in METRICS:
        assert found.rows[method][metric] == pytest.approx(GOLDEN.loc[method, metric], rel=tolerance), metric


def test_fields_are_what_they_were(found):
    for name, field in found.fields.items():
        assert (field - FIELDS[name]).norm() < FIELD * FIELDS[name].norm(), name
    assert found.fields.keys() == {name for name in FIELDS if name.startswith(TEXTURE)} != set()
