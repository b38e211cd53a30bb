"""The book: README and the executed notebooks, in order, as a site of static pages.

    python book/build.py [RUN ...]

copies README, the notebooks and whatever they link to into book/_build/source, laid out as in the repository so that
their relative links hold, and has Jupyter Book make book/_build/html of it. A notebook is taken from the first of the
named runs (folders in results/) that has an executed copy; without any, the notebook itself is shown, with no outputs.
Nothing is executed here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "book" / "_build"
RUNS = ("reference", "reference-16", "quick")  # what the README reports on first; quick only fills the gaps
LINK = re.compile(r"(?<=\]\()([^()#:\s]+)(?=(?:#[^()\s]*)?\))")
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks() -> list[Path]:
    """The numbered notebooks, in reading order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def source_of(notebook: Path, runs=RUNS) -> tuple[Path, str | None]:
    """The file to show for a notebook, and the run that it comes from, if any."""
    for run in runs:
        copy = ROOT / "results" / run / "notebooks" / notebook.name
        if copy.exists():
            return copy, run
    return notebook, None


def prose(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


def target_of(link: str, page: Path) -> Path | None:
    """The file of the repository that a link on a page leads to; for a folder, the nearest README that describes it."""
    target = Path(os.path.normpath(page.parent / link))
    if not target.is_relative_to(ROOT) or not target.exists():
        return None  # left as it is, for Sphinx to complain about
    if target.is_dir():
        target = next(folder / "README.md" for folder in (target, *target.parents) if (folder / "README.md").exists())
    return target


def linked() -> tuple[list[Path], list[Path]]:
    """What README and the notebooks link to, and what that links to: pages, and files to offer beside them."""
    pages, files = [ROOT / "README.md"], []
    queue = [*pages, *notebooks()]
    for page in queue:  # grows while it is read
        for link in LINK.findall(prose(page)):
            target = target_of(link, page)
            if target is None or target in pages or target in files or target.suffix == ".ipynb":
                continue
            if target.suffix == ".md":
                pages.append(target)
                queue.append(target)
            else:
                files.append(target)
    return pages, files


def place(path: Path) -> Path:
    """Where a file of the repository lies in the book: where it lies, but README is the first page."""
    name = path.relative_to(ROOT)
    return Path("index.md") if name == Path("README.md") else name


def rewritten(text: str, page: Path) -> str:
    """A page's text with its links leading to where things lie in the book."""

    def move(match: re.Match) -> str:
        target = target_of(match[1], page)
        return match[1] if target is None else os.path.relpath(place(target), place(page).parent)

    return LINK.sub(move, text)


def toc() -> dict:
    """The table of contents in Jupyter Book's form."""
    chapters = [{"file": f"notebooks/{path.stem}", "title": path.stem.replace("_", " ")} for path in notebooks()]
    others = [{"file": place(page).with_suffix("").as_posix()} for page in linked()[0][1:]]
    parts = [{"caption": "Notebooks", "chapters": chapters}, {"caption": "Folders", "chapters": others}]
    return {"format": "jb-book", "root": "index", "parts": [part for part in parts if part["chapters"]]}


def origin(notebook: Path, copy: Path, run: str | None) -> str:
    """The note under a notebook's head: which run its outputs are of, and whether the notebook has moved on since."""
    if run is None:
        return "No executed copy of this notebook is at hand, so it is shown without outputs."
    readme = os.path.relpath(ROOT / "results" / "README.md", notebook.parent)
    now, then = (nbformat.read(path, as_version=4).cells for path in (notebook, copy))
    then = [cell.source for cell in then if "injected-parameters" not in cell.metadata.get("tags", [])]
    changed = sum(cell.source not in then for cell in now)
    note = f"Outputs: run `{run}`, see [results]({readme})."
    if changed:
        note += f" Of the notebook's {len(now)} cells {changed} read otherwise today; the page shows them as they ran."
    return note


def page_of(notebook: Path, runs=RUNS) -> nbformat.NotebookNode:
    """The notebook that becomes a page."""
    copy, run = source_of(notebook, runs)
    page = nbformat.read(copy, as_version=4)
    page.metadata.pop("widgets", None)  # with them the page would fetch its widget code from elsewhere
    for cell in page.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)  # a progress bar's text stands beside it
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
    note = f":::{{admonition}} Where the outputs are from\n:class: note\n\n{origin(notebook, copy, run)}\n:::"
    page.cells.insert(1, nbformat.v4.new_markdown_cell(note, id="origin"))
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = rewritten(cell.source, notebook)
    return page


def stage(folder: Path, runs=RUNS) -> None:
    """Lay out everything that Jupyter Book reads."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "book" / "_config.yml", folder)
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc(), sort_keys=False), encoding="utf-8")
    (folder / "_static").mkdir()
    shutil.copy(ROOT / "book" / "book.css", folder / "_static")
    pages, files = linked()
    for path in (*pages, *files, *notebooks()):
        copy = folder / place(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path in pages:
            copy.write_text(rewritten(path.read_text(encoding="utf-8"), path), encoding="utf-8")
        elif path in files:
            shutil.copy(path, copy)
        else:
            nbformat.write(page_of(path, runs), copy)


def main(runs: list[str]) -> int:
    for run in runs:
        if not (ROOT / "results" / run / "notebooks").is_dir():
            print(f"results/{run} has no executed notebooks", file=sys.stderr)
            return 1
    shutil.rmtree(BUILD, ignore_errors=True)  # a page whose source is gone must not stay
    stage(BUILD / "source", runs or RUNS)
    for notebook in notebooks():
        print(f"{notebook.stem:24} {source_of(notebook, runs or RUNS)[1] or 'no executed copy: shown without outputs'}")
    # Every warning is an error, a link that leads nowhere included.
    command = [
        "jupyter-book",
        "build",
        BUILD / "source",
        "--path-output",
        BUILD.parent,
        "-W",
        "-n",
        "--keep-going",
        "-q",
    ]
    return subprocess.run([Path(sys.executable).parent / command[0], *command[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
