"""Copy what is committed of a finished run: python workflow/publish.py RUN

results/RUN becomes results/reference: the gathered tables, executed notebooks and provenance, those of the one detector
that has all notebooks, and those of notebooks with a figure that README or book show; of the figures, which the
notebooks hold, only those. To stay small, a long table is packed (X.csv becomes X.csv.gz), and the pictures inside
notebooks have 256 colours. The text of an executed notebook is today's where its code still is, as in the book.
"""

import base64
import gzip
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import nbformat
from PIL import Image

from irf_lib.files import in_few_colours

ROOT = Path(__file__).resolve().parents[1]
LONG = 200_000  # bytes of a table
TABLES = (".csv", ".gz", ".md")
page_of = runpy.run_path(str(ROOT / "book" / "pages.py"))["page_of"]


def copy(path: Path, target: Path) -> None:
    """Copy one file of a run, smaller where its kind allows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv" and path.stat().st_size > LONG:
        target.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    elif path.suffix == ".ipynb":
        notebook = page_of(ROOT / "notebooks" / path.name, path)
        shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
        for data in (data for data in shown if "image/png" in data):
            picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            picture = in_few_colours(picture, Image.Dither.NONE)  # without dithering they are smaller
            picture.save(file := io.BytesIO(), "png", optimize=True)
            data["image/png"] = base64.b64encode(file.getvalue()).decode()
        nbformat.write(notebook, target)
    else:
        shutil.copy(path, target)


def publish(run: Path, target: Path) -> None:
    """Replace the folder ``target`` by what is kept of ``run``."""
    whole = next(iter(sorted(run.glob("*/*/seed0/provenance/04_*.json"))), None)
    if not whole or not (run / "provenance" / "15_results.json").is_file():
        sys.exit(f"{run.name} is not finished: its notebook 15, or 04 of its first detector, did not get to its end")
    shutil.rmtree(target, ignore_errors=True)
    shown = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "book").glob("*.md")))
    copy(run / "run.json", target / "run.json")
    for made in sorted(run.glob("**/provenance/*.json")):
        folder = made.parents[1]
        left = [folder / name for name in json.loads(made.read_text(encoding="utf-8"))["files"]]
        names = {one: f"results/reference/{one.relative_to(run).with_suffix('').as_posix()}." for one in left}
        figures = [one for one, name in names.items() if one.parent.name == "figures" and name in shown]
        if figures or folder in (run, whole.parents[2], whole.parents[1]):
            tables = [one for one in left if one.suffix in TABLES]
            for path in (made, folder / "notebooks" / f"{made.stem}.ipynb", *tables, *figures):
                if path.is_file():
                    copy(path, target / path.relative_to(run))


if __name__ == "__main__":
    publish(ROOT / "results" / sys.argv[1], ROOT / "results" / "reference")
