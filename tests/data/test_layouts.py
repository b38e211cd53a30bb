"""layouts.py against tiny data sets of every layout, spoiled in every way that it promises to notice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irf_lib.data.layouts import category_hash, check_category, list_categories, read_category

SIDE = 32
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[4:10, 20:30] = 2  # VisA's masks hold small integers
TABLE = "split_csv/1cls.csv"
ROWS = """object,split,label,image,mask
set,train,normal,0.JPG,
set,test,normal,1.JPG,
set,test,anomaly,2.JPG,2.png
nut,train,normal,0.JPG,
"""
SETS = {  # by the layout: images, masks
    "mvtec": (
        "train/good/0.png train/good/1.png test/good/0.png test/broken/0.png test/broken/1.png test/scratch/0.png",
        "ground_truth/broken/0_mask.png ground_truth/broken/1_mask.png ground_truth/scratch/0_mask.png",
    ),
    "btad": ("train/ok/0.bmp test/ok/0.bmp test/ko/0.bmp test/ko/1.bmp", "ground_truth/ko/0.png ground_truth/ko/1.bmp"),
    "visa": ("0.JPG 1.JPG 2.JPG", "2.png"),
    "folder": ("1.png 0.TIFF test/good/0.png test/cut/0.png test/cut/1.png", "masks/cut/0.png masks/cut/1_mask.png"),
}


def put(path: Path, pixels: np.ndarray | None = None, **options) -> None:
    """Save `pixels`, or an image that depends on the name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        seed = list("/".join(path.parts[-3:]).encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def build(root: Path, layout: str) -> Path:
    images, masks = SETS[layout]
    for name in images.split():
        put(root / name)
    for name in masks.split():
        put(root / name, MASK)
    if layout == "visa":
        (root / "split_csv").mkdir()
        (root / TABLE).write_text(ROWS, encoding="utf-8-sig")  # as a spreadsheet saves it
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return build(tmp_path / "set", "mvtec")


@pytest.mark.parametrize(
    "layout, train, test",
    [
        ("mvtec", "0.png 1.png", "broken:0_mask.png broken:1_mask.png good: scratch:0_mask.png"),
        ("btad", "0.bmp", "good: ko:0.png ko:1.bmp"),
        ("visa", "0.JPG", "anomaly:2.png good:"),
        ("folder", "0.TIFF 1.png", "cut:0.png cut:1_mask.png good:"),
    ],
)
def test_each_layout_is_read(tmp_path, layout, train, test):
    category = read_category(build(tmp_path / "set", layout), "set")
    assert (category.name, category.layout, category.root) == ("set", layout, tmp_path / "set")
    assert " ".join(path.name for path in category.train) == train
    assert " ".join(f"{image.kind}:{image.mask.name if image.mask else ''}" for image in category.test) == test
    assert all(image.mask.stem.removesuffix("_mask") == image.path.stem for image in category.test if image.mask)
    assert category.has_masks and check_category(category) == []


def test_roots_of_several_categories_of_none_and_a_relative_one(tmp_path, monkeypatch, refused):
    build(tmp_path / "pill", "mvtec"), build(tmp_path / "bottle", "btad"), (tmp_path / "notes").mkdir()
    assert list_categories(tmp_path) == ("bottle", "pill") and list_categories(tmp_path / "pill") == ("pill",)
    assert read_category(tmp_path, "pill") == read_category(tmp_path / "pill", "pill")
    refused("nowhere check the path", list_categories, tmp_path / "nowhere")
    refused(f"{tmp_path}/notes train/good train/ok split_csv/1cls.csv PNG", read_category, tmp_path / "notes", "a")
    refused(f"{tmp_path} no category 'xyz'; choose one of bottle, pill.", read_category, tmp_path, "xyz")
    monkeypatch.chdir(tmp_path / "pill")
    assert list_categories(Path(".")) == ("pill",), "a relative root keeps its folder's name"


def test_masks_and_tests_may_be_absent_and_side_files_are_ignored(tmp_path, root):
    put(tmp_path / "parts" / "good" / "a.png")
    category = read_category(tmp_path / "parts", "parts")
    assert category.test == () and not category.has_masks and check_category(category) == []
    for mask in root.glob("ground_truth/*/*"):
        mask.unlink()
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "readme.txt", "LICENSE"):
        (root / "train/good" / name).write_bytes(b"not an image")
    (root / "train/good/.ipynb_checkpoints").mkdir()
    category = read_category(root, "set")
    assert not category.has_masks and len(category.test) == 4 and check_category(category) == []


