"""One's own parts from the command line: fit, score, the table, the pictures, the page and the exit status."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from irf_lib import diffusion, inspection, plots
from irf_lib.__main__ import main
from irf_lib.datasets import DataError
from irf_lib.detector import DetectorSettings, OneStepDetector, calibration_split, images_needed

TINY = ["backbone=rgb", "image_size=32", "feature_size=8", "width=64", "depth=1", "steps=40", "precision=fp32"]
SETS = [part for one in TINY for part in ("--set", one)]


def photographs(folder, n, seed, defect=False):
    """Grey ramps of varying brightness, 40 x 30 pixels; a defect is a red square."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.linspace(60, 180, 40)[None, :, None] + rng.normal(0, 15) + rng.normal(0, 4, (30, 40, 3))
        if defect:
            r, c = rng.integers(2, 20), rng.integers(2, 30)
            pixels[r : r + 8, c : c + 8] += (80, -60, -60)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("parts") / "good", 60, seed=0)


@pytest.fixture(scope="module")
def model(parts):
    folder = parts.parent / "model"
    assert main(["fit", str(parts), "--out", str(folder), *SETS]) == 0
    return folder


@pytest.fixture(scope="module")
def scored(parts, model):
    """A folder of good parts and one of defective ones, scored together."""
    incoming = parts.parent / "incoming"
    photographs(incoming / "shift 1", 10, seed=1)
    photographs(incoming / "shift 2" / "line <b>", 6, seed=2, defect=True)
    out = parts.parent / "report"
    assert main(["score", str(model), str(incoming), "--out", str(out), "--worst", "5"]) == 1, "something is flagged"
    return out


def test_the_table_names_every_image_and_its_verdict(scored):
    table = pd.read_csv(scored / "scores.csv")
    assert tuple(table.columns) == inspection.COLUMNS and len(table) == 16
    defective = table.image.str.startswith("shift 2/line <b>/")
    assert defective.sum() == 6 and (table[defective].verdict == "flagged").all()
    assert (table[~defective].verdict == "passed").mean() >= 0.7
    assert ((table.score > table.threshold) == (table.verdict == "flagged")).all()
    assert ((table.p_value <= 0.05) == (table.verdict == "flagged")).all()
    facts = json.loads((scored / "scores.json").read_text())
    assert (facts["n"], facts["flagged"]) == (16, (table.verdict == "flagged").sum())


def test_an_overlay_has_the_shape_of_its_picture_and_marks_the_defect(scored):
    assert len(list((scored / "overlays").rglob("*.jpg"))) == 16
    with Image.open(scored / "overlays" / "shift 2" / "line <b>" / "00.png.jpg") as file:
        assert file.size == (40, 30)


def test_the_page_is_one_file_and_escapes_names(scored):
    page = (scored / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 1 + 2 * 5 and all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page), "nothing is asked for from elsewhere"
    assert "line &lt;b&gt;/" in page and "line <b>" not in page
    assert page.count("<figure") == page.count("shift 2/line &lt;b&gt;/") == 5, "the worst are the defective ones"


def test_the_same_fit_is_loaded_and_another_one_refused(parts, model, capsys):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in model.iterdir())
    assert main(["fit", str(parts), "--out", str(model), *SETS]) == 0
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in model.iterdir())
    assert main(["fit", str(parts), "--out", str(model), *SETS, "--seed", "1"]) == 2
    assert f"{model} holds another model, or one that cannot be read" in capsys.readouterr().err
    assert not list(model.glob("checkpoint*"))


def test_nothing_flagged_is_exit_status_0(parts, model, tmp_path):
    quiet = ["score", str(model), str(parts / "00.png"), "--out", str(tmp_path / "r"), "--alpha", "0.048"]
    assert main(quiet) == 0
    assert (tmp_path / "r" / "overlays" / "00.png.jpg").is_file()


