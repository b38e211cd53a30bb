"""CutPaste copies: a local change, where the mask says, the same for the same seed."""

from functools import partial

import numpy as np
import pytest

from irf_lib.studies.cutpaste import KINDS, cut_paste, stain

SPOIL = {kind: partial(cut_paste, kind=kind) for kind in KINDS} | {"stain": stain}


@pytest.mark.parametrize("kind", SPOIL)
def test_only_the_masked_pixels_change(kind):
    images = np.random.default_rng(0).random((12, 3, 64, 64), dtype=np.float32)
    copies, masks = SPOIL[kind](images, seed=1)
    assert copies.shape == images.shape and masks.shape == (12, 64, 64)
    assert copies.min() >= 0 and copies.max() <= 1
    changed = np.abs(copies - images).max(axis=1) > 1 / 255
    assert (changed == masks).all() and masks.any(axis=(1, 2)).all()
    share = masks.mean(axis=(1, 2))
    assert (share < 0.05).all() and (share > 0.0004).all()
    assert (copies[:2] == SPOIL[kind](images[:2], seed=1)[0]).all(), "draws belong to the image"
    assert (copies != SPOIL[kind](images, seed=2)[0]).any()
