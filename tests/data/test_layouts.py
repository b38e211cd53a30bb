"""layouts.py against tiny data sets of every layout, spoiled in every way that it promises to notice."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irf_lib.data.layouts import category_hash, check_category, list_categories, read_category
from irf_lib.files import InputError

SIDE = 32
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[4:10, 20:30] = 255


def put(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    """Save `pixels`, or an image that depends on the name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        seed = list("/".join(path.parts[-3:]).encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def mvtec(root: Path, name: str = "bottle") -> Path:
    """A category with 2 training images, 1 good test image, 2 broken ones and 1 scratched one."""
    for file in ("train/good/000", "train/good/001", "test/good/000"):
        put(root / name / f"{file}.png")
    for file in ("broken/000", "broken/001", "scratch/000"):
        put(root / name / "test" / f"{file}.png")
        put(root / name / "ground_truth" / f"{file}_mask.png", MASK)
    (root / name / "license.txt").write_text("licence")
    return root / name


def visa(root: Path) -> Path:
    """Two categories of one image a label; returns the table."""
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb"):
        for split, label, n in (("train", "normal", 0), ("test", "normal", 1), ("test", "anomaly", 2)):
            image, mask = f"{name}/Data/Images/{label}/{n:03d}.JPG", f"{name}/Data/Masks/{n:03d}.png"
            put(root / image, format="JPEG")
            if label == "anomaly":
                put(root / mask, MASK // 255 * 2)  # VisA's masks hold small integers
            rows.append(f"{name},{split},{label},{image},{mask if label == 'anomaly' else ''}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root / "split_csv" / "1cls.csv"


def plain(root: Path) -> Path:
    for file in ("b.png", "a.jpg", "test/good/x.png", "test/dent/y.png", "test/dent/z.png"):
        put(root / file)
    put(root / "masks" / "dent" / "y.png", MASK)
    put(root / "masks" / "dent" / "z_mask.png", MASK)
    return root


def message(function, *arguments) -> str:
    """The text of the InputError that the call raises: one line that ends in a full stop."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


def named(words: str, text: str) -> None:
    missing = [word for word in words.split() if word not in text]
    assert not missing, (missing, text)


def test_mvtec_layout_of_all_categories_and_of_one(tmp_path, monkeypatch):
    mvtec(tmp_path, "pill"), mvtec(tmp_path, "bottle")
    (tmp_path / "notes").mkdir()
    assert list_categories(tmp_path) == ("bottle", "pill") and list_categories(tmp_path / "pill") == ("pill",)
    category = read_category(tmp_path, "bottle")
    assert category == read_category(tmp_path / "bottle", "bottle")
    assert (category.name, category.layout, category.root) == ("bottle", "mvtec", tmp_path / "bottle")
    assert [path.name for path in category.train] == ["000.png", "001.png"] and category.has_masks
    kinds = [(image.kind, image.path.name, image.is_anomalous) for image in category.test]
    assert kinds[:3] == [("broken", "000.png", True), ("broken", "001.png", True), ("good", "000.png", False)]
    assert category.test[1].mask == category.root / "ground_truth" / "broken" / "001_mask.png"
    assert category.test[2].mask is None and check_category(category) == []
    monkeypatch.chdir(category.root)
    assert list_categories(Path(".")) == ("bottle",), "a relative root keeps its folder's name"


def test_btad_layout_reads_ok_as_good(tmp_path):
    for file in ("train/ok/0.bmp", "test/ok/0.bmp", "test/ko/0.bmp", "test/ko/1.bmp"):
        put(tmp_path / "01" / file)
    put(tmp_path / "01/ground_truth/ko/0.png", MASK)
    put(tmp_path / "01/ground_truth/ko/1.bmp", MASK)
    category = read_category(tmp_path, "01")
    assert category.layout == "btad" and category.has_masks and len(category.train) == 1
    assert [image.kind for image in category.test] == ["good", "ko", "ko"] and check_category(category) == []


def test_visa_layout(tmp_path):
    table = visa(tmp_path)
    table.write_text(table.read_text(), encoding="utf-8-sig")  # as a spreadsheet saves it
    assert list_categories(tmp_path) == ("candle", "pcb")
    category = read_category(tmp_path, "pcb")
    assert category.layout == "visa" and category.has_masks and len(category.train) == 1
    assert [image.kind for image in category.test] == ["anomaly", "good"] and check_category(category) == []


@pytest.mark.parametrize("good", [False, True], ids=["loose", "good"])
def test_plain_folder_with_tests_and_masks(tmp_path, good):
    root = plain(tmp_path / "parts")
    if good:
        (root / "good").mkdir()
        for name in ("a.jpg", "b.png"):
            (root / name).rename(root / "good" / name)
    category = read_category(root, "parts")
    assert category.layout == "folder" and category.has_masks and check_category(category) == []
    assert [path.name for path in category.train] == ["a.jpg", "b.png"]
    assert [image.mask and image.mask.name for image in category.test] == ["y.png", "z_mask.png", None]


def test_masks_and_tests_may_be_absent_and_side_files_are_ignored(tmp_path):
    put(tmp_path / "parts" / "a.TIFF")
    category = read_category(tmp_path / "parts", "parts")
    assert category.test == () and not category.has_masks and check_category(category) == []
    root = mvtec(tmp_path)
    for mask in root.glob("ground_truth/*/*"):
        mask.unlink()
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "readme.txt", "notes.md", "meta.json", "LICENSE"):
        (root / "train" / "good" / name).write_bytes(b"not an image")
    (root / "train" / "good" / ".ipynb_checkpoints").mkdir()
    category = read_category(root, "bottle")
    assert not category.has_masks and len(category.test) == 4 and check_category(category) == []


def test_missing_and_foreign_roots(tmp_path):
    named("nowhere check the path", message(list_categories, tmp_path / "nowhere"))
    named("check the path", message(read_category, tmp_path / "nowhere", "bottle"))
    named(f"{tmp_path} train/good train/ok split_csv/1cls.csv PNG", message(list_categories, tmp_path))


def test_unknown_category_names_the_known_and_a_close_one(tmp_path):
    mvtec(tmp_path, "bottle"), mvtec(tmp_path, "pill")
    named("did you mean 'bottle' bottle, pill", message(read_category, tmp_path, "botle"))
    assert "did you mean" not in message(read_category, tmp_path, "xyz")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: [path.unlink() for path in root.glob("train/good/*")], "bottle no training image add"),
        (lambda root: put(root / "train/good/a.webp"), "a.webp unsupported convert"),
        (lambda root: put(root / "test/broken/a.gif"), "a.gif unsupported convert"),
        (lambda root: (root / "train/good/more").mkdir(), "more folder move"),
        (lambda root: put(root / "test/loose.png"), "loose.png test/<kind> good sort"),
        (lambda root: put(root / "ground_truth/loose_mask.png"), "loose_mask.png ground_truth/<kind> sort"),
        (lambda root: (root / "test/broken/001.png").unlink(), "001_mask.png one mask add remove"),
        (lambda root: put(root / "ground_truth/good/000_mask.png"), "good/000_mask.png defective image remove"),
        (lambda root: (root / "ground_truth/broken/001_mask.png").unlink(), "001.png no mask add"),
        (lambda root: put(root / "ground_truth/broken/000.png"), "000_mask.png one mask remove"),
        (lambda root: put(root / "test/broken/000.jpg"), "000.jpg no mask add"),
        (lambda root: (root / "test/broken/bad\udcff.gif").write_bytes(b""), r"bad\xff.gif unsupported"),
    ],
)
def test_each_error_of_structure_names_the_file_and_the_remedy(tmp_path, spoil, words):
    spoil(mvtec(tmp_path))
    named(words, message(read_category, tmp_path, "bottle"))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: put(root / "good/c.png"), "beside good/ move"),
        (lambda root: put(root / "dents/y.png"), "dents folder move"),
        (lambda root: put(root / "c.heic", format="PNG"), "c.heic convert PNG"),
    ],
)
def test_errors_of_a_plain_folder(tmp_path, spoil, words):
    spoil(plain(tmp_path / "parts"))
    named(words, message(read_category, tmp_path / "parts", "parts"))


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("split,label", "split,kind", "1cls.csv label column"),
        ("candle,train,normal", "candle,train,anomaly", "line 2 'train' 'anomaly' correct"),
        ("Images/normal/000.JPG", "Images/normal/999.JPG", "line 2 999.JPG missing restore"),
        ("candle,test,anomaly", "candle,test,normal", "line 4 'normal' a mask correct"),
    ],
)
def test_errors_of_the_visa_table(tmp_path, old, new, words):
    table = visa(tmp_path)
    table.write_text(table.read_text().replace(old, new, 1))
    named(words, message(read_category, tmp_path, "candle"))


@pytest.mark.parametrize("way", ["up", "absolute", "link"])
def test_the_visa_table_may_not_leave_the_data_folder(tmp_path, way):
    table, outside = visa(tmp_path / "data"), put(tmp_path / "outside.png")
    (tmp_path / "data" / "link.png").symlink_to(outside)
    new = {"up": "candle/../../outside.png", "absolute": str(outside), "link": "link.png"}[way]
    table.write_text(table.read_text().replace("candle/Data/Masks/002.png", new))
    named("1cls.csv, line 4 outside restore", message(read_category, tmp_path / "data", "candle"))


@pytest.mark.parametrize("name", ["../nut", "", "a/b", "/tmp"])
def test_a_category_of_visa_is_no_path(tmp_path, name):
    table = visa(tmp_path)
    table.write_text(table.read_text().replace("pcb,test", f"{name},test"))
    named("1cls.csv line no name of a category restore", message(list_categories, tmp_path))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: shorten(root / "train/good/001.png"), "good/001.png readable replace"),
        (lambda root: shorten(root / "ground_truth/scratch/000_mask.png"), "000_mask.png readable replace"),
        (lambda root: (root / "test/good/000.png").write_bytes(b""), "good/000.png empty copy"),
        (lambda root: put(root / "ground_truth/broken/001_mask.png", MASK[:, :16]), "001_mask.png 16 32 export"),
        (lambda root: put(root / "ground_truth/broken/001_mask.png", MASK * 0), "001_mask.png no pixel redraw"),
    ],
)
def test_each_error_of_content_is_found_by_check_category_alone(tmp_path, spoil, words):
    spoil(mvtec(tmp_path))
    category = read_category(tmp_path, "bottle")  # looks at names only
    named(words, message(check_category, category))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_leaks_and_duplicates_are_reported(tmp_path):
    root = mvtec(tmp_path)
    for name, first in (("test/good/001.png", "train/good/000.png"), ("test/broken/001.png", "test/broken/000.png")):
        (root / name).write_bytes((root / first).read_bytes())
    twice, leak = (said.replace(f"{root}/", "") for said in check_category(read_category(root, "bottle")))
    same = "a test image that is byte for byte the"
    assert twice == f"test/broken/001.png: {same} test image test/broken/000.png; remove one of the two."
    assert leak == f"test/good/001.png: {same} training image train/good/000.png; remove one of the two."


def test_rows_that_stand_twice_in_the_visa_table_are_reported(tmp_path):
    table = visa(tmp_path)
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, rows[1], rows[1].replace("train", "test")]) + "\n")
    twice, leak = check_category(read_category(tmp_path, "candle"))
    named("000.JPG: a training image the training image remove", twice)
    named("000.JPG: a test image the training image remove", leak)


def test_the_hash_of_a_category_sees_bytes_and_roles_but_not_the_place(tmp_path):
    first = category_hash(read_category(mvtec(tmp_path / "a"), "bottle"))
    root = mvtec(tmp_path / "b")
    assert category_hash(read_category(root, "bottle")) == first
    (root / "test/scratch").rename(root / "test/dent")
    (root / "ground_truth/scratch").rename(root / "ground_truth/dent")
    renamed = category_hash(read_category(root, "bottle"))
    put(root / "train/good/000.png", MASK)
    assert len({first, renamed, category_hash(read_category(root, "bottle"))}) == 3
