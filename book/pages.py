"""Lay out the book's pages in book/_build/source for jupyter-book: python book/pages.py [RUN ...].

A notebook is shown as the first of the runs (folders of results/) left it, first category and seed, or without outputs.
Its text is that of today where its code is still the same, so that a corrected sentence needs no new run.
"""

import csv
import re
import shutil
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "book" / "_build" / "source"
NEEDED = ("CITATION.cff", "LICENSE", "data", "irf_lib", "results", "workflow")
TABLE = re.compile(r"^\[.*\]\((.+)\) <!-- table(?:: (.+))? -->$", re.MULTILINE)  # a link, and the columns to show


def executed(name: str, runs) -> Path | None:
    """The executed copy to show; one without provenance is of a layout before this one, and is left out."""
    copies = (copy for run in runs for copy in sorted((ROOT / "results" / run).glob(f"**/notebooks/{name}.ipynb")))
    return next((copy for copy in copies if (copy.parents[1] / "provenance" / f"{name}.json").exists()), None)


def shown(cell: str) -> str:
    """A cell of a CSV file as Markdown; a number to four digits."""
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell.replace("|", "\\|")


def unbroken(text: str) -> str:
    """The text without a place to break a line within a number and its deviation or interval."""
    return re.sub(r" (?=±)|(?<=±) |(?<=\d,) (?=[-+.\d]+\])", "\N{NO-BREAK SPACE}", text)


def table(path: Path, columns: str | None) -> str:
    """A committed table as Markdown: some ``columns`` of a CSV file, or a Markdown file as it is."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        names = columns.split(", ") if columns else rows.fieldnames
        lines = [names, ["---"] * len(names), *([shown(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: Path) -> str:
    """The page as the book shows it: tables stand at their links, and an executed notebook is a page of the book."""
    text = page.read_text(encoding="utf-8")
    text = TABLE.sub(lambda found: unbroken(table(page.parent / found[1], found[2])), text)
    return re.sub(r"results/[\w/-]+/notebooks/(?=\w+\.ipynb\))", "notebooks/", text)


def page_of(path: Path, copy: Path | None) -> nbformat.NotebookNode:
    """The notebook at ``path`` with the outputs of its executed ``copy``, or all of the copy where code has changed."""
    own = nbformat.read(path, as_version=4)
    if copy is None:
        return own
    page, today = nbformat.read(copy, as_version=4), {cell.id: cell for cell in own.cells}
    shared = [cell for cell in page.cells if cell.id in today]  # not the parameters that the run put in
    if len(shared) == len(today) and all(c.cell_type != "code" or c.source == today[c.id].source for c in shared):
        for cell in shared:
            cell.source = today[cell.id].source
        page.cells = [
            cell for cell in page.cells if cell in shared or cell.cell_type == "code"
        ]  # a dropped text leaves
    return page


if __name__ == "__main__":
    shutil.rmtree(SOURCE.parent, ignore_errors=True)  # a page whose source is gone must not stay
    for folder in ("notebooks", "book", "_static"):
        (SOURCE / folder).mkdir(parents=True)
    for name in NEEDED:  # linked where they lie in the repository, so that relative links hold
        (SOURCE / name).symlink_to(ROOT / name)
    for name in ("_config.yml", "_toc.yml", "_static/book.css"):
        shutil.copy(ROOT / "book" / Path(name).name, SOURCE / name)
    for path in (ROOT / "README.md", *(ROOT / "book").glob("*.md")):
        (SOURCE / path.relative_to(ROOT)).write_text(filled(path), encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        copy = executed(path.stem, sys.argv[1:] or ["reference", "quick"])
        page = page_of(path, copy)
        page.metadata.pop("widgets", None)  # with them the page would fetch its widget code from elsewhere
        for output in sum((cell.get("outputs", []) for cell in page.cells), []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its text stands beside it
        origin = f"Outputs: {copy.parents[1].relative_to(ROOT)}." if copy else "No run here has executed this notebook."
        page.cells.insert(1, nbformat.v4.new_markdown_cell(f"*{origin}*", id="origin"))
        nbformat.write(page, SOURCE / "notebooks" / path.name)
