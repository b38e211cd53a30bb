"""One's own parts from Python: which images, what is found, what is written and what is left alone."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from irf_lib import Detector
from irf_lib.run import parts as own_parts


@pytest.fixture(scope="module")
def detector(fitted):
    return Detector.load(fitted / "model" / "detector.safetensors", device="cpu")


def inspect(detector, source, out, **more):
    images = own_parts.find_images([source], leave_out=out / "overlays")
    result = own_parts.inspect(detector, images, out, progress=None, **more)
    return result, pd.read_csv(out / "scores.csv", keep_default_na=False).set_index("image")


def test_the_overlay_is_clear_below_its_limits_and_outlines_what_is_above_the_threshold():
    detector = SimpleNamespace(calibration=lambda: np.array([0.0] * 30 + [2.5]))  # colours from 0 to 10
    picture, heat = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.float32)
    heat[2:6, 2:6] = 9
    drawn = own_parts.overlay(detector, own_parts.Finding(Path("part.png"), "flagged", heat=heat), picture, 0.04)
    assert own_parts.colour_limits(detector) == (0, 10)
    assert (drawn[0, 0] == 100).all() and (drawn[2, 2] == (0, 255, 255)).all()
    assert (drawn[3, 3] != 100).any() and (drawn[3, 3] != (0, 255, 255)).any()


def test_the_table_and_the_page(detector, tmp_path, photograph):
    photograph(tmp_path / "in" / "shift 1", 10, seed=1)
    photograph(tmp_path / "in" / "shift 2" / "line <b>", 6, seed=2, defect=True)
    out = tmp_path / "report"
    result, table = inspect(detector, tmp_path / "in", out, worst=5)
    assert ("image", *table.columns) == own_parts.COLUMNS and len(table) == 16
    defective = table.index.str.startswith("shift 2/line <b>/")
    assert defective.sum() == 6 and (table[defective].verdict == "flagged").all()
    assert (table[~defective].verdict == "passed").mean() >= 0.7
    assert ((table.p_value <= 0.05) == (table.verdict == "flagged")).all()
    facts = json.loads((out / "scores.json").read_text())
    assert (facts["n"], facts["flagged"], facts["alpha"]) == (16, result.count("flagged"), 0.05)
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "report.html", "scores.csv", "scores.json"]
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 1 + 2 * 5 and all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page), "nothing is asked for from elsewhere"
    assert "line <b>" not in page
    assert page.count("<figure") == page.count("shift 2/line &lt;b&gt;/") == 5, "the worst are the defective ones"
    assert len(list((out / "overlays").rglob("*.jpg"))) == 16
    with Image.open(out / "overlays" / "shift 2" / "line <b>" / "00.png.jpg") as file:
        assert file.size == (40, 30), "as its picture"


def test_names_of_any_kind_lose_no_result_and_are_no_formula(detector, tmp_path, photograph):
    source = photograph(tmp_path / "in", 9, seed=3)
    names = [b"b\xe9d.png", b"a b.png", b"it's.png", "ä.png".encode(), b"=1+1.png", b"+x.png", b"-x.png", b"@x.png"]
    names += [b"\x1b[31mred.png"]
    for i, name in enumerate(names):
        (source / f"{i:02d}.png").rename(os.fsdecode(os.path.join(os.fsencode(source), name)))
    Path(os.fsdecode(os.path.join(os.fsencode(source), b"dama\xffged.png"))).write_bytes(b"no image")
    result, table = inspect(detector, source, tmp_path / "out")
    assert {"b\\xe9d.png", "ä.png", "'=1+1.png", "'+x.png", "'-x.png", "'@x.png", "\\x1b[31mred.png"} < set(table.index)
    assert table.verdict["dama\\xffged.png"] == "unreadable" and "dama\\xffged.png" in table.message["dama\\xffged.png"]
    assert (table.verdict != "unreadable").sum() == 9 and result.count("unreadable") == 1
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 9
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "b\\xe9d.png" in page and "\x1b" not in page


def test_results_are_replaced_together_and_other_peoples_files_stay(detector, tmp_path, monkeypatch, photograph):
    source, out = photograph(tmp_path / "in", 3, seed=3), tmp_path / "in" / "report"
    inspect(detector, source, out)
    (out / "overlays" / "mine.png.jpg").write_bytes(b"somebody's")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    (out / ".new").mkdir()
    (out / ".new" / "00.png").write_bytes(b"half: the call that made it was killed")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(own_parts, "_page", lambda *_: 1 / 0)
        inspect(detector, source, out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before, "all or nothing, and nothing else is left"
    (source / "00.png").unlink()
    _, table = inspect(detector, source, out, overlays="all")
    assert list(table.index) == ["01.png", "02.png"], "the report among the images is not scored"
    assert {path.name for path in (out / "overlays").iterdir()} == {"01.png.jpg", "02.png.jpg", "mine.png.jpg"}
    facts = json.loads((out / "scores.json").read_text())
    (tmp_path / "precious.jpg").write_text("x")
    (out / "scores.json").write_text(json.dumps(facts | {"overlays": ["../../../precious.jpg", "01.png.jpg"]}))
    inspect(detector, source, out, overlays="none")
    assert (tmp_path / "precious.jpg").exists(), "a list that was edited reaches nothing elsewhere"
    assert {path.name for path in (out / "overlays").iterdir()} == {"02.png.jpg", "mine.png.jpg"}


def test_an_image_that_cannot_be_read_or_drawn_stops_no_other(detector, tmp_path, monkeypatch, photograph):
    source, load = photograph(tmp_path / "in", 3, seed=3), own_parts.load_picture
    (source / "01b.png").write_bytes(b"not a picture")
    (source / ".hidden.png").write_bytes(b"left out")
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")

    def remove_and_load(path):  # it is scored by then
        if path.name == "01.png":
            path.unlink()
        return load(path)

    monkeypatch.setattr(own_parts, "load_picture", remove_and_load)
    _, table = inspect(detector, source, tmp_path / "r")
    assert table.index.tolist() == ["00.png", "01.png", "01b.png", "02.png", "gone.png"]
    unreadable = table[table.verdict == "unreadable"]
    assert list(unreadable.index) == ["01b.png", "gone.png"]
    assert all(name in message for name, message in unreadable.message.items())
    assert table.score["01.png"] != "" and "scored, but without a picture" in table.message["01.png"]
    assert "01b.png: not a readable" in (tmp_path / "r" / "report.html").read_text()


def test_which_images(fitted, tmp_path, monkeypatch, photograph, refused):
    good = fitted / "good"
    monkeypatch.chdir(good)
    given = [good, good / "03.png", Path("04.png"), Path("../good/05.png")]
    assert own_parts.find_images(given) == sorted(good.glob("*.png")), "each once"
    source = photograph(tmp_path / "in", 2, seed=3)
    (source / "c.webp").write_bytes(b"x")
    (source / "notes.txt").write_text("x")
    (source / "loop").symlink_to(source)
    (source / "linked").symlink_to(photograph(tmp_path / "elsewhere", 1, seed=4))
    with pytest.warns(UserWarning, match=r"1 files of another type are left out \(c.webp\)"):
        found = own_parts.find_images([source])
    assert [path.relative_to(source).as_posix() for path in found] == ["00.png", "01.png", "linked/00.png"]
    (tmp_path / "empty").mkdir()
    for place, words in (("a.png", "no such file"), ("empty", "no image there"), ("in/notes.txt", "not an image")):
        refused(words, own_parts.find_images, [tmp_path / place])
