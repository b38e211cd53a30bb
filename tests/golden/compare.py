"""Do two commits compute the same? Both are run on this machine: the quick preset, four textures, seed 0.

    python tests/golden/compare.py OLD NEW

OLD and NEW are commits, from before or after the redesign. Each gets a temporary git worktree, where it trains, scores
and reads the field of one image of three textures. Prints the largest relative difference of every method's metrics and
of the fields; the exit status is 1 above 1e-4. A quarter of an hour on two cores.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

RTOL = 1e-4
METHODS = ["irf", "irf:untrained", "gaussian", "knn"]
METRICS = ["I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO"]
TEXTURES = ["brushed_metal", "printed_board", "speckled_stone", "woven"]
OLD_FIELDS = """
from pathlib import Path
from safetensors.torch import save_file
from irf_lib.datasets import read_category
from irf_lib.detector import OneStepDetector as Detector
def load(name):
    return Detector.load(Path("results/quick/detectors/textures", name, "seed0"), "cpu")
"""
NEW_FIELDS = """
from pathlib import Path
from safetensors.torch import save_file
from irf_lib import Detector
from irf_lib.data.layouts import read_category
def load(name):
    return Detector.load(Path("results/quick/textures", name, "seed0/detector.safetensors"), "cpu")
"""
SAVE = f"""
fields = {{}}
for name in {TEXTURES[:3]}:
    detector, path = load(name), read_category(Path("data/textures"), name).test[0].path
    fields["/".join(path.parts[-4:])] = detector.fields(detector.features([path]))[0].contiguous()
save_file(fields, "fields.safetensors")
"""


def results(commit: str, tree: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """What ``commit`` computes, checked out at ``tree``: metrics by (category, method), and fields by image."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, check=True)

    if new := (tree / "irf_lib" / "run").is_dir():
        for category in TEXTURES:
            for notebook in ("05", "09"):
                python("-m", "irf_lib", "notebook", notebook, "-p", "preset=quick", "-p", f"category={category}")
        paths = [
            tree / "results" / "quick" / "textures" / category / "seed0" / name
            for category in TEXTURES
            for name in ("metrics.csv", "rivals.csv")
        ]
    else:
        python("-m", "irf_lib", "run", "--preset", "quick", "--only", "03", "--only", "05", "--jobs", "2")
        paths = [tree / "results" / "quick" / "metrics.csv"]
    python("-c", (NEW_FIELDS if new else OLD_FIELDS) + SAVE)
    table = pd.concat(map(pd.read_csv, paths)).set_index(["category", "method"]).sort_index()
    wanted = pd.MultiIndex.from_product([TEXTURES, METHODS])
    return table.loc[wanted, METRICS], load_file(tree / "fields.safetensors")


if len(sys.argv) != 3:
    sys.exit(__doc__)
with tempfile.TemporaryDirectory() as folder:
    trees = [Path(folder).resolve() / name for name in ("old", "new")]
    try:
        (old, old_fields), (new, new_fields) = (results(*pair) for pair in zip(sys.argv[1:], trees, strict=True))
    finally:
        for tree in trees:
            subprocess.run(["git", "worktree", "remove", "--force", tree], stderr=subprocess.DEVNULL)
worst = ((new - old).abs() / old.abs()).max(axis=1).groupby(level=1).max()
for image, field in old_fields.items():
    worst[f"field of {image}"] = np.linalg.norm(new_fields[image] - field) / np.linalg.norm(field)
print(worst.map("{:.1e}".format).to_string())
sys.exit(bool((worst > RTOL).any() or worst.isna().any()))