def test_an_unreadable_image_is_named_and_stops_no_other(parts, model, tmp_path, capsys):
    photographs(tmp_path / "in", 3, seed=3)
    (tmp_path / "in" / "01b.png").write_bytes(b"not a picture")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"left out")
    assert main(["score", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "r"), "--overlays", "none"]) == 2
    table = pd.read_csv(tmp_path / "r" / "scores.csv").set_index("image")
    assert table.index.tolist() == ["00.png", "01.png", "01b.png", "02.png"]
    assert table.verdict["01b.png"] == "unreadable" and "01b.png: not a readable" in table.message["01b.png"]
    assert table.drop("01b.png").score.notna().all()
    assert "error: " in capsys.readouterr().err and not (tmp_path / "r" / "overlays").exists()
    assert "01b.png: not a readable" in (tmp_path / "r" / "report.html").read_text()


def test_only_unreadable_images_still_make_a_report(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    assert main(["score", str(model), str(tmp_path / "x.png"), "--out", str(tmp_path / "r")]) == 2
    assert "Not readable" in (tmp_path / "r" / "report.html").read_text()


def test_twenty_good_images_are_enough_and_a_warning_says_for_what(tmp_path, capsys):
    good = photographs(tmp_path / "good", 20, seed=0)
    bad = photographs(tmp_path / "bad", 4, seed=2, defect=True)
    assert main(["fit", str(good), "--out", str(tmp_path / "m"), *SETS]) == 0
    error = capsys.readouterr().err
    assert "warning: a false-alarm rate of 0.05 needs at least 19 held-out normal images, there are 6" in error
    assert "Fit on 57 images or more, or take an alpha of 0.1429 or more" in error
    command = ["score", str(tmp_path / "m"), str(bad), "--out", str(tmp_path / "r")]
    assert main(command) == 0, "it cannot flag"
    assert "Nothing can be flagged" in (tmp_path / "r" / "report.html").read_text()
    assert "nothing will be flagged" in capsys.readouterr().err, "said when scoring, too"
    assert main([*command, "--alpha", "0.1429"]) == 1
    assert (pd.read_csv(tmp_path / "r" / "scores.csv").verdict == "flagged").all()


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.02, 0.01])
def test_images_needed_is_the_least_that_the_split_makes_enough(alpha):
    needed, images = images_needed(alpha, 0.1)
    assert 1 / (needed + 1) <= alpha < 1 / needed
    assert len(calibration_split(images, 0.1, 0)[1]) >= needed > len(calibration_split(images - 1, 0.1, 0)[1])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["score", "MODEL", "nowhere", "--out", "r"], "nowhere: no such file or folder"),
        (["score", "MODEL", "empty", "--out", "r"], "empty: no image there"),
        (["score", "MODEL", "notes.txt", "--out", "r"], "notes.txt: not an image by its name"),
        (["score", "empty", "good.png", "--out", "r"], "empty: not a model, it has no detector.json"),
        (["score", "MODEL", "good.png", "--out", "r", "--alpha", "2"], "alpha: Input should be less than 1"),
        (["fit", "empty", "--out", "m"], "empty: no data set"),
        (["fit", "two", "--out", "m", *SETS], "at least 3 good images"),
        (["fit", "set", "--out", "m"], "holds 2 categories (a, b); name the folder of one"),
        (["fit", "two", "--out", "two/m"], "two/m lies inside two"),
        (["fit", "two", "--out", "m", "--alpha", "1e-300"], "alpha: Input should be greater than or equal to 0.0001"),
        (["fit", "two", "--out", "m", "--set", "steps=none"], "steps: Input should be a valid integer"),
    ],
)
def test_a_wrong_command_is_one_sentence(command, words, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    photographs(tmp_path / "two", 2, seed=0)
    photographs(tmp_path / "set/a/train/good", 1, seed=0)
    photographs(tmp_path / "set/b/train/good", 1, seed=0)
    photographs(tmp_path, 1, seed=0)
    (tmp_path / "00.png").rename(tmp_path / "good.png")
    assert main([str(model) if word == "MODEL" else word for word in command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error


@pytest.mark.parametrize(("option", "value"), [("--device", "abacus"), ("--worst", "-1"), ("--out", "")])
def test_an_option_that_cannot_be_is_refused(model, option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["score", str(model), "x.png", "--out", "r", option, value])
    assert stop.value.code == 2 and repr(value)[1:-1] in capsys.readouterr().err


def test_whatever_goes_wrong_is_not_exit_status_1(parts, model, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(inspection, "inspect", fail)
    assert main(["score", str(model), str(parts), "--out", str(tmp_path / "r")]) == 2, "a script takes 1 for a defect"
    assert "unforeseen" in capsys.readouterr().err


def test_names_of_any_kind(model, tmp_path, monkeypatch):
    """Names that are no UTF-8, with spaces and quotes, of one stem; paths relative and absolute, inside and above."""
    source = photographs(tmp_path / "in", 6, seed=3)
    names = [b"b\xe9d.png", b"a b.png", b"it's.png", "ä.png".encode(), b"same.png", b"same.png.png"]
    for i, name in enumerate(names):
        (source / f"{i:02d}.png").rename(os.fsdecode(os.path.join(os.fsencode(source), name)))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    out = tmp_path / "out"
    assert main(["score", str(model), "../in", str(source / "a b.png"), "--out", str(out)]) in (0, 1)
    table = pd.read_csv(out / "scores.csv")
    assert len(table) == 6 and "b\\xe9d.png" in set(table.image) and table.score.notna().all()
    assert len(list((out / "overlays").iterdir())) == 6, "nothing lands elsewhere"
    assert list((tmp_path / "work").iterdir()) == []


def test_what_is_left_out_is_said(model, tmp_path, capsys):
    source = photographs(tmp_path / "in", 2, seed=3)
    (source / "c.webp").write_bytes(b"x")
    (source / "notes.txt").write_text("x")
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (source / "loop").symlink_to(source)
    photographs(tmp_path / "elsewhere", 1, seed=4)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    assert main(["score", str(model), str(source), "--out", str(tmp_path / "r")]) == 2
    table = pd.read_csv(tmp_path / "r" / "scores.csv").set_index("image")
    assert sorted(table.index) == ["00.png", "01.png", "gone.png", "linked/00.png"]
    assert table.verdict["gone.png"] == "unreadable"
    assert "warning: 1 files of another type are left out (c.webp)" in capsys.readouterr().err


def test_a_report_in_the_very_folder_of_the_images(model, tmp_path, capsys):
    source = photographs(tmp_path / "in", 3, seed=3)
    for _ in range(2):
        assert main(["score", str(model), str(source), "--out", str(source)]) in (0, 1)
        assert len(pd.read_csv(source / "scores.csv")) == 3
    assert "left out" not in capsys.readouterr().err


def test_a_report_among_the_images_is_not_scored_and_is_replaced(model, tmp_path):
    source = photographs(tmp_path / "in", 3, seed=3)
    for _ in range(2):
        main(["score", str(model), str(source), "--out", str(source / "report")])
        assert len(pd.read_csv(source / "report" / "scores.csv")) == 3
    (source / "00.png").unlink()
    (source / "report" / "overlays" / "mine.jpg").write_bytes(b"somebody's")
    main(["score", str(model), str(source), "--out", str(source / "report")])
    left = {path.name for path in (source / "report" / "overlays").iterdir()}
    assert left == {"01.png.jpg", "02.png.jpg", "mine.jpg"}, (
        "no overlay of an earlier call, and nobody else's file less"
    )


def test_an_image_that_disappears_after_its_score_keeps_it(model, tmp_path, monkeypatch):
    source = photographs(tmp_path / "in", 4, seed=3)
    score = inspection._score

    def and_remove(detector, images):
        found = score(detector, images)
        (source / "01.png").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(inspection, "_score", and_remove)
    main(["score", str(model), str(source), "--out", str(tmp_path / "r")])
    table = pd.read_csv(tmp_path / "r" / "scores.csv").set_index("image")
    assert table.score.notna().all() and "scored, but without a picture" in table.message["01.png"]
    assert (tmp_path / "r" / "report.html").read_text().count("<figure") == 3


def test_a_score_that_is_no_number_stops_no_other(model, parts, tmp_path, monkeypatch):
    detector, images = OneStepDetector.load(model), inspection.find_images([parts])[:5]
    whole = OneStepDetector.score

    def spoiled(self, paths, *more):
        if images[2] in paths:
            raise ValueError("1 of 5 scores are not finite")
        return whole(self, paths, *more)

    monkeypatch.setattr(OneStepDetector, "score", spoiled)
    found = list(inspection.findings(detector, images))
    assert [bool(one.problem) for one in found] == [False, False, True, False, False]
    assert f"{images[2]}: cannot be scored" in found[2].problem


def test_fit_leaves_other_peoples_files_alone(parts, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("checkpoint.pt", "checkpoint.txt", ".detector_notes", "detector.csv"):
        (folder / name).write_text("mine")
    assert main(["fit", str(parts), "--out", str(folder), *SETS]) == 0
    assert {path.name for path in folder.iterdir() if path.read_bytes() == b"mine"} == {
        "checkpoint.pt", "checkpoint.txt", ".detector_notes", "detector.csv"
    }  # fmt: skip
    modes = {path.stat().st_mode for path in folder.glob("detector.*s*")}
    assert len(modes) == 1, "the tensors are as readable as their JSON"


def test_findings_are_those_of_the_detector_whatever_the_chunk(parts, model, monkeypatch):
    detector, images = OneStepDetector.load(model), inspection.find_images([parts])
    together = detector.score(images)
    monkeypatch.setattr(inspection, "CHUNK", 7)
    found = list(inspection.findings(detector, images))
    np.testing.assert_allclose([one.score for one in found], together.scores, rtol=1e-5)
    assert [one.path for one in found] == images and [one.flagged for one in found] == together.flagged.tolist()


def test_find_images_takes_each_once(parts, monkeypatch):
    monkeypatch.chdir(parts)
    given = [parts, parts / "03.png", Path("04.png"), Path("../good/05.png")]
    assert inspection.find_images(given) == sorted(parts.glob("*.png"))
    with pytest.raises(DataError, match="no such file"):
        inspection.find_images([parts / "missing.png"])


def test_fit_goes_on_from_its_checkpoint(parts, tmp_path):
    """A fit that dies leaves a checkpoint; the next one uses it and ends with the same weights."""
    settings = DetectorSettings(**{k: v for k, v in (pair.split("=") for pair in TINY)} | {"steps": 12})
    images = inspection.good_images(parts)
    whole = inspection.fit_model(images, tmp_path / "a", settings, progress=None)

    class Died(BaseException):
        pass

    def dying(self, *arguments):
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OneStepDetector, "calibrate", dying)
        with pytest.raises(Died):
            inspection.fit_model(images, tmp_path / "b", settings, progress=None)
    assert (tmp_path / "b" / "checkpoint.json").is_file() and not (tmp_path / "b" / "detector.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "ddpm_loss", lambda *_: pytest.fail("a step was computed again"))
        again = inspection.fit_model(images, tmp_path / "b", settings, progress=None)
    assert [s.loss for s in again.history] == [s.loss for s in whole.history]
    np.testing.assert_array_equal(again.calibration_scores, whole.calibration_scores)
    assert not list((tmp_path / "b").glob("*checkpoint*"))


def test_heat_overlay_is_clear_below_and_coloured_above():
    picture = np.full((20, 20, 3), 128, np.uint8)
    heat = np.zeros((20, 20))
    heat[5:15, 5:15] = 10
    drawn = plots.heat_overlay(picture, heat, (0, 10), threshold=5)
    assert (drawn[:5] == 128).all(), "nothing where the map is low"
    assert (drawn[5, 5] == (0, 255, 255)).all() and (drawn[5, 5:15] == (0, 255, 255)).all(), "the outline"
    assert (drawn[10, 10] != 128).any() and (drawn[10, 10] != (0, 255, 255)).any()
