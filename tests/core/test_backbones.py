"""Backbones to one (C, s, s) map."""

import pytest
import torch

from irf_lib.files import RunError
from irf_lib.networks import backbones
from irf_lib.networks.backbones import build_backbone, channel_statistics, resize_map


@pytest.fixture(scope="module")
def lite0():
    return build_backbone("efficientnet-lite0")


def test_lite0_maps(lite0):
    x = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    maps = lite0(x)
    assert maps.shape == (2, 192, 16, 16) and lite0.channels == 192
    assert torch.equal(maps, lite0(x)), "frozen: no dropout, no batch statistics"
    assert torch.allclose(maps[:1], lite0(x[:1]), atol=1e-5)
    assert not any(p.requires_grad for p in lite0.parameters())
    shapes = [tuple(tap.shape[1:]) for tap in lite0._taps(torch.zeros(1, 3, 256, 256))]
    assert shapes == [(16, 128, 128), (24, 64, 64), (40, 32, 32), (112, 16, 16)]


def test_b4_has_the_published_channels(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.EfficientNetConfig(width_coefficient=1.4, depth_coefficient=1.8, hidden_dim=1792)
    transformers.EfficientNetModel(config).save_pretrained(tmp_path)  # random weights, in the hub's format
    backbone = build_backbone("efficientnet-b4", 16, tmp_path)
    with torch.no_grad():
        taps = backbone._taps(torch.zeros(1, 3, 256, 256))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(24, 128, 128), (32, 64, 64), (56, 32, 32), (160, 16, 16)]
    assert backbone(torch.rand(1, 3, 256, 256)).shape == (1, 272, 16, 16)


def test_rgb_averages_pixels():
    x = torch.rand(1, 3, 32, 32)
    expected = (x.reshape(1, 3, 8, 4, 8, 4).mean(dim=(3, 5)) - 0.5) / 0.5
    assert torch.allclose(build_backbone("rgb", 8)(x), expected, atol=1e-6)
    assert resize_map(x, 64).shape == (1, 3, 64, 64)


def test_what_cannot_be_built_says_why(tmp_path, monkeypatch, refused):
    pytest.importorskip("transformers")
    refused("local folder that holds config.json", build_backbone, "efficientnet-b4", 16, tmp_path / "nothing", True)
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    refused("pip install 'irf-lib", build_backbone, "efficientnet-b4", kind=RunError)


def test_channel_statistics():
    x = torch.randn(5, 3, 4, 4) * 2 + 7
    x[:, 2] = 4.0  # never varies
    mean, std = channel_statistics(x)
    z = (x - mean) / std
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert torch.allclose(z[:, :2].std(dim=(0, 2, 3)), torch.ones(2), atol=1e-5)
    assert (z[:, 2] == 0).all()
