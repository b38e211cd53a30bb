"""Files that are either whole or absent, one file for a set of tensors, and the two kinds of error that people see."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:  # torch takes seconds to import, and whoever plans a run needs no tensor
    import torch


class InputError(ValueError):
    """What was given is wrong: an image, a data set, a parameter, a file. The message names it and the remedy."""


class RunError(RuntimeError):
    """Something failed on the way: a full disk, a failing cell, a missing package. The message names the remedy."""


def one_line(error: BaseException | str, longest: int = 300) -> str:
    """A message without line breaks, cut to ``longest`` characters, to be quoted in one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]} ..."


def printable(name: str | Path) -> str:
    """A file's name for terminals and tables: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"\\x{ord(found[0]):02x}", text)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write(temporary)`` fill a file of ``path``'s suffix in its folder, then move it to ``path``; return that.
    Raises RunError where the disk is full or cannot be written; what was at ``path`` is then still there."""
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"{printable(path)} cannot be written ({error.strerror or error}): free some space, move away what stands "
            "there, check its folder's permissions, or choose another folder; then run the same command again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write ``content`` as readable JSON, atomically; NaN is refused because JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The JSON in ``path``. Raises InputError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{printable(path)} cannot be read as JSON ({one_line(error)}); make it again.") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> Path:
    """One safetensors file with ``meta`` as JSON in its header, and a SHA-256 over all of it; written atomically."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    content = save(plain, {"meta": text, "sha256": _digest(plain, text)})
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and meta of :func:`save_tensors`. Raises InputError if the file is missing, damaged or foreign."""
    path, shown = Path(path), printable(path)
    if not path.is_file():
        raise InputError(f"{shown} is missing: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{shown} is damaged, or no model of ours ({one_line(error)}); make it again.") from None
    if header.get("sha256") != _digest(tensors, header.get("meta", "")):
        raise InputError(f"{shown} is damaged, edited, or not written by irf_lib: its SHA-256 differs; make it again.")
    return tensors, json.loads(header["meta"])


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def in_few_colours(picture: Image.Image, dither: Image.Dither = Image.Dither.FLOYDSTEINBERG) -> Image.Image:
    """A picture in the 256 colours that cover it best, so that gradients and photographs keep theirs; white stays."""
    picture = picture.convert("RGB")
    colours = picture.reduce(2).quantize(256, method=Image.Quantize.MAXCOVERAGE)
    colours.putpalette([255 if one > 246 else one for one in colours.getpalette()])
    return picture.quantize(palette=colours, dither=dither)
