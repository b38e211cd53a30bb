"""`make check`: one clean commit measured the committed results. (test_repository holds the README to them.)"""

import gzip
import hashlib
import runpy
from pathlib import Path

import pandas as pd

from irf_lib.files import file_sha256, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference"
PUBLISH = runpy.run_path(str(ROOT / "workflow" / "publish.py"))
# They compare, draw, time, play with or gather what the others made; their provenance may name a later clean commit.
LATER = ("08_ablations", "11_pipelines", "12_speed", "14_explore", "15_results", "frontier", "peers")


def faults(results: Path) -> list[str]:
    """What is wrong with committed results, a sentence each."""
    said, commits, later, listed = [], set(), set(), {results / "run.json"}
    for path in results.rglob("provenance/*.json"):
        made = read_json(path)
        (later if made["stage"] in LATER else commits).add((made["commit"], made["dirty"]))
        for name, expected in made["files"].items():
            file, packed = (path.parents[1] / f"{name}{end}" for end in ("", ".gz"))  # a long table is packed
            listed |= {file, packed}
            left = gzip.decompress(packed.read_bytes()) if packed.is_file() else file.is_file() and file.read_bytes()
            if left is False and file.suffix in PUBLISH["TABLES"]:  # figures and arrays need not all be committed
                said.append(f"{name} of {made['stage']} is missing")
            elif left is not False and hashlib.sha256(left).hexdigest() != expected:
                said.append(f"{name} is not what {made['stage']} left")
    files = [path for path in results.rglob("*") if path.is_file()]
    odd = [path for path in set(files) - listed if path.parent.name not in ("provenance", "notebooks")]
    said += [f"{path.relative_to(results)} was left by no notebook with provenance" for path in odd]
    for name in ("provenance.csv", "metrics.csv"):
        rows = pd.read_csv(results / name).reindex(columns=["commit", "dirty", "stage"]).query("stage not in @LATER")
        commits |= set(zip(rows.commit, rows.dirty.eq(True), strict=True))
    if len(commits) > 1 or any(dirty or commit == "unknown" for commit, dirty in commits | later):
        said.append(f"not of one clean commit, but of (commit, dirty) {sorted(commits | later)}")
    size = sum(path.stat().st_size for path in files)
    if len(files) > 150 or size > 12e6:
        said.append(f"{len(files)} files of {size / 1e6:.1f} MB; 150 of 12 MB are allowed")
    return said


def test_the_committed_results_are_of_one_clean_commit():
    assert not faults(REFERENCE)


def test_results_that_were_changed_are_named(tmp_path):
    run, results, commit = tmp_path / "run", tmp_path / "reference", "a" * 40
    row = pd.DataFrame({"method": ["irf"], "value": [0.5], "commit": [commit], "dirty": [False]})
    left = {run: ("15_results", "metrics.csv", "provenance.csv"), run / "shop/nut/seed0": ("04_x", "field.csv")}
    for folder, (stage, *names) in left.items():
        (folder / "provenance").mkdir(parents=True)
        for name in names:
            row.to_csv(folder / name)
        hashes = {name: file_sha256(folder / name) for name in names} | {"scores.npz": "0"}
        made = {"stage": stage, "commit": "later" if stage == "15_results" else commit, "dirty": False, "files": hashes}
        write_json(folder / "provenance" / f"{stage}.json", made)
    for name in ("run.json", "shop/nut/seed0/detector.safetensors"):
        (run / name).touch()
    PUBLISH["publish"](run, results)
    assert faults(results) == []
    (results / "metrics.csv").write_text((results / "metrics.csv").read_text().replace("0.5", "0.6"))
    (results / "more.csv").touch()
    (results / "shop/nut/seed0/field.csv").unlink()
    path = results / "shop/nut/seed0/provenance/04_x.json"
    made = read_json(path)
    for change in ({"commit": "later"}, {"dirty": True}):
        write_json(path, made | change)
        said = "\n".join(faults(results))
        for words in ("metrics.csv is not what 15_results left", "more.csv was left by no notebook",
                      "field.csv of 04_x is missing", "not of one clean commit"):  # fmt: skip
            assert words in said
