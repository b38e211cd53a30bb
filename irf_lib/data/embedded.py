"""The embedded data as files: the seeded textures, in MVTec AD layout, so that no download is needed to start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import InputError, RunError, file_sha256, one_line, printable, read_json, write_json
from . import texture_defects, textures
from .images import in_threads

_MAKER = "irf_lib.embedded.write_embedded"
_MANIFEST = "manifest.json"


def write_embedded(root: Path, n_train: int = 64, n_test_good: int = 24, n_per_defect: int = 6, seed: int = 0) -> Path:
    """Write the seeded textures under `root` in the MVTec AD layout, or find them there; return `root`.

    Each image has a generator of its own, SeedSequence((seed, category, split, kind, image)): more images of one kind
    leave the others as they are. The folder appears at once, when complete, so several processes may call this
    together; it is written again if its parameters or the code of the textures changed. Raises InputError where other
    files are in the folder, RunError where it cannot be written.
    """
    counts = {"n_train": n_train, "n_test_good": n_test_good, "n_per_defect": n_per_defect}
    if n_train < 1 or min(n_test_good, n_per_defect, seed) < 0:
        raise InputError(f"{printable(root)}: no data for {counts}, seed {seed}; use n_train >= 1, no negative number.")
    plan = list(_plan(**counts))
    manifest = {
        "made_by": _MAKER,
        "parameters": counts | {"seed": seed},
        "generator": [file_sha256(Path(module.__file__)) for module in (textures, texture_defects)],
        "files": sorted(name for *_, image, mask in plan for name in (image, mask) if name),
    }
    folder = Path(root).resolve()
    if _found(folder) == manifest:
        return Path(root)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.tmp-", dir=folder.parent) as scratch:
            new = Path(scratch, "new")
            in_threads(lambda draw: _write_image(new, seed, *draw), plan)
            write_json(new / _MANIFEST, manifest)
            if folder.exists() and _found(folder) != manifest:
                folder.rename(Path(scratch, "old"))
            new.rename(folder)
    except OSError as error:
        if _found(folder) != manifest:  # otherwise another process was quicker, which made the rename fail
            raise RunError(
                f"{printable(root)} cannot be written ({one_line(error)}): check free space and permissions."
            ) from error
    return Path(root)


def _found(folder: Path) -> dict:
    """Our manifest in `folder`, {} if none or not all of its files are there. InputError if there are other files."""
    present = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    names = {path.relative_to(folder).as_posix() for path in present}
    manifest = read_json(folder / _MANIFEST) if _MANIFEST in names else {}
    if not isinstance(manifest, dict) or manifest.get("made_by") != _MAKER:
        manifest = {}
    ours = {_MANIFEST, *manifest.get("files", [])} if manifest else set()
    if foreign := [folder] if folder.is_file() else sorted(folder / name for name in names - ours):
        raise InputError(f"{printable(foreign[0])}: was not written here; move it, or choose another folder.")
    return manifest if ours <= names else {}


def _plan(n_train: int, n_test_good: int, n_per_defect: int) -> Iterator[tuple]:
    """(category, kind, part of the seed, image file, mask file or None) of every image, below the root."""
    for c, (category, defects) in enumerate(texture_defects.DEFECTS.items()):
        for s, split, n in ((0, "train", n_train), (1, "test", n_test_good)):
            for i in range(n):
                yield category, "good", (c, s, 0, i), f"{category}/{split}/good/{i:03d}.png", None
        for k, kind in enumerate(defects, start=1):
            for i in range(n_per_defect):
                mask = f"{category}/ground_truth/{kind}/{i:03d}_mask.png"
                yield category, kind, (c, 1, k, i), f"{category}/test/{kind}/{i:03d}.png", mask


def _write_image(
    folder: Path, seed: int, category: str, kind: str, key: tuple, image_name: str, mask_name: str
) -> None:
    rng = np.random.default_rng(np.random.SeedSequence((seed, *key)))
    if mask_name is None:
        drawn = {image_name: textures.normal_image(category, rng)}
    else:
        image, mask = texture_defects.defective_image(category, kind, rng)
        drawn = {image_name: image, mask_name: mask.astype(np.uint8) * 255}
    for name, pixels in drawn.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
