"""The notebooks: their skeleton, and all of them executed at the quick preset."""

import ast
import json
import re
import shutil
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from irf_lib import benchmark, datasets
from irf_lib.__main__ import main
from irf_lib.detector import OneStepDetector
from irf_lib.metrics import METRICS
from irf_lib.runner import notebook_parameters
from irf_lib.runs import METRIC_COLUMNS, VERDICTS
from irf_lib.scoring import DENSITIES
from irf_lib.stages import STAGES, RunParameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


# --- the skeleton -------------------------------------------------------------------------------------------------


@each_notebook
def test_headings(path):
    prose = [cell.source for cell in cells(path, "markdown")]
    title = prose[0].splitlines()[0]
    assert title == f"# {STAGES[path.stem].question}" and title.endswith("?"), "the title is the question"
    for row in ("| Paper |", "| Reads |", "| Writes |", "| Time |"):
        assert row in prose[0]
    for pattern in STAGES[path.stem].writes:
        assert pattern.split("*")[0].strip("/") in prose[0], f"the head names {pattern}"
    headings = [line for text in prose for line in text.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["## You will", "## The idea"]
    assert headings[-2:] == ["## Checks", "## What you should see"]
    assert 3 <= prose[1].count("\n- ") <= 5
    assert "does not show" in prose[-1] and "Exercises" in prose[-1] and "Next:" in prose[-1]


@each_notebook
def test_parameters_cell(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    shared = set()
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.AnnAssign), "every parameter is annotated"
        ast.literal_eval(statement.value)  # raises if anything is derived
        shared |= {statement.target.id} & set(RunParameters.model_fields)
    assert all("#" in line for line in tagged[0].source.splitlines()), "every parameter is explained"
    assert {"preset", "out", "device"} <= shared
    # papermill's own parser must see them all: a line that it cannot read is a parameter that cannot be set.
    assert set(notebook_parameters(path)) == {s.target.id for s in ast.parse(tagged[0].source).body}


@each_notebook
def test_cells_are_small_and_explained(path):
    code = [cell.source for cell in cells(path, "code")]
    lengths = [len(source.splitlines()) for source in code]
    assert statistics.median(lengths) <= 12 and max(lengths) <= 45, lengths
    prose = sum(len(cell.source) for cell in cells(path, "markdown"))
    assert prose >= 0.75 * sum(map(len, code))
    assert "!pip" not in "".join(code) and "/home/" not in "".join(code)


@each_notebook
def test_no_outputs_are_committed(path):
    for cell in cells(path, "code"):
        assert cell.outputs == [] and cell.execution_count is None


@each_notebook
def test_a_figure_is_saved_and_read(path):
    kinds = [(cell.cell_type, cell.source) for cell in nbformat.read(path, as_version=4).cells]
    for (kind, source), (next_kind, next_source) in zip(kinds, kinds[1:], strict=False):
        if kind == "code" and "save_figure" in source:
            assert source.splitlines()[-1].startswith("run.save_figure("), "a figure cell ends in save_figure"
            assert next_kind == "markdown" and next_source.startswith("Read it:")


def test_no_definition_stands_in_two_notebooks():
    names = [
        node.name
        for path in NOTEBOOKS
        for cell in cells(path, "code")
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    assert len(names) == len(set(names))


# --- executed ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run through the command line, in a folder of its own."""
    out = tmp_path_factory.mktemp("results") / "quick"
    assert main(["run", "--preset", "quick", "--out", str(out)]) == 0
    return out


@each_notebook
def test_executed_at_the_quick_preset(quick, path):
    executed = nbformat.read(quick / "notebooks" / path.name, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source]
    assert all(cell.execution_count for cell in code)
    for pattern in STAGES[path.stem].writes:
        files = list(quick.glob(pattern))
        assert files, f"{path.stem} declares {pattern}"
        for file in files:
            if file.suffix != ".safetensors":  # named by its hash in detector.json
                assert file.with_suffix(".json").is_file(), f"{file.name} has its provenance beside it"
    text = (quick / "notebooks" / path.name).read_text()
    assert str(ROOT) not in text, "an executed copy names no folder of this machine"


def test_figures_are_pdf_and_png(quick):
    for png in (quick / "figures").glob("*.png"):
        assert png.stat().st_size > 5000 and png.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert len(list((quick / "figures").glob("*.png"))) >= 7


def test_quick_metrics(quick):
    metrics = pd.read_csv(quick / "metrics.csv")
    assert tuple(metrics.columns) == METRIC_COLUMNS
    assert metrics[list(METRICS)].stack().between(0, 1).all() and metrics[list(METRICS)].notna().all().all()
    mean = metrics.groupby("method")["I-AUROC"].mean()
    assert mean["irf"] >= 0.95
    assert mean["irf"] > mean["gaussian:standard"], "the field separates where N(0, I) on the features does not"
    assert {"irf", "irf:untrained", "gaussian", "gaussian:standard", "knn"} <= set(mean.index)
    # Before training a preconditioned network is the Gaussian optimum: up to shrinkage the raw-feature Gaussian.
    assert mean["irf:untrained"] == pytest.approx(mean["gaussian"], abs=0.01)
    assert metrics.category.nunique() == 4 and (metrics.n_test_anomalous > 0).all()
    raw = pd.read_csv(quick / "raw_pixels.csv")
    assert (raw["I-AUROC"] < 0.8).sum() >= 2, "raw pixels fail on some of the embedded categories"


def test_quick_decisions(quick):
    decisions = pd.read_csv(quick / "decisions.csv")
    assert (decisions.flagged == (decisions.score > decisions.threshold)).all()
    assert decisions[decisions.anomalous].flagged.mean() > decisions[~decisions.anomalous].flagged.mean() + 0.3


def test_quick_timestep_study(quick):
    table = pd.read_csv(quick / "timestep_invariance.csv")
    assert set(table.study) == {"detection", "agreement", "neighbour", "steps", "choice"}
    assert table.category.nunique() == 4
    next_to = table[(table.study == "neighbour") & (table.quantity == "cosine") & (table.t2 == table.t + 1)]
    far = table[(table.study == "agreement") & (table.quantity == "cosine")]
    assert len(next_to) == 4 * 2 and next_to.value.min() > 0.99 > far.value.min(), (
        "a network is smooth in t, not constant"
    )
    detection = table[table.study == "detection"]
    assert set(detection.input) == {"clean", "scaled", "noised"} and set(detection.density) == set(DENSITIES)
    # The same reading is a row of metrics.csv too, made by another notebook.
    metrics = pd.read_csv(quick / "metrics.csv").query("method == 'irf:t=50'").set_index("category")["I-AUROC"]
    again = detection.query("t == 50 and input == 'scaled' and density == 'full' and quantity == 'I-AUROC'")
    pd.testing.assert_series_equal(
        again.set_index("category").value.sort_index(), metrics.sort_index(), check_names=False, atol=1e-4
    )
    leak = pd.read_csv(quick / "breaks.csv").query("quantity == 'good against good'").set_index("network")
    assert leak.value["one draw a batch"] > 0.4 > 0.2 > leak.value["one draw for each image"], "found out of nothing"
    random = pd.read_csv(quick / "breaks.csv").query("network == 'random weights'")
    assert (
        random[random.quantity == "cosine"].value.min() > 0.9
        and random[random.quantity == "loss / optimum"].value.max() > 2
    )


def test_quick_normality(quick):
    effects = pd.read_csv(quick / "normality.csv")
    pooled = effects[(effects.group == "all") & (effects.t == 200)].set_index(["coordinates", "effect"]).value
    assert (pooled["standard", "w2"] > pooled["fitted", "w2"].max()).all(), "fitting a Gaussian brings it nearer"
    controls = pd.read_csv(quick / "normality_controls.csv")
    assert len(controls) == 4 and (controls.verdict == "not Gaussian").all() and (controls.norm_mean > 2).all()
    holm = pd.read_csv(quick / "normality_holm.csv")
    assert (holm.p_holm >= holm.p).all() and len(holm) == 4 * 2 * 3


def test_quick_claims(quick):
    claims = pd.read_csv(quick / "claims.csv").set_index("claim")
    studies = {"b", "d", *(f"e{i}" for i in range(1, 9)), *(f"c{i}" for i in range(1, 6))}
    assert set(claims.index) == studies | {"d2", "f1", "f2", "f3"}
    assert claims.verdict["f1"] == "not tested", "the embedded data are none of the paper's"
    assert set(claims.verdict) <= set(VERDICTS) and claims.notna().all().all()
    assert claims.verdict["b"] == claims.verdict["e1"] == "holds", "algebra"
    assert claims.verdict["e3"] == claims.verdict["c1"] == "does not hold"


def test_quick_benchmark(quick):
    table = pd.read_csv(quick / "benchmark.csv")
    assert tuple(table.columns) == benchmark.COLUMNS
    named = {"floor", "score", "backbone", "denoiser", "density", "upsample", "inversion3", "reconstruct10"}
    assert named | {"gaussian", "knn", "metrics40", "sort40", "train_step", "train_bare", "decode"} <= set(table.name)
    targets = pd.read_csv(quick / "speed_targets.csv")
    assert len(targets) == 11 and set(targets.met) <= {"yes", "no", "undecided"}
    assert (targets.lo <= targets.value).all() and (targets.value <= targets.hi).all()


def test_bf16_scoring_keeps_the_auroc(quick):
    for folder in sorted((quick / "detectors" / "textures").iterdir()):
        detector = OneStepDetector.load(folder / "seed0", "cpu")
        category = datasets.read_category(ROOT / "data" / "textures", folder.name)
        images = torch.from_numpy(datasets.load_images([one.path for one in category.test], 256))
        labels = [one.is_anomalous for one in category.test]
        wide, narrow = (roc_auc_score(labels, detector.scorer(p)(images)[0].numpy()) for p in ("fp32", "bf16"))
        assert abs(wide - narrow) <= 0.002, folder.name


def test_a_second_run_skips_everything(quick, capsys):
    before = {path: path.stat().st_mtime_ns for path in quick.rglob("*.csv")}
    assert main(["run", "--preset", "quick", "--out", str(quick)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("current, skipped") == len(NOTEBOOKS)
    assert before == {path: path.stat().st_mtime_ns for path in quick.rglob("*.csv")}


def test_plain_papermill_leaves_the_same(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "copy"
    shutil.copytree(quick, out)
    shutil.rmtree(out / "figures")
    for name in ("metrics.csv", "decisions.csv", "field.csv"):
        (out / name).unlink(missing_ok=name == "field.csv")
    for stage in ("04_inverse_residual_field", "05_score_and_detect"):
        parameters = {"preset": "quick", "out": str(out), "categories": ["woven"]}
        papermill.execute_notebook(
            f"notebooks/{stage}.ipynb", str(tmp_path / "out.ipynb"), parameters, progress_bar=False
        )

    def woven(folder):
        table = pd.read_csv(folder / "metrics.csv").query("category == 'woven'")
        return table.drop(columns=["ms_per_image", "train_s"]).reset_index(drop=True)

    pd.testing.assert_frame_equal(woven(out), woven(quick))


def test_a_failing_notebook_stops_the_run(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(["run", "--preset", "quick", "--out", str(out), "--only", "02", "-p", "toy_steps=0"]) == 1
    error = capsys.readouterr().err
    assert "02_toy_ddpm failed in cell" in error and "steps" in error
    partial = re.search(r"partly executed notebook is (.*)", error)[1]
    assert json.loads((ROOT / partial).read_text())["cells"], "and it is there to look at"
    assert not (out / "notebooks" / "02_toy_ddpm.ipynb").exists()


def photographs(folder, kinds, n=4):
    """A few 32 px noise images in each of the folders ``kinds`` (name -> contrast)."""
    rng = np.random.default_rng(0)
    for kind, contrast in kinds.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = (128 + contrast * rng.standard_normal((32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")


TINY = ["backbone=rgb", "image_size=32", "feature_size=4", "width=64", "depth=1", "steps=3", "alpha=0.5"]


def run_tiny(tmp_path, *options):
    sets = [part for one in TINY for part in ("--set", one)]
    return main(["run", "--out", str(tmp_path / "out"), *sets, "--device", "cpu", *options])


def test_a_folder_of_good_images_alone_trains_a_detector(tmp_path, capsys):
    photographs(tmp_path / "parts", {".": 10}, n=8)
    assert run_tiny(tmp_path, "--data", str(tmp_path / "parts"), "--only", "01", "--only", "03", "--only", "05") == 0
    assert "05_score_and_detect: no labelled test images, skipped" in capsys.readouterr().out
    assert list((tmp_path / "out").glob("detectors/parts/parts/seed0/detector.json"))


def test_unified_without_masks(tmp_path):
    for name in ("bolt", "nut"):
        photographs(tmp_path / "set" / name, {"train/good": 10, "test/good": 10, "test/scratched": 90}, n=6)
    stages = [part for one in ("03", "04", "05", "10") for part in ("--only", one)]
    assert run_tiny(tmp_path, "--data", str(tmp_path / "set"), "--unified", *stages) == 0
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(metrics.category) == {"bolt", "nut"} and metrics.method.str.endswith("unified").all()
    assert metrics["I-AUROC"].notna().all() and metrics["P-AUROC"].isna().all()
    assert [path.name for path in (tmp_path / "out" / "detectors" / "set").iterdir()] == ["unified"], "one model"
    # A run of single models adds its rows to the same tables.
    assert run_tiny(tmp_path, "--data", str(tmp_path / "set"), "--category", "nut", *stages[:2], *stages[4:6]) == 0
    assert pd.read_csv(tmp_path / "out" / "metrics.csv").groupby("method").size()[["irf", "irf:unified"]].tolist() == [
        1,
        2,
    ]
