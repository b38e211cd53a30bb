"""Copy what is committed of a finished run, and fill the README's tables from it: python workflow/publish.py RUN

results/RUN becomes results/reference: the gathered tables, figures, executed notebooks and provenance, and those of the
one detector that has all notebooks; of its figures, which its notebooks hold, only those that README and book show.
In the README a table stands between two marks,

    <!-- table: claims.csv; claim, verdict, interval; verdict != "holds" -->  and  <!-- end of table -->

and is these columns of results/reference/claims.csv, where the condition (if any) holds. `make check` compares.
"""

import re
import shutil
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
KEPT = ("*.csv", "*.csv.gz", "*.md", "run.json", "figures/*", "notebooks/*.ipynb", "provenance/*.json")
MARKED = re.compile(r"(<!-- table: ([\w./]+); ([^;\n]*?)(?:; ([^\n]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def publish(run: Path, target: Path) -> None:
    """Replace the folder ``target`` by what is kept of ``run``."""
    whole = next(iter(sorted(run.glob("*/*/seed0/provenance/04_*.json"))), None)
    if not whole or not (run / "provenance" / "15_results.json").is_file():
        sys.exit(f"{run.name} is not finished: its notebook 15, or 04 of its first detector, did not get to its end")
    shutil.rmtree(target, ignore_errors=True)
    shown = "".join(page.read_text(encoding="utf-8") for page in (README, *(ROOT / "book").glob("*.md")))
    for folder in (run, whole.parents[2], whole.parents[1]):
        for path in (path for pattern in KEPT for path in folder.glob(pattern)):
            name = path.relative_to(run)
            if folder == run or path.parent.name != "figures" or f"results/reference/{name.as_posix()}" in shown:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)


def filled(text: str, folder: Path) -> str:
    """``text`` with every marked table as the CSV files in ``folder`` have it."""

    def table(found: re.Match) -> str:
        start, name, columns, condition, end = found.groups()
        rows = pd.read_csv(folder / name, dtype={"category": str})
        rows = rows.query(condition) if condition else rows
        chosen = rows[[column.strip() for column in columns.split(",")]].astype(object)
        chosen = chosen.where(chosen.notna(), None)
        return f"{start}\n{chosen.to_markdown(index=False, floatfmt='.3f', missingval='')}\n\n{end}"

    return MARKED.sub(table, text)


if __name__ == "__main__":
    publish(ROOT / "results" / sys.argv[1], ROOT / "results" / "reference")
    README.write_text(filled(README.read_text(encoding="utf-8"), ROOT / "results" / "reference"), encoding="utf-8")
