"""The repository's own promises: a house without upward imports, sizes, agreeing pins, a true README."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from scipy.stats import betabinom

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = ROOT / "results" / "reference"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The house, floors from the ground up: a file imports from lower floors only.
FLOORS = (
    ("files", "irf", "metrics", "networks.muon"),  # whole files; the equations; exact metrics; an optimiser
    ("data.images", "scoring", "networks.backbones", "diffusion"),  # pixels; densities; frozen backbones; the DDPM
    ("conformal", "networks.denoisers", "data.layouts", "data.textures"),  # verdicts; DiT, UNet; data sets
    ("settings", "networks.fast", "data.public", "data.cache"),  # what a detector is made of
    ("saved", "data.embedded"),  # a detector as a file; the textures as files
    ("detector",),  # fit, read, save: the one pipeline
    ("export",),  # a detector as one ONNX file
    ("studies",),  # what is asked of a detector: invariance, normality, rivals, speed; tables, claims, figures
    ("run",),  # presets, results folders and provenance, one's own parts, notebooks
    ("__main__",),  # the command line
)
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "irf_lib").rglob("*.py")
}


def lines(paths) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports, wherever in it."""
    found = set()
    package = module if MODULES[module].stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found & set(MODULES)


def floor(module: str) -> tuple[int, str]:
    """The floor of a module and its room there: the longest entry of FLOORS that the module's name begins with."""
    entries = {f"irf_lib.{entry}": i for i, entries in enumerate(FLOORS) for entry in entries}
    rooms = [entry for entry in entries if f"{module}.".startswith(f"{entry}.")]
    assert rooms, f"{module} stands on no floor of FLOORS"
    return entries[max(rooms, key=len)], max(rooms, key=len)


def test_nothing_imports_upward_or_in_a_circle():
    graph = {module: imports(module) for module in MODULES}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert {f"irf_lib.{entry}" for entry in sum(FLOORS, ())} <= set(MODULES)
    del graph["irf_lib"]  # the face stands on all of it
    for module, imported in graph.items():
        if MODULES[module].stem == "__init__" and not imported:
            continue  # a room's door, which needs no floor
        level, room = floor(module)
        for other in imported:
            below, elsewhere = floor(other)
            assert below < level or elsewhere == room, f"{module} imports {other}, which stands no lower"


def test_the_house_is_thin():
    assert lines((ROOT / "irf_lib").glob("*.py")) <= 1_700
    assert lines(MODULES.values()) <= 5_000
    assert not [name for name, path in MODULES.items() if lines([path]) > 350]
    assert lines((ROOT / "tests").rglob("*.py")) <= 4_000
    trees = [ast.walk(ast.parse(path.read_text())) for path in MODULES.values()]
    assert sum(isinstance(node, ast.ExceptHandler) for nodes in trees for node in nodes) <= 25