def edit(old: str, new: str) -> Callable[[Path], None]:
    """Replace the first of `old` in VisA's table; OUT in `new` is the folder that the data set's folder is in."""

    def spoil(root: Path) -> None:
        text = (root / TABLE).read_text()
        assert old in text
        (root / TABLE).write_text(text.replace(old, new.replace("OUT", str(root.parent)), 1))

    return spoil


@pytest.mark.parametrize(
    "layout, spoil, words",
    [
        ("mvtec", lambda root: [path.unlink() for path in root.glob("train/good/*")], "set no training image add"),
        ("mvtec", lambda root: put(root / "train/good/a.webp"), "a.webp unsupported convert"),
        ("mvtec", lambda root: (root / "train/good/more").mkdir(), "more folder move"),
        ("mvtec", lambda root: put(root / "test/loose.png"), "loose.png test/<kind> good sort"),
        ("mvtec", lambda root: (root / "test/broken/1.png").unlink(), "1_mask.png one mask add remove"),
        ("mvtec", lambda root: (root / "ground_truth/broken/1_mask.png").unlink(), "1.png no mask add"),
        ("mvtec", lambda root: (root / "test/broken/bad\udcff.gif").write_bytes(b""), r"bad\xff.gif unsupported"),
        ("mvtec", lambda root: put(root / "ground_truth/broken/1_mask.png", MASK[:, :16]), "1_mask.png 16 32 export"),
        ("mvtec", lambda root: put(root / "ground_truth/broken/1_mask.png", MASK * 0), "1_mask.png no pixel redraw"),
        ("mvtec", lambda root: (root / "train/good/1.png").write_bytes(b"hello"), "good/1.png readable replace"),
        ("folder", lambda root: put(root / "good/c.png"), "beside good/ move"),
        ("folder", lambda root: put(root / "dents/y.png"), "dents folder move"),
        ("folder", lambda root: put(root / "ground_truth/cut/0.png"), "masks/cut/0.png one mask remove"),
        ("visa", edit("split,label", "split,kind"), "1cls.csv label column"),
        ("visa", edit("set,train,normal", "set,train,anomaly"), "line 2 'train' 'anomaly' correct"),
        ("visa", edit("set,test,anomaly", "set,test,normal"), "line 4 'normal' a mask correct"),
        ("visa", edit("0.JPG", "9.JPG"), "line 2 9.JPG missing restore"),
        ("visa", edit("0.JPG", "../out.png"), "line 2 out.png outside the data folder restore"),
        ("visa", edit("2.png", ".link.png"), "line 4 link.png outside restore"),
        ("visa", edit("2.png", "OUT/out.png"), "line 4 out.png outside restore"),
        ("visa", edit("nut,train", "../set,train"), "1cls.csv '../set' no name of a category restore"),
    ],
)
def test_each_error_names_the_file_and_the_remedy(tmp_path, layout, spoil, words, refused):
    put(tmp_path / "out.png")
    root = build(tmp_path / "set", layout)
    (root / ".link.png").symlink_to(tmp_path / "out.png")
    spoil(root)
    refused(words, lambda: check_category(read_category(root, "set")))


def test_leaks_and_duplicates_are_reported(root):
    for name, first in (("test/good/1.png", "train/good/0.png"), ("test/broken/1.png", "test/broken/0.png")):
        (root / name).write_bytes((root / first).read_bytes())
    twice, leak = (said.replace(f"{root}/", "") for said in check_category(read_category(root, "set")))
    same = "a test image that is byte for byte the"
    assert twice == f"test/broken/1.png: {same} test image test/broken/0.png; remove one of the two."
    assert leak == f"test/good/1.png: {same} training image train/good/0.png; remove one of the two."


def test_the_hash_of_a_category_sees_bytes_and_roles_but_not_the_place(tmp_path):
    roots = [build(tmp_path / name / "set", "mvtec") for name in "abcde"]
    put(roots[2] / "train/good/0.png", MASK)
    (roots[4] / "test/good/0.png").rename(roots[4] / "train/good/2.png")
    for folder in ("test", "ground_truth"):
        (roots[3] / folder / "scratch").rename(roots[3] / folder / "dent")
    same, moved, *others = (category_hash(read_category(root, "set")) for root in roots)
    assert same == moved and len({same, *others}) == 4
