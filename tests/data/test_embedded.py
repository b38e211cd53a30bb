"""The textures as files: a sound data set, the same bytes every time, and nobody else's files touched."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irf_lib.data import texture_defects, textures
from irf_lib.data.embedded import write_embedded
from irf_lib.data.layouts import check_category, list_categories, read_category
from irf_lib.files import InputError, RunError, read_json

TINY = {"n_train": 2, "n_test_good": 1, "n_per_defect": 1}


@pytest.fixture
def cheap(monkeypatch):
    """Two textures of 16 px noise in place of the real ones; the list counts the images that were drawn."""
    drawn = []

    def normal_image(category, rng, size=256):
        drawn.append(category)
        return rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def defective_image(category, kind, rng, size=256):
        mask = np.zeros((16, 16), bool)
        mask[2:5, 3:9] = True
        return normal_image(category, rng), mask

    monkeypatch.setattr(texture_defects, "DEFECTS", {"cloth": ("hole", "stain"), "metal": ("scratch",)})
    monkeypatch.setattr(texture_defects, "defective_image", defective_image)
    monkeypatch.setattr(textures, "normal_image", normal_image)
    return drawn


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_real_textures_are_a_sound_data_set(tmp_path):
    root = write_embedded(tmp_path / "textures", n_train=1, n_test_good=1, n_per_defect=1)
    assert list_categories(root) == tuple(sorted(texture_defects.DEFECTS))
    for name, kinds in texture_defects.DEFECTS.items():
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
    rng = np.random.default_rng(np.random.SeedSequence((3, 0, 1, 2, 0)))
    expected = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a/cloth/test/stain/000.png")), expected)


def test_what_is_there_is_used_and_what_is_lost_or_outdated_is_drawn_again(tmp_path, cheap):
    root = write_embedded(tmp_path / "new" / "a", **TINY)
    before = contents(root)
    assert [path.name for path in root.parent.iterdir()] == ["a"] and len(cheap) == 9
    (root / ".DS_Store").write_bytes(b"")
    (root / "cloth/train/good/001.png").unlink()
    write_embedded(root, **TINY)
    manifest = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(manifest.replace('"generator"', '"of_old"'))  # as an older version wrote it
    write_embedded(root, **TINY)
    assert len(cheap) == 27 and contents(root) == before
    write_embedded(root, **TINY | {"n_train": 5})
    assert len(read_category(root, "cloth").train) == 5 and str(tmp_path) not in (root / "manifest.json").read_text()
    assert read_json(root / "manifest.json")["parameters"] == TINY | {"n_train": 5, "seed": 0}


def test_a_folder_of_somebody_else_is_refused(tmp_path, cheap):
    mine = tmp_path / "mine" / "holiday.png"
    mine.parent.mkdir()
    mine.write_bytes(b"dear to me")
    for manifest in (None, '{"name": "web app", "files": [{}]}', "[]", "{"):
        if manifest:
            (mine.parent / "manifest.json").write_text(manifest)
        with pytest.raises(InputError, match="mine"):
            write_embedded(mine.parent)
    root = write_embedded(tmp_path / "a", **TINY)
    (root / "cloth/train/good/mine.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="mine.png: was not written here; move it"):
        write_embedded(root, **TINY, seed=1)
    with pytest.raises(InputError, match="holiday.png"):
        write_embedded(mine)
    assert mine.read_bytes() == b"dear to me" and (root / "cloth/train/good/mine.png").exists() and not cheap[9:]


def test_nothing_is_left_after_a_failure(tmp_path, cheap, monkeypatch):
    monkeypatch.setattr(texture_defects, "defective_image", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_embedded(tmp_path / "a", **TINY)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/textures cannot be written .*: check"):
        write_embedded(tmp_path / "file" / "textures", **TINY)


@pytest.mark.parametrize("outdated", [False, True])
def test_several_writers_at_once_all_end_well(tmp_path, cheap, outdated):
    root = tmp_path / "a"
    if outdated:
        write_embedded(root, **TINY, seed=1)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: write_embedded(root, **TINY), range(6))) == [root] * 6
    assert list(tmp_path.iterdir()) == [root] and len(contents(root)) == 13
    cheap.clear()
    write_embedded(root, **TINY)
    assert not cheap
