"""Every notebook runs from top to end, by the command that people use, and leaves what it says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = ROOT / "results" / "scratch-tests"


def make_run(tmp_path):
    """One category of the embedded data through all notebooks, with small networks that are hardly trained."""
    quick = yaml.safe_load((ROOT / "workflow" / "quick.yaml").read_text())
    settings = {"steps": 10, "image_size": 128, "feature_size": 8}
    small = {"run": f"results/{RUN.name}", "categories": ["brushed_metal"], "settings": settings}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(quick | small))
    command = [sys.executable, "-m", "irf_lib", "run", tmp_path / "tests.yaml"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    shutil.rmtree(RUN, ignore_errors=True)
    done = make_run(tmp_path_factory.mktemp("run"))
    logs = "".join(f"{log}\n{log.read_text()[-800:]}\n" for log in RUN.rglob("*.log") if "error:" in log.read_text())
    assert done.returncode == 0, logs + done.stderr[-3000:]
    yield RUN
    shutil.rmtree(RUN)


def test_every_notebook_was_executed_without_an_error(run):
    executed = {path.name: nbformat.read(path, as_version=4) for path in run.rglob("notebooks/*.ipynb")}
    assert sorted(executed) == [path.name for path in NOTEBOOKS]
    for name, notebook in executed.items():
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"], name
        text = json.dumps(outputs)
        assert "Traceback" not in text and str(ROOT) not in text, f"{name} shows a path of this machine"
        assert "Warning:" not in text, name


def test_every_notebook_leaves_what_it_says(run):
    provenance = {path.stem: (path.parents[1], json.loads(path.read_text())) for path in run.rglob("provenance/*.json")}
    for path in NOTEBOOKS:
        folder, made = provenance[path.stem]
        writes = re.search(r"^\| Writes \| (.+) \|$", nbformat.read(path, as_version=4).cells[0].source, re.M)[1]
        for pattern in re.findall(r"`([^`]+)`", writes):
            found = list(folder.glob(pattern.rstrip("/"))) or list(folder.parent.glob(pattern.rstrip("/")))
            assert found, f"{path.stem} says that it writes {pattern}"
        assert {"commit", "dirty", "parameters", "settings", "versions", "wall_s", "files"} <= set(made)


def test_the_gathered_tables_keep_their_columns(run):
    for name in ("metrics", "summary", "claims", "benchmark"):
        ours, theirs = (
            pd.read_csv(folder / f"{name}.csv", nrows=0) for folder in (run, ROOT / "results" / "reference")
        )
        assert list(ours)[: len(theirs.columns)] == list(theirs), name  # new ones stand behind them
    metrics = pd.read_csv(run / "metrics.csv")
    assert {"irf", "irf:untrained", "gaussian", "knn", "invad3", "reconstruct5", "dte"} <= set(metrics.method)


def test_a_second_run_has_nothing_to_do(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("provenance/*.json")}
    assert make_run(tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("provenance/*.json")} == before
