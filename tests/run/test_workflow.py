"""The Snakefile: which jobs there are, and that a failed category takes no other down."""

import fcntl
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("snakemake")


@pytest.fixture
def run(project):
    """Start `python -m irf_lib run` in the project: (exit status, what it said)."""

    def start(*words):
        command = [sys.executable, "-m", "irf_lib", "run", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(project), "XDG_CACHE_HOME": str(project / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout + done.stderr

    return start


@pytest.fixture
def write(project, tiny):
    def yaml_file(**changes):
        content = {"run": "mine", "data": "parts", "settings": tiny, "seeds": [0],
                   "notebooks": {"every detector": ["03"], "once": []}} | changes  # fmt: skip
        (project / "mine.yaml").write_text(yaml.safe_dump(content))
        return project / "mine.yaml"

    return yaml_file


def jobs(said):
    return int(re.search(r"^notebook +(\d+)$", said, re.MULTILINE)[1])


@pytest.mark.parametrize("name", ["reference", "paper"])
def test_the_runs_that_are_kept_have_their_notebooks(project, run, name):
    root = (project / "irf_lib").resolve().parent
    (project / "notebooks").rename(project / "cut")
    (project / "notebooks").symlink_to(root / "notebooks")
    where = yaml.safe_load((root / "workflow" / f"{name}.yaml").read_text())["notebooks"]
    status, said = run(name, "-n", "--config", "data=parts", "run=x", "categories=[bolt, nut]", "seeds=[0]")
    assert status == 0, said
    every, first, once = (len(where[one]) for one in ("every detector", "first detector", "once"))
    assert jobs(said) == 2 * every + first + once - (name == "paper"), "a unified detector is trained once"
    assert "results/x/provenance/15_results.json" in said


def test_several_data_sets_categories_and_seeds_in_one_run(project, run, write):
    (project / "more").mkdir()
    (project / "parts" / "nut").rename(project / "more" / "nut")
    shutil.copytree(project / "parts/bolt/train", project / "parts/cog/train")
    data = [{"folder": "parts"}, {"folder": "more", "unified": True}, {"folder": "more", "notebooks": ["03"]}]
    status, said = run(write(data=data, seeds=[0, 7], notebooks={"every detector": ["03", "05"], "once": []}), "-n")
    assert status == 0 and jobs(said) == 12, said  # without labels, a cog is trained on and not measured
    for place in ("parts/bolt/seed7/provenance/03_train", "parts/bolt/seed0/provenance/05_score_and_detect",
                  "more/unified/seed0/nut/provenance/05_score_and_detect",
                  "more/nut/seed7/provenance/03_train"):  # fmt: skip
        assert f"results/mine/{place}.json" in said


def test_a_wrong_yaml_is_one_sentence(run, write):
    status, said = run(write(sees=[0]), "-n")
    assert status == 1 and "there is no setting sees; there are run, preset, data" in said


def test_a_failed_category_leaves_the_others_and_the_same_command_resumes(project, run, write):
    path, damaged = write(), project / "parts/nut/train/good/03.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])
    status, said = run(path)
    folders = {name: project / "results/mine/parts" / name / "seed0" for name in ("bolt", "nut")}
    assert status == 1 and (folders["bolt"] / "provenance/03_train.json").is_file(), said
    assert not (folders["nut"] / "provenance").exists() and not (folders["nut"] / "notebooks/03_train.ipynb").exists()
    assert "03.png: not a readable" in (folders["nut"] / "logs/03_train.log").read_text(), "the log says why"
    damaged.write_bytes(whole)
    status, said = run(path, "-n")
    assert jobs(said) == 1 and "nut/seed0/provenance/03_train.json" in said, "only what is missing runs"
    notebook = project / "notebooks" / "03_train.ipynb"
    notebook.write_text(notebook.read_text().replace("progress=False", "progress=True"))
    status, said = run(path, "-n")
    assert jobs(said) == 2, "a notebook that changed is executed again"


def test_one_run_at_a_time(project, main, capsys):
    (project / ".snakemake").mkdir()
    with (project / ".snakemake" / "quick.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main("run") == main("run", "quick", "-n") == 2
    assert "another command makes the run quick at this moment; wait for it to end" in capsys.readouterr().err
