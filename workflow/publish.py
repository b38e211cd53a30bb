"""Copy what is committed of a finished run, and fill the README's tables from it: python workflow/publish.py RUN

results/RUN becomes results/reference: the gathered tables, figures, executed notebooks and provenance, and those of the
one detector that has all notebooks (its figures as PNG alone). In the README a table stands between two marks,

    <!-- table: claims.csv; claim, verdict, interval; verdict != "holds" -->  and  <!-- end of table -->

and is these columns of results/reference/claims.csv, where the condition (if any) holds. `make check` compares.
"""

import re
import shutil
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("*.csv", "*.csv.gz", "*.md", "figures/*.png", "notebooks/*.ipynb", "provenance/*.json")
MARKED = re.compile(r"(<!-- table: ([\w./]+); ([^;\n]*?)(?:; ([^\n]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def publish(run: Path, target: Path) -> None:
    """Replace the folder ``target`` by what is kept of ``run``."""
    if not (run / "provenance" / "15_results.json").is_file():
        sys.exit(f"{run.name} is not finished: its notebook 15 did not get to its end")
    shutil.rmtree(target, ignore_errors=True)
    whole = next(iter(sorted(run.glob("*/*/seed0/provenance/04_*.json")))).parents[1]
    for folder, kept in ((run, (*KEPT, "figures/*.pdf", "run.json")), (whole.parent, KEPT), (whole, KEPT)):
        for path in (path for pattern in kept for path in folder.glob(pattern)):
            copy = target / path.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def filled(text: str, folder: Path) -> str:
    """``text`` with every marked table as the CSV files in ``folder`` have it."""

    def table(found: re.Match) -> str:
        start, name, columns, condition, end = found.groups()
        rows = pd.read_csv(folder / name, dtype={"category": str})
        rows = rows.query(condition) if condition else rows
        chosen = rows[[column.strip() for column in columns.split(",")]]
        return f"{start}\n{chosen.to_markdown(index=False, floatfmt='.3f', missingval='')}\n\n{end}"

    return MARKED.sub(table, text)


if __name__ == "__main__":
    publish(ROOT / "results" / sys.argv[1], ROOT / "results" / "reference")
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), ROOT / "results" / "reference"), encoding="utf-8")
