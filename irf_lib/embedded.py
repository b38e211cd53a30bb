"""The embedded data as files: the seeded textures, in MVTec AD layout, so that no download is needed to start.

The folder is whole or absent, and checked byte for byte before it is used again.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from . import textures
from .datasets import DataError, content_hash, in_threads

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_MAKER = "irf_lib.embedded.write_embedded"
_MANIFEST = "manifest.json"
_SYSTEM_FILES = {".DS_Store", "Thumbs.db"}  # put there by the system when somebody looks into a folder


def write_embedded(
    root: Path,
    n_train: int = 64,
    n_test_good: int = 24,
    n_per_defect: int = 6,
    seed: int = 0,
) -> Path:
    """Write the seeded textures under `root` in the MVTec AD layout, or reuse them; return `root`.

    Each image has a generator of its own, SeedSequence((seed, category, split, kind, image)): more images of
    one kind leave the others as they are. The folder appears at once, when complete; several processes may
    call this together. A folder of ours that is damaged or has other parameters is replaced; where a file is
    not ours, DataError, and nothing is touched.
    """
    counts = {"n_train": n_train, "n_test_good": n_test_good, "n_per_defect": n_per_defect}
    if n_train < 1 or min(n_test_good, n_per_defect, seed) < 0:
        raise DataError(f"{root}: no data for {counts}, seed {seed}; use n_train >= 1, no negative number.")
    head = {
        "made_by": _MAKER,
        "parameters": counts | {"seed": seed},
        "generator": hashlib.sha256(Path(textures.__file__).read_bytes()).hexdigest(),
    }
    draws = list(_plan(**counts))
    names = sorted(name for *_, image, mask in draws for name in (image, mask) if name)
    folder = Path(root).resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{root}: a file, not a folder; choose another folder.")
        with _locked(folder.parent) as alone:
            for leftover in folder.parent.glob(f"{glob.escape(folder.name)}.tmp-*") if alone else ():
                shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
            if not _is_reusable(folder, head, names):
                _build(folder, head, names, draws)
    except OSError as exc:
        raise DataError(f"{root}: cannot be written ({exc}); check permissions and free space.") from exc
    return Path(root)


def _plan(n_train: int, n_test_good: int, n_per_defect: int) -> Iterator[tuple]:
    """(category, kind, part of the seed, image file, mask file or None) of every image, below the root."""
    for c, (category, defects) in enumerate(textures.DEFECTS.items()):
        for s, split, n in ((0, "train", n_train), (1, "test", n_test_good)):
            for i in range(n):
                yield category, "good", (c, s, 0, i), f"{category}/{split}/good/{i:03d}.png", None
        for k, kind in enumerate(defects, start=1):
            for i in range(n_per_defect):
                mask = f"{category}/ground_truth/{kind}/{i:03d}_mask.png"
                yield category, kind, (c, 1, k, i), f"{category}/test/{kind}/{i:03d}.png", mask


def _build(folder: Path, head: dict, names: Sequence[str], draws: Sequence[tuple]) -> None:
    # a sibling folder is on the same disk, so that moving into place is one rename
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        new = scratch / "new"
        for parent in {(new / name).parent for name in names}:
            parent.mkdir(parents=True, exist_ok=True)

        def write(draw: tuple) -> None:
            category, kind, key, image_name, mask_name = draw
            rng = np.random.default_rng(np.random.SeedSequence((head["parameters"]["seed"], *key)))
            if mask_name is None:
                image = textures.normal_image(category, rng)
            else:
                image, mask = textures.defective_image(category, kind, rng)
                Image.fromarray(mask.astype(np.uint8) * 255).save(new / mask_name)
            Image.fromarray(image).save(new / image_name)

        in_threads(write, draws)
        manifest = head | {"content": content_hash(new / name for name in names), "files": list(names)}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if not _is_reusable(folder, head, names):  # another process was quicker, on a disk without locks
            if folder.exists():
                folder.rename(scratch / "old")
            new.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_reusable(folder: Path, head: dict, names: Sequence[str]) -> bool:
    """Whether the folder is what `head` describes, byte for byte; DataError if a file in it is not ours."""
    present = {path.name for path in folder.iterdir()} - _SYSTEM_FILES if folder.exists() else set()
    if not present:
        return False
    manifest = {}
    if _MANIFEST in present:
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
        except (ValueError, RecursionError):  # damaged: ours all the same, if every other file is one that we write
            manifest = {"made_by": _MAKER, "files": list(names)}
    if not isinstance(manifest, dict) or manifest.get("made_by") != _MAKER:
        raise DataError(f"{folder}: not empty and without our {_MANIFEST}; choose a new or empty folder.")
    found = (path for path in folder.rglob("*") if not path.is_dir() and path.name not in _SYSTEM_FILES)
    files = {path.relative_to(folder).as_posix() for path in found}
    ours = manifest["files"] if isinstance(manifest.get("files"), list) else []
    if foreign := files - {name for name in ours if isinstance(name, str)} - {_MANIFEST}:
        raise DataError(f"{folder / min(foreign)}: not one of the files written here; move it elsewhere.")
    same = all(manifest.get(key) == value for key, value in head.items()) and files == {*names, _MANIFEST}
    return same and manifest.get("content") == content_hash(folder / name for name in names)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep other processes that write into `folder` waiting, where the system and the disk have locks; says whether."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)  # the folder itself: a lock file would stay behind
    try:
        held = False
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
        yield held
    finally:
        os.close(handle)
