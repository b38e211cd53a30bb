"""The command line: exit statuses, what retrains and what does not, and what an attack found."""

import json
import shutil
from unittest.mock import Mock

import pandas as pd
import pytest

from irf_lib.files import InputError
from irf_lib.run import parts
from irf_lib.run.results import Run


@pytest.fixture
def photographs(tmp_path, photograph):
    return lambda name, n, **more: photograph(tmp_path / name, n, **more)


@pytest.fixture
def model(fitted, tmp_path):
    """A copy of a fitted model, with good/ beside it."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


def test_fit_and_score_by_their_exit_status(photographs, model, main, sets, tmp_path, capsys):
    good, bad, out = photographs("new", 4, seed=4), photographs("bad", 4, seed=2, defect=True), tmp_path / "r"
    assert [path.name for path in model.iterdir()] == ["detector.safetensors"]
    assert main("score", model, bad, good, "--out", out, "--worst", 3) == 1, "something is flagged"
    said = capsys.readouterr().out
    assert "8 images: " in said and "false-alarm rate 0.05" in said and f"done: {out}/report.html" in said
    assert main("score", model / "detector.safetensors", good, "--out", out, "--alpha", 0.048) == 0, "nothing is"
    (good / "x.png").write_bytes(b"no picture")
    assert main("score", model, good, bad, "--out", out, "--overlays", "flagged") == 2, "one cannot be read"
    assert "error: " in capsys.readouterr().err and len(list((out / "overlays").rglob("*.jpg"))) == 4
    assert len(pd.read_csv(out / "scores.csv")) == 9
    (tmp_path / "file").write_text("")
    assert main("score", model, good, "--out", tmp_path / "file" / "r") == 2, "it cannot be written"
    assert main("fit", photographs("few", 20), "--out", tmp_path / "m", *sets) == 0
    assert "warning: a false-alarm rate of 0.05 needs" in capsys.readouterr().err
    assert main("score", tmp_path / "m", bad, "--out", out) == 0, "it cannot flag"
    assert "nothing will be flagged" in capsys.readouterr().err
    assert "Nothing can be flagged" in (out / "report.html").read_text()
    assert main("score", tmp_path / "m", bad, "--out", out, "--alpha", "0.1429") == 1, "as the warning says"


def test_another_reading_or_alpha_trains_nothing(photographs, model, main, sets, tmp_path, trainings, capsys):
    good, bad, out, seen = tmp_path / "good", photographs("bad", 4, seed=2, defect=True), tmp_path / "r", set()
    for words in ("", "--set t=300", "--alpha 0.1"):
        assert main("fit", good, "--out", model, *sets, *words.split()) == 0
        assert main("score", model, bad, "--out", out) == 1
        facts = json.loads((out / "scores.json").read_text())
        seen.add((facts["threshold"], facts["alpha"]))
    assert not trainings and len(seen) == 3 and {alpha for _, alpha in seen} == {0.05, 0.1}
    assert main("score", model, bad, "--out", out, "--alpha", 0.2) == 1
    assert json.loads((out / "scores.json").read_text())["alpha"] == 0.2
    before = (model / "detector.safetensors").stat().st_mtime_ns
    assert main("fit", good, "--out", model, *sets, "--alpha", 0.1) == 0
    assert (model / "detector.safetensors").stat().st_mtime_ns == before, "the same fit is not even written"
    capsys.readouterr()
    assert main("fit", good, "--out", model, *sets, "--set", "steps=9") == 2
    assert "holds another model, or is damaged; take another folder or --force" in capsys.readouterr().err
    assert main("fit", good, "--out", model, *sets, "--set", "steps=9", "--force") == 0 and len(trainings) == 1


def test_a_model_that_was_edited_is_refused(model, main, sets, tmp_path, capsys):
    path, good = model / "detector.safetensors", tmp_path / "good"
    path.write_bytes(path.read_bytes().replace(b'\\"best_t\\": ', b'\\"best_t\\": 9'))
    assert main("score", model, good, "--out", tmp_path / "r") == main("fit", good, "--out", model, *sets) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == said.count("detector.safetensors") == said.count("\n") == 2
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("score model nowhere --out r", "nowhere: no such file or folder"),
        ("score empty good.png --out r", "empty/detector.safetensors is missing"),
        ("fit two --out m", "at least 3 good images"),
        ("fit set --out m", "holds several categories (a, b); name the folder of one"),
        ("fit two --out two/m", "two/m lies inside two"),
        ("fit two --out m --set t=yes", "t: Input should be a valid integer or Input should be 'auto' (got 'yes')"),
        ("fit two --out m --set t", "--set takes NAME=VALUE, got 't'"),
        ("fit two --out m --device abacus", "device: device 'abacus' is not available here"),
        ("data download nothing", "there is no data set 'nothing' to download"),
        ("data download mvtec_ad --to new --yes", "is given out by its owner only"),
        ("notebook 99", "there is no notebook 99"),
        ("notebook 05 -p data=parts -p category=01", "no category '01'"),
        ("run nothing", "name quick, reference, paper, or a YAML file of yours"),
    ],
)
def test_a_wrong_command_is_one_sentence(words, said, project, main, photographs, capsys):
    (project / "empty").mkdir()
    for name, n in (("two", 2), ("set/a/train/good", 1), ("set/b/train/good", 1), ("one", 1)):
        photographs(name, n)
    (project / "one" / "00.png").rename(project / "good.png")
    assert main(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, InputError])
def test_whatever_goes_wrong_while_scoring_is_not_exit_status_1(model, main, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(parts, "inspect", Mock(side_effect=error("unforeseen")))
    assert main("score", model, tmp_path / "good", "--out", tmp_path / "r") == 2
    assert "unforeseen" in capsys.readouterr().err


def test_an_interrupted_fit_says_what_is_true(photographs, main, sets, tmp_path, monkeypatch, capsys):
    words = ("fit", photographs("good", 20), "--out", tmp_path / "m", *sets)
    with monkeypatch.context() as patch:
        patch.setattr("irf_lib.detector.Detector._normal", Mock(side_effect=KeyboardInterrupt))
        assert main(*words) == 130
    said = f"a checkpoint was kept, the same command resumes: {tmp_path / 'm' / 'detector.checkpoint'}"
    assert said in (error := capsys.readouterr().err) and "interrupted" in error
    assert main(*words) == 0 and "checkpoint" not in capsys.readouterr().err


def test_data_check_names_leaks(project, main, capsys):
    assert main("data", "check", "--data", "parts") == 0 and "no image is there twice" in capsys.readouterr().out
    (project / "parts/bolt/test/good/9.png").write_bytes((project / "parts/bolt/train/good/03.png").read_bytes())
    assert main("data", "check", "--data", "parts") == 2
    assert "test/good/9.png: a test image that is byte for byte the training image" in capsys.readouterr().out
    assert main("data", "check", "--data", "parts", "--category", "nut") == 0
    assert "nut " in (said := capsys.readouterr().out) and "bolt" not in said


def test_a_notebook_goes_beside_its_results_and_export_into_one_file(project, model, main, tiny, monkeypatch):
    execute, export = Mock(), Mock()
    monkeypatch.setattr("irf_lib.run.notebooks.execute", execute)
    monkeypatch.setattr("irf_lib.export.export_onnx", export)
    words = ["-p", "data=parts", "-p", "category=nut", "-p", f"settings={tiny}", "-p", "out=results/x"]
    assert main("notebook", "05", *words) == 0
    _, out, given, _ = execute.call_args.args
    place = "results/x/parts/nut/seed0/notebooks/05_score_and_detect.ipynb"
    assert out == project / place and given["settings"] == tiny
    assert main("export", model, "--out", project / "m") == 0 and export.call_args.args[1] == project / "m/model.onnx"


def test_train_makes_what_03_loads(project, main, tiny, trainings):
    pytest.importorskip("accelerate")
    sets = [word for name, value in tiny.items() for word in ("--set", f"{name}={value}")]
    assert main("train", "--data", "parts", "--category", "nut", "--out", "results/x", "--cpu", *sets) == 0
    given = {"data": "parts", "category": "nut", "seed": 0, "settings": tiny, "out": "results/x", "device": "cpu"}
    Run.open("03_train", **given).detector(progress=False)
    assert len(trainings) == 1
