"""What a generated defect must keep: an exact mask, its defect-free twin, nothing from outside `rng`."""

# ruff: noqa: NPY002  (one test watches the legacy global generator)

import numpy as np
import pytest
from scipy import ndimage

from irf_lib.textures import DEFECTS, defective_image, normal_image

KINDS = [(category, kind) for category, kinds in DEFECTS.items() for kind in kinds]
# defects of one piece, so that a stray pixel elsewhere would stretch their bounding box
COMPACT = [
    ("woven", "hole"),
    ("woven", "cut_paste"),
    ("brushed_metal", "dent"),
    ("brushed_metal", "stain"),
    ("speckled_stone", "hole"),
    ("speckled_stone", "foreign_grain"),
    ("speckled_stone", "blur_patch"),
    ("printed_board", "broken_trace"),
]


def twins(category: str, kind: str, seed: int, size: int = 256):
    """The defective image, its mask, and the defect-free image drawn from the same state."""
    image, mask = defective_image(category, kind, np.random.default_rng(seed), size)
    return image, mask, normal_image(category, np.random.default_rng(seed), size)


def test_four_categories_with_four_or_five_kinds_each():
    assert set(DEFECTS) == {"woven", "brushed_metal", "speckled_stone", "printed_board"}
    for kinds in DEFECTS.values():
        assert 4 <= len(kinds) <= 5
        assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("size", [64, 100, 256])
@pytest.mark.parametrize("category", DEFECTS)
def test_images_are_uint8_rgb_of_the_size_asked(category, size):
    normal = normal_image(category, np.random.default_rng(0), size)
    image, mask = defective_image(category, DEFECTS[category][0], np.random.default_rng(0), size)
    assert normal.shape == image.shape == (size, size, 3)
    assert normal.dtype == image.dtype == np.uint8
    assert mask.shape == (size, size)
    assert mask.dtype == bool
    assert normal.std() > 5  # a texture, neither black nor burnt out
    assert ((normal == 0) | (normal == 255)).mean() < 0.1


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_mask_is_what_the_defect_changed(category, kind):
    for seed in range(4):
        image, mask, twin = twins(category, kind, seed)
        changed = (image != twin).any(axis=2)
        assert mask.any(), f"empty mask at seed {seed}"
        assert not (changed & ~mask).any(), f"change outside the mask at seed {seed}"
        assert changed[mask].mean() >= 0.8, f"mask far larger than the change at seed {seed}"
        assert 0.001 < mask.mean() < 0.06, f"area {mask.mean():.4f} at seed {seed}"


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_defects_survive_at_the_smallest_size(category, kind):
    image, mask, twin = twins(category, kind, seed=5, size=64)
    changed = (image != twin).any(axis=2)
    assert mask.any()
    assert not (changed & ~mask).any()
    assert changed[mask].mean() >= 0.8


@pytest.mark.parametrize(("category", "kind"), COMPACT)
def test_mask_of_a_compact_defect_has_no_stray_pixels(category, kind):
    for seed in range(3):
        _, mask, _ = twins(category, kind, seed)
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        assert max(rows.stop - rows.start, columns.stop - columns.start) < 128


def test_pasted_patch_counts_whole_though_some_pixels_agree():
    agreed = 0
    for seed in range(6):
        image, mask, twin = twins("woven", "cut_paste", seed)
        assert (ndimage.binary_fill_holes(mask) == mask).all()
        assert ndimage.label(mask)[1] == 1
        agreed += (image == twin).all(axis=2)[mask].sum()
    assert agreed > 0  # else the rule for this kind would have nothing to do


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_same_state_gives_the_same_bytes_whatever_the_global_seed(category, kind):
    np.random.seed(1)
    first, first_mask, first_normal = twins(category, kind, seed=7, size=96)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    second, second_mask, second_normal = twins(category, kind, seed=7, size=96)
    assert (np.random.get_state()[1] == before).all()  # the global generator was not even touched
    assert first.tobytes() == second.tobytes()
    assert first_mask.tobytes() == second_mask.tobytes()
    assert first_normal.tobytes() == second_normal.tobytes()


@pytest.mark.parametrize("category", DEFECTS)
def test_background_does_not_depend_on_the_kind(category):
    normal = normal_image(category, np.random.default_rng(11), 128)
    for kind in DEFECTS[category]:
        image, mask = defective_image(category, kind, np.random.default_rng(11), 128)
        assert (image[~mask] == normal[~mask]).all()


@pytest.mark.parametrize("category", DEFECTS)
def test_normal_images_vary_in_light_and_detail(category):
    images = np.stack([normal_image(category, np.random.default_rng(s), 128) for s in range(8)]).astype(float)
    assert images.mean(axis=(1, 2, 3)).std() > 0.03 * images.mean()  # exposure
    assert images.std(axis=0).mean() > 5
    assert len({image.tobytes() for image in images}) == len(images)


def test_only_the_board_is_aligned():
    def likeness(category):
        a, b = (normal_image(category, np.random.default_rng(s), 128).mean(axis=2) for s in (0, 1))
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    assert likeness("printed_board") > 0.8
    assert max(likeness(category) for category in DEFECTS if category != "printed_board") < 0.5


def test_a_defect_varies_from_seed_to_seed():
    for category, kind in KINDS:
        masks = [defective_image(category, kind, np.random.default_rng(s), 64)[1] for s in range(4)]
        assert len({mask.tobytes() for mask in masks}) > 1, (category, kind)


def test_unknown_names_and_tiny_sizes_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="woven.*printed_board"):
        normal_image("leather", rng)
    with pytest.raises(ValueError, match="woven.*printed_board"):
        defective_image("leather", "stain", rng)
    with pytest.raises(ValueError, match="scratch, dent, stain, cross_brushing"):
        defective_image("brushed_metal", "snag", rng)
    with pytest.raises(ValueError, match="64"):
        normal_image("woven", rng, size=63)
