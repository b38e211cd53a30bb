"""The textures as files: a sound data set, the same bytes every time, and nobody else's files touched."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irf_lib.data import textures
from irf_lib.data.embedded import write_embedded
from irf_lib.data.layouts import check_category, list_categories, read_category
from irf_lib.files import InputError

TINY = {"n_train": 2, "n_test_good": 1, "n_per_defect": 1}


@pytest.fixture
def cheap(monkeypatch):
    """Two textures of 16 px noise in place of the real ones; the list counts the images that were drawn."""
    drawn = []

    def normal_image(category, rng):
        drawn.append(category)
        return rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)

    monkeypatch.setattr(textures, "DEFECTS", {"cloth": ("hole", "stain"), "metal": ("scratch",)})
    monkeypatch.setattr(
        textures, "defective_image", lambda category, _, rng: (normal_image(category, rng), np.eye(16) > 0)
    )
    monkeypatch.setattr(textures, "normal_image", normal_image)
    return drawn


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_real_textures_are_a_sound_data_set(tmp_path):
    root = write_embedded(tmp_path / "textures", n_train=1, n_test_good=1, n_per_defect=1)
    assert list_categories(root) == tuple(sorted(textures.DEFECTS))
    for name, kinds in textures.DEFECTS.items():
        category = read_category(root, name)
        assert category.layout == "mvtec" and category.has_masks and check_category(category) == []
        assert sorted(image.kind for image in category.test) == sorted(("good", *kinds))


def test_the_bytes_are_the_same_and_each_image_is_on_its_own(tmp_path, cheap):
    first = contents(write_embedded(tmp_path / "a", **TINY, seed=3))
    assert first == contents(write_embedded(tmp_path / "b", **TINY, seed=3))
    more = contents(write_embedded(tmp_path / "c", n_train=3, n_test_good=2, n_per_defect=2, seed=3))
    assert all(more[name] == data for name, data in first.items() if name != "manifest.json")
    other = contents(write_embedded(tmp_path / "d", **TINY, seed=4))
    images = [data for files in (more, other) for name, data in files.items() if "_mask" not in name]
    assert len(set(images)) == len(images)  # no two images anywhere share their random numbers
    assert {mask.getextrema() for mask in map(Image.open, (tmp_path / "a").rglob("*_mask.png"))} == {(0, 255)}


def test_what_is_there_is_used_and_what_is_lost_or_outdated_is_drawn_again(tmp_path, cheap, monkeypatch):
    root = write_embedded(tmp_path / "new" / "a", **TINY)
    before, manifest = contents(root), root / "manifest.json"
    assert [path.name for path in root.parent.iterdir()] == ["a"] and len(cheap) == 9
    (root / ".DS_Store").write_bytes(b"")
    write_embedded(root, **TINY)
    assert len(cheap) == 9
    (root / "cloth/train/good/001.png").unlink()
    write_embedded(root, **TINY)
    manifest.write_text(manifest.read_text().replace('"generator"', '"of_old"'))  # as an older version wrote it
    write_embedded(root, **TINY)
    assert len(cheap) == 27 and contents(root) == before
    write_embedded(root, **TINY | {"n_train": 5})
    assert len(read_category(root, "cloth").train) == 5 and str(tmp_path) not in manifest.read_text()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(textures, "defective_image", lambda *_: 1 / 0)
        write_embedded(root, **TINY)
    assert [path.name for path in root.parent.iterdir()] == ["a"], "nothing is left after a failure"


def test_files_of_somebody_else_are_left_alone(tmp_path, cheap):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(b"dear to me")
    root = write_embedded(tmp_path / "a", **TINY)
    (root / "cloth/train/good/mine.png").write_bytes(b"mine")
    before = contents(tmp_path)
    for folder, name in ((tmp_path / "mine", "holiday.png"), (root, "mine.png")):
        with pytest.raises(InputError, match=f"{name}: was not written here; move it"):
            write_embedded(folder)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("seed", [0, 1], ids=["new", "outdated"])
def test_several_writers_at_once_all_end_well(tmp_path, cheap, seed):
    write_embedded(tmp_path / ("a" if seed else "b"), **TINY, seed=seed)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: write_embedded(tmp_path / "a", **TINY), range(6))) == [tmp_path / "a"] * 6
    assert contents(tmp_path / "a") == contents(write_embedded(tmp_path / "b", **TINY))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
