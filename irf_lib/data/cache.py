"""Feature maps of image files, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..files import InputError, RunError, file_sha256, load_tensors, save_tensors
from ..networks import backbones
from . import images

_BATCH = 16  # images decoded and computed at a time


class FeatureCache:
    """Maps image files to raw (not standardised) feature maps (N, C, s, s) float32 on the CPU.

    An entry is keyed by what it depends on: the backbone's weights, the image and feature sizes, the kind of device,
    the code that makes the features, and the image file's bytes. A damaged entry is computed again, never trusted; a
    cache that cannot be written is gone on without, after one warning. ``hits`` and ``misses`` count images.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.hits = self.misses = 0
        self._writable = True

    @torch.no_grad()
    def __call__(
        self, paths: Sequence[Path], backbone: backbones.Backbone, image_size: int, progress: str | None = None
    ) -> Tensor:
        """Features of ``paths`` in their order. ``progress`` labels a bar that shows while images are computed.

        Raises InputError for a file that cannot be read.
        """
        device, shape = backbone.mean.device, (backbone.channels, backbone.size, backbone.size)
        code = [file_sha256(Path(module.__file__)) for module in (images, backbones)]
        key = hashlib.sha256(f"{backbone.fingerprint()} {image_size} {shape} {device.type} {code}".encode()).hexdigest()
        folder = self.folder / key[:16]
        entries = [
            folder / digest[:2] / f"{digest}.safetensors" for digest in (images.content_hash([p]) for p in paths)
        ]
        maps = [_read(entry, shape) for entry in entries]
        missing = [i for i, one in enumerate(maps) if one is None]
        self.hits += len(paths) - len(missing)
        self.misses += len(missing)
        bar = tqdm(total=len(missing), desc=progress, unit="image", disable=not (progress and missing), leave=False)
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            pixels = torch.from_numpy(images.load_images([paths[i] for i in batch], image_size))  # (b, 3, H, W)
            for i, one in zip(batch, backbone(pixels.to(device)).float().cpu(), strict=True):
                maps[i] = one
                self._write(entries[i], one)
            bar.update(len(batch))
        bar.close()
        return torch.stack(maps) if maps else torch.empty(0, *shape)

    def _write(self, entry: Path, one: Tensor) -> None:
        try:
            if self._writable:
                save_tensors(entry, {"features": one}, {})
        except RunError as error:
            self._writable = False
            warnings.warn(f"features are not kept from here on: {error}", stacklevel=3)


def _read(entry: Path, shape: tuple[int, int, int]) -> Tensor | None:
    try:
        one = load_tensors(entry)[0].get("features")
    except InputError:  # absent or damaged: computed, and written
        return None
    return one if one is not None and one.shape == shape and one.isfinite().all() else None
