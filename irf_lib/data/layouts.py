"""What images are: folders of photographs read as training images, labelled test images and masks.

Four layouts are understood, told apart by what a folder holds:

    mvtec   <category>/train/good, test/<kind>, ground_truth/<kind>/<stem>_mask.png (MVTec AD, MPDD)
    btad    <category>/train/ok, test/ok, test/ko, ground_truth/ko/<stem>.png (BTAD; "ok" becomes "good")
    visa    split_csv/1cls.csv with the columns object, split, label, image, mask (VisA)
    folder  good images in the folder itself or in good/; optionally test/good, test/<kind>, and masks of
            the same stem, with or without "_mask", in ground_truth/<kind> or masks/<kind>

`read_category` looks at names only; `check_category` decodes every file. Whatever is wrong is one InputError that names
the file and the remedy: a file skipped in silence would change a metric.
"""

import csv
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..files import InputError, printable
from .images import SIDE_FILES, SUFFIXES, TYPES, content_hash, image_size, in_threads, mask_pixels


@dataclass(frozen=True)
class TestImage:
    """One test image: its kind ("good" or the defect's name) and its mask, None where there is none."""

    path: Path
    kind: str
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        return self.kind != "good"


@dataclass(frozen=True)
class Category:
    """One category. `root` is its folder (in layout "visa": the folder that holds split_csv)."""

    name: str
    layout: str  # 'mvtec', 'btad', 'visa' or 'folder'
    root: Path
    train: tuple[Path, ...]
    test: tuple[TestImage, ...]

    @property
    def has_masks(self) -> bool:
        """Whether pixel metrics are possible: some test image is anomalous and each of those has a mask."""
        masks = [image.mask for image in self.test if image.is_anomalous]
        return bool(masks) and None not in masks


def list_categories(root: Path) -> tuple[str, ...]:
    """The names of the categories under `root`, sorted. Raises InputError if there is none."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{printable(root)}: no such folder; check the path to the data set.")
    if not (found := find_categories(root)):
        known = f"train/good (MVTec AD), train/ok (BTAD), split_csv/1cls.csv (VisA), or good images ({TYPES})"
        raise InputError(f"{printable(root)}: no data set; expected one with {known}, there or in good/.")
    return tuple(found)


def find_categories(root: Path) -> dict[str, tuple[str, Path]]:
    """The layout and the folder of every category under the folder `root`, by name, sorted; empty if there is none."""
    entries = _entries(root)
    if (root / "split_csv" / "1cls.csv").is_file():
        return {name: ("visa", root) for name in sorted({row["object"] for _, row in _visa_rows(root)})}
    if layout := _layout(root):
        return {root.resolve().name: (layout, root)}
    found = {path.name: (layout, path) for path in entries if path.is_dir() and (layout := _layout(path))}
    if not found and any(path.name == "good" or path.suffix.lower() in SUFFIXES for path in entries):
        found = {root.resolve().name: ("folder", root)}
    return found


def read_category(root: Path, name: str) -> Category:
    """The images of one category of `root`, by their names alone: training images sorted by name, test images by kind
    and name. InputError for an unknown category, an unsupported or misplaced file, no training image, or masks that do
    not pair with the images."""
    names = list_categories(root)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        known = ", ".join(map(printable, names))
        raise InputError(f"{printable(root)}: no category {name!r}{hint}; choose one of {known}.")
    layout, folder = find_categories(Path(root))[name]
    train, test = _read_visa(folder, name) if layout == "visa" else _read_folders(folder, layout)
    if not train:
        raise InputError(f"{printable(folder)}: no training image of {name!r}; add good images ({TYPES}).")
    bare = [image.path for image in test if image.is_anomalous and image.mask is None]
    if bare and any(image.mask for image in test):
        raise InputError(f"{printable(bare[0])}: has no mask, while others have; add its mask, or remove all masks.")
    return Category(name, layout, folder, train, test)


def _layout(folder: Path) -> str | None:
    """The layout by the name of the good images' folder in train/: "mvtec" or "btad"; None if there is no such one."""
    train = folder / "train"
    names = {path.name for path in _entries(train)} if train in _entries(folder) else set()
    return "mvtec" if "good" in names else "btad" if "ok" in names else None


