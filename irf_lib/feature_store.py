"""Feature maps of image files, computed once and kept on disk.

An entry is keyed by what it depends on: the backbone's weights, the image and feature sizes, the kind of device and the
code that make the features, and the image file's bytes. It is an .npz, whose CRC-32 NumPy checks on reading: a damaged
entry is computed again, never trusted. A cache that cannot be written is gone on without, after one warning.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import datasets, features
from .storage import StorageError, file_sha256, write_atomically


class FeatureStore:
    """Maps image files to raw (not standardised) feature maps (N, C, s, s) float32.

    ``folder`` None keeps nothing on disk. ``hits`` and ``misses`` count the images of this object's life.
    """

    def __init__(self, backbone: features.Backbone, image_size: int, folder: Path | None = None):
        self.backbone, self.image_size = backbone, image_size
        code = "".join(file_sha256(Path(module.__file__)) for module in (datasets, features))
        key = hashlib.sha256(
            f"{backbone.fingerprint()} {image_size} {backbone.mean.device.type} {code}".encode()
        ).hexdigest()[:16]
        self.folder = Path(folder) / key if folder else None
        self.hits = self.misses = 0
        self._writable = self.folder is not None

    def __call__(self, paths: Sequence[Path], batch_size: int = 16, progress: str | None = None) -> Tensor:
        """Features of ``paths`` in their order. ``progress`` labels a bar that shows while images are computed."""
        maps: list[np.ndarray | None] = [self._read(path) for path in paths]
        missing = [i for i, one in enumerate(maps) if one is None]
        self.hits += len(paths) - len(missing)
        self.misses += len(missing)
        hidden = progress is None or not missing
        bar = tqdm(total=len(missing), desc=progress, unit="image", disable=hidden, leave=False)
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            images = datasets.load_images([paths[i] for i in batch], self.image_size)
            for i, one in zip(batch, self.from_images(images).numpy(), strict=True):
                maps[i] = one
                self._write(paths[i], one)
            bar.update(len(batch))
        bar.close()
        shape = (0, self.backbone.channels, self.backbone.size, self.backbone.size)
        return torch.from_numpy(np.stack(maps)) if maps else torch.empty(shape)

    def from_images(self, images: np.ndarray | Tensor, batch_size: int = 16) -> Tensor:
        """Features of images (N, 3, H, W) float in [0, 1] already in memory; never cached. Returned on the CPU."""
        device = self.backbone.mean.device
        batches = torch.as_tensor(images, dtype=torch.float32).split(batch_size)
        return torch.cat([self.backbone(batch.to(device)).float().cpu() for batch in batches]).contiguous()

    def _entry(self, path: Path) -> Path:
        digest = datasets.content_hash([path])  # DataError for a file that cannot be read
        return self.folder / digest[:2] / f"{digest}.npz"

    def _read(self, path: Path) -> np.ndarray | None:
        if self.folder is None:
            return None
        entry = self._entry(path)
        shape = (self.backbone.channels, self.backbone.size, self.backbone.size)
        try:
            with np.load(entry, allow_pickle=False) as file:
                one = file["features"]
        except FileNotFoundError:
            return None
        except Exception:  # damaged: computed again, and overwritten; on damaged bytes a decoder raises almost anything
            return None
        return one if one.shape == shape and one.dtype == np.float32 and np.isfinite(one).all() else None

    def _write(self, path: Path, one: np.ndarray) -> None:
        if not self._writable:
            return
        try:
            write_atomically(self._entry(path), lambda temporary: np.savez(temporary, features=one))
        except StorageError as error:
            self._writable = False
            warnings.warn(f"features are not kept from here on: {error}", stacklevel=3)
