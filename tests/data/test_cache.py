"""The cache of features: the same numbers with it and without it, whatever happens to its files."""

from pathlib import Path

import pytest
import torch

from irf_lib.data.cache import FeatureCache
from irf_lib.data.images import load_images
from irf_lib.networks.backbones import build_backbone

BACKBONE = build_backbone("rgb", 4)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The number of images in each call of the backbone."""
    sizes, forward = [], BACKBONE.forward
    monkeypatch.setattr(BACKBONE, "forward", lambda pixels: (sizes.append(len(pixels)), forward(pixels))[1])
    return sizes


@pytest.fixture
def paths(tmp_path, photograph) -> list[Path]:
    """More than are computed at a time."""
    return sorted(photograph(tmp_path / "parts", 18).iterdir())


def test_features_are_computed_once_and_in_order(tmp_path, paths, computed):
    expected = BACKBONE(torch.from_numpy(load_images(paths, 32)))
    computed.clear()
    cache = FeatureCache(tmp_path / "cache")
    assert torch.equal(cache(paths, BACKBONE, 32), expected) and computed == [16, 2]
    assert torch.equal(cache(paths[::-1], BACKBONE, 32), expected.flip(0))
    paths[0].rename(tmp_path / "renamed.png")
    again = FeatureCache(tmp_path / "cache")  # in another process
    assert torch.equal(again([tmp_path / "renamed.png"], BACKBONE, 32), expected[:1])
    assert computed == [16, 2], "all were there"
    assert again([], BACKBONE, 32).shape == (0, BACKBONE.channels, 4, 4)


def test_other_bytes_sizes_and_weights_are_other_entries(tmp_path, paths, monkeypatch, computed):
    cache = FeatureCache(tmp_path / "cache")
    cache(paths[:1], BACKBONE, 32)
    cache(paths[:1], BACKBONE, 64)
    cache(paths[:1], build_backbone("rgb", 8), 32)
    with monkeypatch.context() as patch:
        patch.setattr(BACKBONE, "fingerprint", "of other weights")
        cache(paths[:1], BACKBONE, 32)
    paths[0].write_bytes(paths[1].read_bytes())
    cache(paths[:1], BACKBONE, 32)
    assert computed == [1] * 4 and len([*(tmp_path / "cache").glob("*/*/*")]) == 5


def test_a_damaged_entry_is_computed_again(tmp_path, paths, computed):
    cache = FeatureCache(tmp_path / "cache")
    expected = cache(paths[:1], BACKBONE, 32)
    (entry,) = (tmp_path / "cache").glob("*/*/*")
    entry.write_bytes(entry.read_bytes()[:-9])
    assert torch.equal(cache(paths[:1], BACKBONE, 32), expected) and computed == [1, 1]
    assert torch.equal(cache(paths[:1], BACKBONE, 32), expected) and computed == [1, 1], "it was written again"
