"""Files that are either whole or absent: atomic writes, and tensors whose JSON vouches for them.

A reader never meets a half-written file: everything is written beside its destination and moved into place.
A tensor file is only trusted through its JSON, which is written after it and holds its SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:  # loading torch takes seconds, and who plans a run or unpacks an archive needs no tensor
    import torch


class StorageError(ValueError):
    """A file of ours that is missing, damaged, foreign or cannot be written; the message names it and the remedy."""


def cannot_write(path: Path, error: OSError) -> StorageError:
    """What to raise where ``path`` could not be written: the reason, and what helps against it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space there and run the same command again"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        remedy = "a file stands where a folder should be, or a folder where a file should; move it away"
    else:
        remedy = "check the permissions of its folder, or choose another one"
    return StorageError(f"{path} cannot be written ({error.strerror or error}): {remedy}.")


def one_line(error: BaseException, longest: int = 300) -> str:
    """An exception's message without line breaks, cut to ``longest`` characters, to be quoted in one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]} ..."


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write(temporary)`` fill a file in ``path``'s folder, then move it to ``path``.

    The temporary file keeps ``path``'s suffix (writers such as matplotlib choose their format by it) and is
    removed if ``write`` raises. Returns ``path``. Raises StorageError where the disk is full or cannot be written;
    what was at ``path`` is then still there.
    """
    path = Path(path)
    try:
        with _filled_beside(path, write) as temporary:
            os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


@contextmanager
def _filled_beside(path: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """A new file in ``path``'s folder, filled by ``write`` and on the disk; removed if it is still there afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    # Not mkstemp, whose files are private: ours are shared as the user's umask says.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        write(temporary)
        os.chmod(temporary, mode)  # a writer that replaces the file, as safetensors does, makes a private one
        _flush_to_disk(temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    # Without it a power cut can leave the new name on old or empty blocks.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; the system drops it with a process that dies.

    ``waiting`` is printed where another one holds it. Raises StorageError if the file cannot be made.
    """
    path = Path(path)
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting:
                print(waiting, flush=True)
            lock.acquire()
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        lock.release()


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
    except (ValueError, OSError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read as JSON ({one_line(error)}); delete it and make it again.") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> Path:
    """Save ``tensors`` and ``meta`` so that both or neither are found again, whenever the process dies.

    The tensors go to a safetensors file beside ``path`` whose name carries its own hash; ``path`` (JSON) names that
    file, holds ``meta``, and replaces its predecessor in one step. The file that it no longer names is then removed,
    so two processes that save to one ``path`` have to hold a lock. Raises StorageError where it cannot be written.
    """
    path = Path(path)
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with _filled_beside(path.with_suffix(".safetensors"), lambda new: _save_file(contiguous, new)) as staged:
            digest = file_sha256(staged)
            target = path.with_name(f"{path.stem}.{digest[:12]}.safetensors")
            os.replace(staged, target)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_json(path, {"tensors": target.name, "sha256": digest, "meta": dict(meta)})
    for old in path.parent.glob(f"{path.stem}.????????????.safetensors"):
        if old.name != target.name:
            old.unlink(missing_ok=True)
    return path


def _save_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # it hides the system's error number in its text
        if not (number := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and meta saved by :func:`save_tensors`.

    Raises StorageError if either file is missing, damaged, or not what the JSON says it is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("meta"), dict):
        raise StorageError(f"{path} was not written by irf_lib (no tensors, sha256 and meta in it); make it again.")
    # Only the name: a JSON from elsewhere must not make us open files outside its own folder.
    name = str(content.get("tensors")).rpartition("/")[2]
    if not re.fullmatch(r"[\w. -]{1,200}\.[0-9a-f]{12}\.safetensors", name):
        raise StorageError(f"{path} was not written by irf_lib (it names no tensors of its own); make it again.")
    target = path.with_name(name)
    if not target.is_file():
        raise StorageError(f"{target} is missing, although {path.name} names it; make it again.")
    try:
        if file_sha256(target) != content.get("sha256"):
            raise StorageError(f"{target} is damaged (its SHA-256 differs from the one in {path.name}); make it again.")
        return load_file(target, device=device), content["meta"]
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{target} cannot be read ({one_line(error)}); make it again.") from None
