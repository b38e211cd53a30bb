"""The embedded data as files: the seeded textures, in MVTec AD layout, so that no download is needed to start."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import InputError, file_sha256, printable, read_json, write_json
from . import textures
from .images import in_threads

_MAKER = "irf_lib.embedded.write_embedded"
_MANIFEST = "manifest.json"


def write_embedded(root: Path, n_train: int = 64, n_test_good: int = 24, n_per_defect: int = 6, seed: int = 0) -> Path:
    """Write the seeded textures under `root` in the MVTec AD layout, or find them there; return `root`.

    Each image has its own generator, SeedSequence((seed, category, split, kind, image)). The folder appears whole, so
    several processes may call this together; it is written again if its parameters or the textures' code changed.
    InputError where it holds other files."""
    plan = list(_plan(n_train, n_test_good, n_per_defect))
    manifest = {
        "made_by": _MAKER,
        "parameters": {"n_train": n_train, "n_test_good": n_test_good, "n_per_defect": n_per_defect, "seed": seed},
        "generator": file_sha256(Path(textures.__file__)),
        "files": sorted(name for _, _, _, *names in plan for name in names),
    }
    folder = Path(root).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process looks and writes at a time; the others find what it wrote
        if _found(folder) != manifest:
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.tmp-", dir=folder.parent) as scratch:
                new = Path(scratch, "new")
                in_threads(lambda draw: _write_image(new, seed, *draw), plan)
                write_json(new / _MANIFEST, manifest)
                if folder.exists():
                    folder.rename(Path(scratch, "old"))
                new.rename(folder)
    finally:
        os.close(lock)
    return Path(root)


def _found(folder: Path) -> dict:
    """Our manifest in `folder`, {} if none or not all of its files are there. InputError if there are other files."""
    manifest = read_json(folder / _MANIFEST) if (folder / _MANIFEST).exists() else {}
    ours = [_MANIFEST, *manifest["files"]] if manifest.get("made_by") == _MAKER else []
    expected = {folder / name for name in ours}
    present = {path for path in (folder, *folder.rglob("*")) if path.is_file() and not path.name.startswith(".")}
    if foreign := sorted(present - expected):
        raise InputError(f"{printable(foreign[0])}: was not written here; move it, or choose another folder.")
    return manifest if expected <= present else {}


def _plan(n_train: int, n_test_good: int, n_per_defect: int) -> Iterator[tuple]:
    """(category, kind, part of the seed, image file, and a defect's mask file) of every image, below the root."""
    # The seeds 0 and 2 were those of two categories that are gone; the images of these two stay as they were.
    for c, (category, defects) in zip((1, 3), textures.DEFECTS.items(), strict=True):
        for i in range(n_train):
            yield category, "good", (c, 0, 0, i), f"{category}/train/good/{i:03d}.png"
        for k, kind in enumerate(("good", *defects)):
            for i in range(n_per_defect if k else n_test_good):
                mask = [f"{category}/ground_truth/{kind}/{i:03d}_mask.png"] if k else []
                yield category, kind, (c, 1, k, i), f"{category}/test/{kind}/{i:03d}.png", *mask


def _write_image(folder: Path, seed: int, category: str, kind: str, key: tuple, *names: str) -> None:
    rng = np.random.default_rng(np.random.SeedSequence((seed, *key)))
    drawn = [textures.normal_image(category, rng)] if kind == "good" else textures.defective_image(category, kind, rng)
    for name, pixels in zip(names, drawn, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(folder / name)
