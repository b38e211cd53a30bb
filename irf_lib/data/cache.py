"""Feature maps of image files, computed once and kept on disk."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..files import InputError, file_sha256, load_tensors, save_tensors
from ..networks import backbones
from . import images

_BATCH = 16  # images decoded and computed at a time


class FeatureCache:
    """Maps image files to raw (not standardised) feature maps (N, C, s, s) float32 on the CPU.

    An entry is keyed by the backbone's weights, the sizes, the kind of device, the code that makes the features, and
    the file's bytes. A damaged one is computed again."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @torch.no_grad()
    def __call__(
        self, paths: Sequence[Path], backbone: backbones.Backbone, image_size: int, progress: str | None = None
    ) -> Tensor:
        """Features of ``paths`` in their order; ``progress`` labels a bar. InputError for a file that is unreadable."""
        device, shape = backbone.mean.device, (backbone.channels, backbone.size, backbone.size)
        code = [file_sha256(Path(module.__file__)) for module in (images, backbones)]
        key = hashlib.sha256(f"{backbone.fingerprint} {image_size} {shape} {device.type} {code}".encode()).hexdigest()
        digests = [images.content_hash([path]) for path in paths]
        entries = [self.folder / key[:16] / digest[:2] / f"{digest}.safetensors" for digest in digests]
        maps: list[Tensor | None] = [None] * len(entries)
        for i, entry in enumerate(entries):
            with suppress(InputError):  # absent or damaged: computed, and written
                maps[i] = load_tensors(entry)[0]["features"]
        missing = [i for i, one in enumerate(maps) if one is None]
        starts = range(0, len(missing), _BATCH)
        for start in tqdm(starts, desc=progress, unit="batch", disable=not (progress and missing), leave=False):
            batch = missing[start : start + _BATCH]
            pixels = torch.from_numpy(images.load_images([paths[i] for i in batch], image_size))  # (b, 3, H, W)
            for i, one in zip(batch, backbone(pixels.to(device)).float().cpu(), strict=True):
                maps[i] = one
                save_tensors(entries[i], {"features": one}, {})
        return torch.stack(maps) if maps else torch.empty(0, *shape)
