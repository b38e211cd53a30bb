"""The workflow: which jobs there are, what a failed category and a killed run leave, and that both go on."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from irf_lib.stages import RunParameters

ROOT = Path(__file__).resolve().parents[1]
TINY = "set=backbone=rgb image_size=32 feature_size=8 width=64 depth=1 steps=4 batch_size=4 alpha=0.3"

needs_snakemake = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake"), reason="snakemake is not installed: pip install -e '.[scale]'"
)
needs_slurm = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_slurm"),
    reason="the Slurm plugin is not installed: pip install -e '.[scale]'",
)


@pytest.fixture
def toys(tmp_path):
    """Two categories in MVTec AD layout, of which cog has a damaged image."""
    rng = np.random.default_rng(0)
    names = [f"train/good/{i}" for i in range(12)] + ["test/good/0", "test/hole/0"]
    for path in [tmp_path / "toys" / category / f"{name}.png" for category in ("bolt", "cog") for name in names]:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    (damaged := tmp_path / "toys/cog/train/good/3.png").write_bytes(damaged.read_bytes()[:60])
    return tmp_path / "toys"


def start(toys, *words, **config):
    """Snakemake on ``toys`` in a working folder of its own, so that its records and locks are not the project's."""
    folder = toys.parent / "work"
    folder.mkdir(exist_ok=True)
    settings = {"data": toys, "out": toys.parent / "out"} | config
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", *words]
    command += ["--directory", folder, "--config", *(f"{name}={value}" for name, value in settings.items()), TINY]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
        )


def finish(process, toys):
    """(exit status, what it said)."""
    status = process.wait(300)
    return status, (toys.parent / "work" / "log").read_text()


def test_parts_have_names_of_their_own():
    parts = [
        {},
        {"data": "sets/visa"},
        {"categories": ["a"]},
        {"categories": ["a", "b"]},
        {"categories": ["a"], "seeds": [1]},
        {"categories": ["a"], "seeds": [1, 2]},
        {"seeds": [1]},
        {"seeds": [1], "unified": "yes"},
        {"seeds": [1], "unified": "no"},
        {"categories": [f"category{i}" for i in range(40)]},
        {"categories": [f"category{i}" for i in range(41)]},
    ]
    names = [RunParameters(**one).part for one in parts]
    assert names[0] == "" and names[4] == "a_seed1" and names[1] == "visa"
    assert len(set(names)) == len(names) and max(map(len, names)) <= 100


def test_readme_estimate_comes_from_the_committed_tables():
    spec = importlib.util.spec_from_file_location("estimate", ROOT / "workflow" / "estimate.py")
    estimate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(estimate)
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- estimate -->\n{estimate.markdown()}\n<!-- /estimate -->" in readme
    train, a, b, gather = estimate.measured()
    for said in (f"({train:.0f} s)", f"({a:.0f} s and {b:.2f} s a test image", f"gathering, {gather:.0f} s each"):
        assert said in readme
    # 4 categories of 50 test images, 3 seeds: 12 jobs of 1 h, and 12 x 6 minutes of gathering
    hours = estimate.estimate(4, 200, 3600 - estimate.START - 150, 100, 1, 360)
    assert hours == pytest.approx([12 + 1.2, 6 + 1.2, 1 + 1.2, 1 + 1.2])


@needs_snakemake
@needs_slurm
def test_the_cluster_gets_every_stage_of_every_category_and_seed(toys):
    status, said = finish(start(toys, "-n", "--profile", ROOT / "workflow/profiles/slurm", seeds="0,1"), toys)
    assert status == 0, said
    jobs = [f"{stage}.toys_{c}_seed{seed}" for stage in ("03_train", "05_score_and_detect") for c in ("bolt", "cog")
            for seed in (0, 1)]  # fmt: skip
    assert all(f"parts/{job}.ipynb" in said for job in jobs)
    counts = dict(line.split() for line in said.splitlines() if line.startswith(("stage ", "gather ", "total ")))
    assert counts == {"stage": "8", "gather": "1", "total": "10"}
    assert "mem_mb=8000" in said and "mem_mb=16000" in said and "runtime=60" in said, "the profile was read"


@needs_snakemake
def test_a_failed_category_and_a_killed_run(toys):
    out, words = toys.parent / "out", ("--cores", "2", "--workflow-profile", ROOT / "workflow/profiles/default")
    only = {"stages": "03", "gather": ""}
    bolt, cog = (out / f"notebooks/parts/03_train.toys_{name}_seed0.ipynb" for name in ("bolt", "cog"))

    status, said = finish(start(toys, *words, **only), toys)
    assert status == 1 and bolt.is_file() and not cog.exists(), said
    assert "3.png: not a readable" in (out / "logs/03_train.toys_cog_seed0.log").read_text(), "the log says why"

    (toys / "cog/train/good/3.png").write_bytes((toys / "cog/train/good/4.png").read_bytes())
    made = bolt.stat().st_mtime_ns
    killed = start(toys, *words, **only)
    partial = out / "notebooks/03_train.toys_cog_seed0.partial.ipynb"
    end = time.monotonic() + 120
    while not partial.exists():
        assert killed.poll() is None and time.monotonic() < end, finish(killed, toys)
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not cog.exists()

    assert finish(start(toys, "--unlock", **only), toys)[0] == 0
    status, said = finish(start(toys, *words, **only), toys)
    assert status == 0 and cog.is_file() and f"output: {cog}" in said, said
    assert bolt.stat().st_mtime_ns == made and f"output: {bolt}" not in said, "only what is missing runs"
    assert sorted(pd.read_csv(out / "denoising.csv").detector.unique()) == ["toys_bolt_seed0", "toys_cog_seed0"]
    assert {path.name for path in (out / "stages").glob("*.json")} == {
        f"03_train.toys_{name}_seed0.json" for name in ("bolt", "cog")
    }
