"""What a generated defect must keep: an exact mask, its defect-free twin, and nothing from outside `rng`."""

import numpy as np
import pytest

from irf_lib.data.textures import DEFECTS, defective_image, normal_image

KINDS = [(category, kind) for category, kinds in DEFECTS.items() for kind in kinds]


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_mask_is_what_the_defect_changed(category, kind):
    masks = set()
    for seed, size in ((0, 256), (5, 64), (3, 100)):
        image, mask = defective_image(category, kind, np.random.default_rng(seed), size)
        twin = normal_image(category, np.random.default_rng(seed), size)  # free of defects, from the same state
        assert image.shape == twin.shape == (size, size, 3) and image.dtype == twin.dtype == np.uint8
        assert mask.shape == (size, size) and mask.dtype == bool and twin.std() > 5
        changed = (image != twin).any(axis=2)
        assert mask.any(), f"empty mask at seed {seed}"
        assert not (changed & ~mask).any(), f"change outside the mask at seed {seed}"
        assert changed[mask].mean() >= 0.8, f"mask far larger than the change at seed {seed}"
        assert size < 256 or 0.001 < mask.mean() < 0.06, f"area {mask.mean():.4f} at seed {seed}"
        masks.add(mask.tobytes())
    assert len(masks) == 3, "a defect varies from seed to seed"
