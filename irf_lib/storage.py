"""Files that are either whole or absent: atomic writes, and tensors whose JSON vouches for them.

A reader never meets a half-written file: everything is written beside its destination and moved into place.
A tensor file is only trusted through its JSON, which is written after it and holds its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class StorageError(ValueError):
    """A file of ours that is missing, damaged or foreign; the message names it and the remedy."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write(temporary)`` fill a file in ``path``'s folder, then move it to ``path``.

    The temporary file keeps ``path``'s suffix (writers such as matplotlib choose their format by it) and is
    removed if ``write`` raises. Returns ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; ours are meant to be shared
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_to_disk(path: Path) -> None:
    # Without it a power cut can leave the new name on old or empty blocks.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` (UTF-8) atomically."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> Path:
    """Write ``content`` as readable JSON, atomically; NaN is refused because JSON has none."""
    return write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in ``path``. Raises StorageError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} is missing.") from None
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} cannot be read as JSON ({error}); delete it and make it again.") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> Path:
    """Save ``tensors`` and ``meta`` so that both or neither are found again, whenever the process dies.

    The tensors go to a safetensors file beside ``path`` whose name carries its own hash; ``path`` (JSON) names that
    file, holds ``meta``, and replaces its predecessor in one step. The file that it no longer names is then removed.
    """
    path = Path(path)
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    staged = write_atomically(
        path.with_name(f".{path.stem}.{os.getpid()}.safetensors"), lambda temporary: save_file(contiguous, temporary)
    )
    digest = file_sha256(staged)
    target = path.with_name(f"{path.stem}.{digest[:12]}.safetensors")
    os.replace(staged, target)
    write_json(path, {"tensors": target.name, "sha256": digest, "meta": dict(meta)})
    for old in path.parent.glob(f"{path.stem}.????????????.safetensors"):
        if old.name != target.name:
            old.unlink(missing_ok=True)
    return path


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and meta saved by :func:`save_tensors`.

    Raises StorageError if either file is missing, damaged, or not what the JSON says it is.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not {"tensors", "sha256", "meta"} <= content.keys():
        raise StorageError(f"{path} was not written by irf_lib (no tensors, sha256 and meta in it).")
    # Only the name: a JSON from elsewhere must not make us open files outside its own folder.
    target = path.with_name(Path(str(content["tensors"])).name)
    if not target.is_file():
        raise StorageError(f"{target} is missing, although {path.name} names it; make it again.")
    if file_sha256(target) != content["sha256"]:
        raise StorageError(f"{target} is damaged (its SHA-256 differs from the one in {path.name}); make it again.")
    return load_file(target, device=device), content["meta"]
