"""CutPaste copies: a local change, where the mask says, the same for the same seed."""

import numpy as np
import pytest

from irf_lib.studies.cutpaste import KINDS, cut_paste


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_masked_pixels_change(kind):
    images = np.random.default_rng(0).random((12, 3, 64, 64), dtype=np.float32)
    copies, masks = cut_paste(images, kind, seed=1)
    assert copies.shape == images.shape and masks.shape == (12, 64, 64)
    assert copies.min() >= 0 and copies.max() <= 1
    changed = np.abs(copies - images).max(axis=1) > 1 / 255
    assert (changed == masks).all() and masks.any(axis=(1, 2)).all()
    share = masks.mean(axis=(1, 2))
    assert (share < 0.05).all() and (share > 0.0004).all()
    assert (copies[:2] == cut_paste(images[:2], kind, seed=1)[0]).all(), "draws belong to the image"
    assert (copies != cut_paste(images, kind, seed=2)[0]).any()