def _entries(folder: Path) -> list[Path]:
    """What the folder holds, hidden and system entries left out, sorted by name. InputError if it cannot be listed."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{printable(folder)}: cannot be listed; check its permissions.")
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def _images(folder: Path, subfolders: Iterable[str] = ()) -> tuple[Path, ...]:
    """The images in `folder`, sorted by name. InputError for all else but side files and these subfolders."""
    entries = [path for path in _entries(folder) if path.name not in subfolders]
    for path in entries:
        if path.is_dir():
            raise InputError(f"{printable(path)}: a folder among images; move its images up or the folder elsewhere.")
        if path.suffix.lower() not in (*SUFFIXES, *SIDE_FILES):
            raise InputError(f"{printable(path)}: an unsupported type of file; convert it to {TYPES} or remove it.")
    return tuple(path for path in entries if path.suffix.lower() in SUFFIXES)


def _images_by_kind(folder: Path) -> list[tuple[str, Path]]:
    """(kind, image) for the images of each subfolder, "ok" read as "good"; empty where there is no such folder."""
    kinds = [path for path in _entries(folder) if path.is_dir()] if folder.is_dir() else []
    if folder.is_dir() and (loose := _images(folder, [path.name for path in kinds])):
        raise InputError(f"{printable(loose[0])}: of no kind; sort it into {folder.name}/<kind> (good is one as well).")
    return [("good" if kind.name == "ok" else kind.name, image) for kind in kinds for image in _images(kind)]


def _read_folders(folder: Path, layout: str) -> tuple[tuple[Path, ...], tuple[TestImage, ...]]:
    """The training and the test images; each of these with the mask of its kind and stem, with or without "_mask"."""
    good = folder / {"mvtec": "train/good", "btad": "train/ok", "folder": "good"}[layout]
    loose = _images(folder, ("good", "test", "ground_truth", "masks")) if layout == "folder" else ()
    if loose and good.is_dir():
        raise InputError(f"{printable(loose[0])}: lies beside good/; move it into good/ or remove it.")
    test = sorted(_images_by_kind(folder / "test"))
    of_stem = {(kind, path.stem): path for kind, path in test if kind != "good"}
    masks: dict[Path, Path] = {}
    for kind, mask in _images_by_kind(folder / "ground_truth") + _images_by_kind(folder / "masks"):
        image = of_stem.get((kind, mask.stem)) or of_stem.get((kind, mask.stem.removesuffix("_mask")))
        if image is None or image in masks:
            raise InputError(f"{printable(mask)}: not the one mask of a defective image; add that or remove the mask.")
        masks[image] = mask
    return loose or _images(good), tuple(TestImage(path, kind, masks.get(path)) for kind, path in test)


def _visa_rows(root: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of VisA's split table, each with the place to name in a message."""
    table, columns = root / "split_csv" / "1cls.csv", ("object", "split", "label", "image", "mask")
    shown = printable(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows = [(f"{shown}, line {reader.line_num}", {key: row[key] for key in columns}) for row in reader]
    except (OSError, UnicodeError, csv.Error, KeyError) as error:
        raise InputError(f"{shown}: no table of the columns {columns} ({error}); restore VisA's own file.") from None
    for place, row in rows:
        if not re.fullmatch(r"\w[\w. -]*", row["object"]):  # it names folders of results as well
            raise InputError(f"{place}: {row['object'][:99]!r} is no name of a category; restore VisA's own file.")
    return rows


def _visa_file(root: Path, place: str, cell: str) -> Path:
    """The image or mask that a cell of the table names. It must lie below `root`: a table may come from anywhere."""
    path = root / cell
    found = path.suffix.lower() in SUFFIXES and os.path.isfile(path)  # a name may be absurd
    if not found or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{place}: {cell[:99]!r} is missing, no image, or outside the data folder; restore it there.")
    return path


def _read_visa(root: Path, name: str) -> tuple[tuple[Path, ...], tuple[TestImage, ...]]:
    images: list[TestImage] = []
    kinds = {("train", "normal"): "train", ("test", "normal"): "good", ("test", "anomaly"): "anomaly"}
    for place, row in _visa_rows(root):
        if row["object"] != name:
            continue
        mask = _visa_file(root, place, row["mask"]) if row["mask"] else None
        kind = kinds.get((row["split"], row["label"]))
        if kind is None or (mask and kind != "anomaly"):
            found = f"{row['split'][:99]!r} with {row['label'][:99]!r} and {'a' if mask else 'no'} mask"
            raise InputError(f"{place}: {found}; correct it to train or test with normal, or test with anomaly.")
        images.append(TestImage(_visa_file(root, place, row["image"]), kind, mask))
    images.sort(key=lambda image: (image.kind, image.path))
    train = tuple(image.path for image in images if image.kind == "train")
    return train, tuple(image for image in images if image.kind != "train")


def check_category(category: Category) -> list[str]:
    """Decode every file of the category; a sentence for each image whose bytes are there before: a leak if it is tested
    after training, an interval too narrow if it is counted twice. InputError for the first file that is damaged, or
    mask that is empty or not of its image's size."""
    in_threads(image_size, category.train)
    in_threads(_check_test_image, category.test)
    said, seen = [], {}
    images = [("training", path) for path in category.train] + [("test", image.path) for image in category.test]
    for role, path in images:
        digest, shown = content_hash([path]), printable(path)
        if digest in seen:
            said.append(f"{shown}: a {role} image that is byte for byte the {seen[digest]}; remove one of the two.")
        seen.setdefault(digest, f"{role} image {shown}")
    return said


def _check_test_image(image: TestImage) -> None:
    height, width = image_size(image.path)
    if image.mask is None:
        return
    mask = mask_pixels(image.mask)
    if mask.shape != (height, width):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels for an image of {width} x {height}"
        raise InputError(f"{printable(image.mask)}: a mask of {sizes}; export it at the size of the image.")
    if not mask.any():
        raise InputError(f"{printable(image.mask)}: marks no pixel; redraw it or move the image to test/good.")


def category_hash(category: Category) -> str:
    """SHA-256 over a category's training images, test images and masks, and over what each of them is."""
    files = [*category.train, *(image.path for image in category.test)]
    content = content_hash(files + [image.mask for image in category.test if image.mask])
    roles = [len(category.train), [[image.kind, image.path.name, image.mask is not None] for image in category.test]]
    return hashlib.sha256(f"{content} {json.dumps(roles)}".encode()).hexdigest()
