"""Spoiled copies: a local change, where the mask says, the same for the same seed."""

from functools import partial

import numpy as np
import pytest

from irf_lib.studies.cutpaste import KINDS, cut_paste, stain

each_kind = pytest.mark.parametrize("spoil", [*(partial(cut_paste, kind=kind) for kind in KINDS), stain])


@each_kind
def test_only_the_masked_pixels_change(spoil):
    images = np.random.default_rng(0).random((12, 3, 64, 64), dtype=np.float32)
    copies, masks = spoil(images, seed=1)
    assert copies.shape == images.shape and copies.min() >= 0 and copies.max() <= 1
    assert (masks == (np.abs(copies - images).max(axis=1) > 1 / 255)).all()
    assert masks.mean(axis=(1, 2)).min() > 0.0004 and masks.mean(axis=(1, 2)).max() < 0.05


@each_kind
def test_draws_belong_to_the_image(spoil):
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    before, (all_four, _) = images.copy(), spoil(images, seed=1)
    assert (all_four[:2] == spoil(images[:2], seed=1)[0]).all()
    assert (all_four != spoil(images, seed=2)[0]).any()
    assert (images == before).all(), "the originals stay as they are"
