"""The book: its contents, what it is laid out from and, where `make book` has built it, the site's links."""

import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "book" / "_build" / "html"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_contents_hold_every_page_and_notebook_in_order_and_nothing_is_executed():
    files = re.findall(r"file: ([\w/]+)", (ROOT / "book" / "_toc.yml").read_text())
    assert [file for file in files if file.startswith("notebooks/")] == [f"notebooks/{name}" for name in NOTEBOOKS]
    assert set(files) >= {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    assert yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["execute"] == {"execute_notebooks": "off"}


def test_pages_show_committed_tables_and_the_first_run_with_provenance(tmp_path):
    pages = runpy.run_path(str(ROOT / "book" / "pages.py"))
    assert "| e7 | mvtec_ad | development | holds |" in pages["filled"](ROOT / "book" / "claims.md"), "a table"
    pages["executed"].__globals__["ROOT"] = tmp_path
    runs = ("new/shop/nut/seed0", "new/shop/bolt/seed0", "new/shop/bolt/seed1")
    left = [f"{run}/provenance/05_x.json" for run in runs]
    for file in ("old/notebooks/05_x.ipynb", *(f"{run}/notebooks/05_x.ipynb" for run in runs), *left):
        (tmp_path / "results" / file).parent.mkdir(parents=True)
        (tmp_path / "results" / file).touch()
    found = pages["executed"]("05_x", ["old", "new"])
    assert found == tmp_path / "results/new/shop/bolt/seed0/notebooks/05_x.ipynb"
    assert pages["executed"]("05_x", ["old"]) is None


def test_a_corrected_sentence_reaches_an_executed_page_and_changed_code_does_not(tmp_path):
    page_of = runpy.run_path(str(ROOT / "book" / "pages.py"))["page_of"]
    cells = [nbformat.v4.new_markdown_cell("old", id="text"), nbformat.v4.new_code_cell("1", id="code")]
    added, gone = nbformat.v4.new_code_cell("seed = 1", id="added"), nbformat.v4.new_markdown_cell("gone", id="gone")
    for code, expected in (("1", "new"), ("2", "old")):
        today = [nbformat.v4.new_markdown_cell("new", id="text"), nbformat.v4.new_code_cell(code, id="code")]
        nbformat.write(nbformat.v4.new_notebook(cells=today), tmp_path / "own.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=[*cells, added, gone]), tmp_path / "copy.ipynb")
        assert [cell.source for cell in page_of(tmp_path / "own.ipynb", tmp_path / "copy.ipynb").cells] == [
            expected, "1", "seed = 1", *["gone"] * (code == "2")]  # fmt: skip


def test_no_page_loads_from_elsewhere_and_every_file_that_it_names_is_there():
    if not all((SITE / "notebooks" / f"{name}.html").exists() for name in NOTEBOOKS):
        pytest.skip("the site is not built, or of other notebooks; `make book` builds it")
    for path in SITE.rglob("*.html"):
        if {"_static", "index.html"} & {*path.parts}:
            continue
        text = path.read_text()
        assert "CC BY-NC-SA 4.0" in text, f"{path} names the images' licence"
        loaded = re.findall(r'\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"', text)
        assert not [url for pair in loaded for url in pair if re.match(r"(?!data:)[a-z]+:|//", url)], path
        for url in re.findall(r'\s(?:src|href)="(?![a-z]+:|//)([^"#?]+)', text):
            assert (path.parent / unquote(url)).exists(), f"{path} refers to {url}"
