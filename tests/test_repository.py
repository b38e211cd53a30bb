"""The repository's own promises: pins that agree, a house without upward imports, nothing of the builder's machine."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# Floors from the ground; a module may import only from lower floors.
FLOORS = [
    {"storage", "resampling", "stages"},
    {"irf", "scoring", "metrics", "features", "textures", "cutpaste", "invariance", "normality", "plots"},
    {"datasets", "diffusion", "summary"},
    {"feature_store", "embedded", "downloads", "folding", "scorer"},
    {"detector"},
    {"timesteps", "baselines", "inspection", "explorer"},
    {"benchmark"},
    {"runs"},
    {"runner"},
    {"__main__"},
    {"train"},
]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]


def test_lock_holds_every_declared_pin():
    pins = locked()
    for requirement in declared():
        name, version = requirement.split("==")
        assert pins[name] == version
    assert pins["torch"] == "2.13.0" and all(re.fullmatch(r"[\w.]+", version) for version in pins.values())


def test_environment_yml_gives_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert (python, pip) == (f"python{requires}", "pip")
    assert packages["pip"][0] == "--constraint requirements.lock"
    assert sorted(packages["pip"][1:]) == sorted(declared())


def test_nothing_imports_upward():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    modules = {path.stem for path in (ROOT / "irf_lib").glob("*.py")} - {"__init__"}
    assert modules == set(floor), "every module has its floor"
    for module in modules:
        for node in ast.walk(ast.parse((ROOT / "irf_lib" / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                imported = [node.module] if node.module else [alias.name for alias in node.names]
                for name in imported:
                    assert floor[name] < floor[module], f"{module} imports {name}"


def test_a_plan_needs_no_torch():
    code = "import sys, irf_lib.stages, irf_lib.datasets, irf_lib.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_library_never_seeds_globally():
    allowed = {"diffusion.py"}  # inside fork_rng, to build a network from a seed
    for path in (ROOT / "irf_lib").glob("*.py"):
        text = path.read_text()
        assert "np.random.seed" not in text and "random.seed(" not in text
        assert path.name in allowed or "torch.manual_seed(" not in text


def test_nothing_names_a_folder_of_the_machine_that_built_it():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if name.endswith((".png", ".pdf")):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.$~])/(home|root|work|Users)/\w", text), f"{name} names an absolute path"


def test_readme_names_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), f"README links to {target}"


def test_makefile_has_the_promised_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("reproduce", "bench", "test", "lab", "book", "lint"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make lint" in (ROOT / ".ci" / "run").read_text() and "make test" in (ROOT / ".ci" / "run").read_text()


def test_readme_numbers_come_from_the_committed_tables():
    summary = pd.read_csv(ROOT / "results/reference/summary.csv").set_index(["category", "method", "metric"])
    rows = re.findall(r"^\| (\w+) \| `([^`]+)` \|[^|]*\| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = {(c, m) for c, m, _ in summary.index if "unified" not in m or c == "mean" or m == "irf:unified"}
    assert {row[:2] for row in rows} == shown

    def text(row) -> str:
        return f"{row['mean']:.3f}" + (f" ± {row.sd:.3f}" if row.n_seeds > 1 else "")

    for category, method, cells in rows:
        image, *others = (summary.loc[(category, method, name)] for name in ("I-AUROC", "P-AUROC", "AUPRO"))
        difference = "" if pd.isna(image["diff"]) else f"{image['diff']:+.3f}"
        difference += "" if pd.isna(image.lo) else f" [{image.lo:+.3f}, {image.hi:+.3f}]"
        expected = [text(image), difference, *map(text, others)]
        assert cells.split(" | ") == expected, (category, method)


def test_readme_claims_come_from_the_committed_table():
    claims = pd.read_csv(ROOT / "results" / "reference" / "claims.csv")
    readme = (ROOT / "README.md").read_text()
    assert set(claims.claim) >= {"b", "d", "d2", "f2", "f3", *(f"e{i}" for i in range(1, 9)), "c1", "c2"}
    for row in claims.itertuples():
        number = row.notebook[:2]
        line = f"| {row.claim} | {row.statement} | {number} | {row.evidence} | {row.interval} | {row.verdict} |"
        assert line in readme, f"README and claims.csv differ in {row.claim}: {line}"


def test_readme_ablations_come_from_the_committed_table():
    table = pd.read_csv(ROOT / "results/reference/ablation_training.csv")
    readme = (ROOT / "README.md").read_text()
    assert table.variant.nunique() == len(table) >= 10
    for row in table.to_dict("records"):
        image = f"{row['I-AUROC']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"
        assert f"| `{row['variant']}` | {image} | {row['AUPRO']:.3f} | {row['CutPaste AUROC']:.3f} |" in readme


def test_readme_speed_comes_from_the_committed_tables():
    readme = (ROOT / "README.md").read_text()
    targets = pd.read_csv(ROOT / "results/reference/speed_targets.csv")
    for row in targets.itertuples():
        measured = f"{row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]"
        assert f"| {row.target} | {row.batch} | {row.limit} | {measured} | {row.met} |" in readme
    table = pd.read_csv(ROOT / "results/reference/benchmark.csv")
    times = (table.ms_median / table.batch).set_axis(pd.MultiIndex.from_frame(table[["name", "batch"]]))
    batches = [
        int(one) for one in re.findall(r"batch (\d+)", re.search(r"^\| milliseconds an image.*$", readme, re.M)[0])
    ]
    rows = re.findall(r"^\| `(\w+)` \| ([\d. |]+) \|$", readme, re.MULTILINE)
    assert len(rows) >= 12 and len(batches) == 3
    for name, cells in rows:
        found = [times.get((name, batch)) for batch in batches]
        assert cells.split(" | ") == ["" if one is None else f"{one:.2f}" for one in found], name
