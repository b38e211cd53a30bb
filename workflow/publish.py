"""Copy what is committed of a finished run: python workflow/publish.py RUN

results/RUN becomes results/reference: the gathered tables, figures, executed notebooks and provenance, and those of the
one detector that has all notebooks; of its figures, which its notebooks hold, only those that README and book show.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("*.csv", "*.csv.gz", "*.md", "run.json", "figures/*", "notebooks/*.ipynb", "provenance/*.json")


def publish(run: Path, target: Path) -> None:
    """Replace the folder ``target`` by what is kept of ``run``."""
    whole = next(iter(sorted(run.glob("*/*/seed0/provenance/04_*.json"))), None)
    if not whole or not (run / "provenance" / "15_results.json").is_file():
        sys.exit(f"{run.name} is not finished: its notebook 15, or 04 of its first detector, did not get to its end")
    shutil.rmtree(target, ignore_errors=True)
    shown = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "book").glob("*.md")))
    for folder in (run, whole.parents[2], whole.parents[1]):
        for path in (path for pattern in KEPT for path in folder.glob(pattern)):
            name = path.relative_to(run)
            if folder == run or path.parent.name != "figures" or f"results/reference/{name.as_posix()}" in shown:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)


if __name__ == "__main__":
    publish(ROOT / "results" / sys.argv[1], ROOT / "results" / "reference")
