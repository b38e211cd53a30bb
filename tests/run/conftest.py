"""A project folder of its own with two small categories, and the command line as a function."""

from pathlib import Path

import nbformat
import pytest

from irf_lib.run.commands import app

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "backbone": "rgb", "image_size": 32, "feature_size": 4, "patch_size": 2, "width": 64, "depth": 1, "steps": 12,
    "precision": "fp32",
}  # fmt: skip
NOTEBOOK = """
from irf_lib.run.results import Run
run = Run.open("{stage}", preset=preset, data=data, category=category, seed=seed, test=test, settings=settings,
               reading=reading, out=out, device=device)
detector = run.detector(progress=False)
"""
SCORE = """
test_set = run.test_set(detector)
import pandas as pd
row, interval, images = run.row(test_set, "irf", detector.read(test_set.x0))
run.save_table(pd.DataFrame([row]).drop(columns=["train_s", "ms_per_image", "commit"]), "metrics.csv")
run.save_table(images, "image_scores.csv")
"""
PARAMETERS = (
    'preset: str = "quick"; seed: int = 0; settings: dict = {}; reading: dict = {}; device: str = "auto"\n'
    + "".join(f'{name}: str = ""\n' for name in ("data", "category", "test", "out"))
)


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells; the first one holds the parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = [nbformat.v4.new_code_cell(source) for source in cells]
    code[0].metadata = {"tags": ["parameters"]}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), path)
    return path


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture
def project(tmp_path, monkeypatch, photograph):
    """The working directory: our library and workflow, notebooks 03 and 05 cut short, two categories in parts/."""
    for name in ("irf_lib", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    for stage, more in (("03_train", ""), ("05_score_and_detect", SCORE)):
        body = NOTEBOOK.format(stage=stage)
        write_notebook(tmp_path / "notebooks" / f"{stage}.ipynb", PARAMETERS, body, more or "pass", "run.finish()")
    for seed, name in ((0, "bolt"), (10, "nut")):  # 15 good images to train on, 4 good and 4 with a hole to test
        folder = tmp_path / "parts" / name
        photograph(folder / "train/good", 15, seed)
        photograph(folder / "test/good", 4, seed + 1)
        photograph(folder / "test/hole", 4, seed + 2, True, folder / "ground_truth/hole")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRF_PARENT", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def notebook():
    return write_notebook


@pytest.fixture(scope="session")
def main():
    """The command line: arguments -> exit status."""

    def run(*arguments) -> int:
        with pytest.raises(SystemExit) as end:
            app([str(one) for one in arguments], prog_name="python -m irf_lib")
        return end.value.code or 0

    return run


@pytest.fixture(scope="session")
def sets() -> list[str]:
    """The options of `fit` for a small network."""
    given = "backbone=rgb image_size=32 feature_size=8 width=64 depth=1 steps=40 precision=fp32"
    return [word for one in given.split() for word in ("--set", one)]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, main, sets, photograph) -> Path:
    """A folder with 60 photographs, good/, and what `fit` made of them, model/; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("fitted")
    assert main("fit", photograph(folder / "good", 60), "--out", folder / "model", *sets) == 0
    return folder


@pytest.fixture
def trainings(monkeypatch):
    """A list that grows by one with every training."""
    from irf_lib import detector

    done, train = [], detector.train
    monkeypatch.setattr(detector, "train", lambda *given, **more: done.append(1) or train(*given, **more))
    return done