def test_the_core_commands_and_plans_start_quickly():
    code = """if True:
        import sys
        import irf_lib
        from irf_lib.data import embedded
        from irf_lib.run import commands, notebooks, provenance
        slow = {"torch", "pandas", "matplotlib", "diffusers", "transformers", "sklearn", "papermill", "scipy.ndimage"}
        sys.exit(sorted(slow & set(sys.modules)) or None)
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_library_never_seeds_globally():
    for name, path in MODULES.items():
        assert not re.search(r"np\.random\.seed|(?<!\w)random\.seed\(", path.read_text()), name
        if "torch.manual_seed(" in path.read_text():
            assert "fork_rng" in path.read_text(), f"{name} seeds torch for everyone"


def test_the_lock_is_the_only_list_of_pins_and_meets_every_bound():
    entries = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = dict(entry.split("==") for entry in entries)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
    for requirement in map(Requirement, sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])):
        assert pins[requirement.name] in requirement.specifier, requirement
        assert "==" not in str(requirement)
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert environment == [f"python{PROJECT['requires-python']}", "pip", {"pip": ["-r requirements.lock"]}]


def test_nothing_names_a_folder_of_the_machine_that_built_it():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for name in subprocess.check_output(command, cwd=ROOT, text=True).split("\0"):
        if (ROOT / name).is_file() and not name.endswith((".png", ".pdf")):
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"(?<![\w.$~])/(home|root|work|Users)/\w", text), f"{name} names an absolute path"


def test_the_front_page_is_short_and_pages_name_files_and_commands_that_exist():
    assert len(README.splitlines()) <= 200 and len(README.encode()) <= 12_000
    pages = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")]}
    for path, text in pages.items():
        assert not [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (path.parent / link).exists()], path
    text = "\n".join(pages.values())
    assert not [entry for entry in sum(FLOORS, ()) if f"`{entry}`" not in text], "the floors of book/house.md"
    targets = {"reproduce", "bench", "test", "lint", "lab", "book", *re.findall(r"`make ([a-z]+)", text)}
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = subprocess.check_output([sys.executable, "-m", "irf_lib", "--help"], cwd=ROOT, text=True)
    assert set(re.findall(r"-m irf_lib ([a-z]+)", text)) <= set(re.findall(r"\w+", shown))


def test_readme_shows_the_committed_numbers():
    names = "summary", "falsifiers", "claims", "speed_targets", "peers", "benchmark"
    summary, falsifiers, claims, targets, peers, times = (pd.read_csv(REFERENCE / f"{name}.csv") for name in names)
    means = summary[summary.dataset == "-"].set_index(["method", "metric", "role"])
    number, roles = "{mean:.3f} [{mean_lo:.3f}, {mean_hi:.3f}]".format, ("development", "confirmation")
    for method, cells in re.findall(r"\(`(\S+)`\) \| (.*) \|", README):
        keys = [(method, metric, role) for metric in ("I-AUROC", "AUPRO") for role in roles]
        assert cells == " | ".join(number(**means.loc[key]) for key in keys), method
    said = [f"{number(**means.loc['irf', 'I-AUROC', role])} on the {role} categories" for role in roles]
    lead = "{diff:+.3f} [{lo:+.3f}, {hi:+.3f}]".format
    said += [f"{lead(**means.loc['knn', 'I-AUROC', role])} on the {role} categories" for role in roles]
    at_5 = falsifiers[(falsifiers.alpha == 0.05) & ~falsifiers.unified].set_index(["quantity", "category"]).value
    for quantity in ("defects found", "false alarms"):
        shares = (f"{100 * at_5[quantity, name]:.0f} % on {name}" for name in ["bottle", "pill", "screw", "grid"])
        said.append(f"{', '.join(shares)} and {100 * at_5[quantity, 'metal_plate']:.0f} % on metal_plate")
    n = falsifiers.n[(falsifiers.category == "grid") & (falsifiers.quantity == "false alarms")].iloc[0]
    said.append(f"{n * at_5['false alarms', 'grid']:.1f} of {n} images on average")
    said.append(f"at most 3 in {100 * betabinom(n, 1, 26).cdf(3):.0f} % of cases")  # beyond the highest of 26 held out
    places = ("mvtec_ad", "development"), ("mvtec_ad", "confirmation"), ("mpdd", "confirmation")
    judged = claims[~claims.unified].set_index(["claim", "dataset", "role"]).verdict
    found = re.findall(r"\((\w+)\) \| (\w.*) \|", README)
    assert len(found) == 7 and all(cells == " | ".join(judged[name, *one] for one in places) for name, cells in found)
    peers = peers[peers.normalisation == "own"].set_index(["category", "model"])["I-AUROC top10"]  # see book/results.md
    beside, models = "{:.3f} and {:.3f} where ours has {:.3f}".format, ["patchcore", "padim", "irf"]
    said += [beside(*peers[place].loc[models]) for place in ("grid", "pill", "screw")]
    three = targets.set_index("target").loc["inversion3 / score", ["value", "lo", "hi"]]
    said.append("{:.2f} [{:.2f}, {:.2f}] times as long".format(*three))
    ms = times[times.name == "score"].set_index("batch").ms_median
    said.append(f"{ms[1]:.1f} ms for one image, and {ms[32] / 32:.1f} ms for each image of a batch of 32")
    assert not [one for one in said if one not in " ".join(README.split())]
