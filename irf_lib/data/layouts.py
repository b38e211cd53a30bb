"""What images are: folders of photographs read as training images, labelled test images and masks.

Four layouts are understood, told apart by what a folder holds:

    mvtec   <category>/train/good, test/<kind>, ground_truth/<kind>/<stem>_mask.png (MVTec AD, MPDD)
    btad    <category>/train/ok, test/ok, test/ko, ground_truth/ko/<stem>.png (BTAD; "ok" becomes "good")
    visa    split_csv/1cls.csv with the columns object, split, label, image, mask (VisA)
    folder  good images in the folder itself or in good/; optionally test/good, test/<kind>, and masks of
            the same stem, with or without "_mask", in ground_truth/<kind> or masks/<kind>

`read_category` looks at names only; `check_category` decodes every file. Whatever is wrong with the input is one
InputError that names the file and the remedy: a file skipped in silence would change a metric.
"""

import csv
import difflib
import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..files import InputError, printable
from .images import SIDE_FILES, SUFFIXES, content_hash, image_size, in_threads, mask_pixels

_TYPES = "PNG, JPEG, BMP or TIFF"
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_ByKind = dict[str, tuple[Path, ...]]  # the files of one split by their kind


@dataclass(frozen=True)
class TestImage:
    """One test image: its kind ("good" or the defect's name) and its mask, None where there is none."""

    __test__ = False  # not a test case, whatever pytest makes of the name

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
        anomalous = [image for image in self.test if image.is_anomalous]
        return bool(anomalous) and all(image.mask is not None for image in anomalous)


# ---- structure: which file is what ----


def list_categories(root: Path) -> tuple[str, ...]:
    """The names of the categories under `root`, sorted. Raises InputError if there is none."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{printable(root)}: no such folder; check the path to the data set.")
    if found := find_categories(root):
        return tuple(found)
    raise InputError(
        f"{printable(root)}: no data set; expected <category>/train/good (MVTec AD, MPDD), <category>/train/ok (BTAD), "
        f"split_csv/1cls.csv (VisA), or good images ({_TYPES}) in the folder itself or in good/."
    )


def find_categories(root: Path) -> dict[str, tuple[str, Path]]:
    """The layout and the folder of every category under the folder `root`, by name, sorted; empty if there is none."""
    if (root / "split_csv" / "1cls.csv").is_file():
        return {name: ("visa", root) for name in sorted({row["object"] for _, row in _visa_rows(root)})}
    own_name = root.resolve().name
    if layout := _layout(root):
        return {own_name: (layout, root)}
    entries = _entries(root)
    if found := {path.name: (_layout(path), path) for path in entries if _layout(path)}:
        return found
    if (root / "good").is_dir() or any(path.suffix.lower() in SUFFIXES for path in entries):
        return {own_name: ("folder", root)}
    return {}


def read_category(root: Path, name: str) -> Category:
    """Find the images of one category by their names alone; no image is opened.

    `root` holds all categories, or is itself the folder of one. Training images are sorted by name, test images by kind
    and name. Raises InputError for an unknown category, an unsupported or misplaced file, no training image, or masks
    that do not pair with the images.
    """
    names = list_categories(root)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(
            f"{printable(root)}: no category {name!r}{hint}; choose one of {', '.join(map(printable, names))}."
        )
    layout, folder = find_categories(Path(root))[name]
    train, test = _read_visa(folder, name) if layout == "visa" else _read_folders(folder, layout)
    if not train:
        raise InputError(f"{printable(folder)}: no training image of {name!r}; add good images ({_TYPES}).")
    bare = [image.path for image in test if image.is_anomalous and image.mask is None]
    if bare and any(image.mask for image in test):
        raise InputError(f"{printable(bare[0])}: has no mask, while others have; add its mask, or remove all masks.")
    return Category(name, layout, folder, train, test)


def _layout(folder: Path) -> str | None:
    if (folder / "train" / "good").is_dir():
        return "mvtec"
    return "btad" if (folder / "train" / "ok").is_dir() else None


def _entries(folder: Path) -> list[Path]:
    """What the folder holds, hidden and system entries left out, sorted by name."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot be listed ({error.strerror}); check its permissions.") from None
    return [path for path in entries if not path.name.startswith((".", "__"))]


def _images(folder: Path, subfolders: Iterable[str] = ()) -> tuple[Path, ...]:
    """The images in `folder`, sorted by name. InputError for all else but side files and these subfolders."""
    found = []
    for path in _entries(folder):
        suffix, shown = path.suffix.lower(), printable(path)
        if path.is_dir():
            if path.name not in subfolders:
                raise InputError(f"{shown}: a folder among images; move its images up or the folder elsewhere.")
        elif suffix in SUFFIXES:
            found.append(path)
        elif suffix not in SIDE_FILES:
            raise InputError(f"{shown}: an unsupported type of file; convert it to {_TYPES} or remove it.")
    return tuple(found)


def _images_by_kind(folder: Path) -> _ByKind:
    """The images of each subfolder by its name, "ok" read as "good"; empty where there is no such folder."""
    by_kind: _ByKind = {}
    subfolders = [path for path in _entries(folder) if path.is_dir()] if folder.is_dir() else []
    if folder.is_dir() and (loose := _images(folder, [path.name for path in subfolders])):
        places = "test/good and test/<kind>" if folder.name == "test" else f"{folder.name}/<kind>"
        raise InputError(f"{printable(loose[0])}: lies directly in {folder.name}/; sort such files in {places}.")
    for path in subfolders:
        kind = "good" if path.name in ("good", "ok") else path.name
        by_kind[kind] = by_kind.get(kind, ()) + _images(path)
    return by_kind


def _read_folders(folder: Path, layout: str) -> tuple[tuple[Path, ...], tuple[TestImage, ...]]:
    masks = folder / "ground_truth"
    if layout == "folder":
        train = _images(folder, ("good", "test", "ground_truth", "masks"))
        if (folder / "good").is_dir():
            if train:
                raise InputError(f"{printable(train[0])}: lies beside good/; move it into good/ or remove it.")
            train = _images(folder / "good")
        if (folder / "masks").is_dir():
            if masks.is_dir():
                raise InputError(f"{printable(folder)}: has both ground_truth/ and masks/; keep one of them.")
            masks = folder / "masks"
    else:
        train = _images(folder / "train" / ("good" if layout == "mvtec" else "ok"))
    return train, _pair_masks(_images_by_kind(folder / "test"), _images_by_kind(masks))


def _pair_masks(tests: _ByKind, masks: _ByKind) -> tuple[TestImage, ...]:
    """Give every test image the mask of its kind with its stem, or with its stem and "_mask"."""
    by_stem: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for kind, paths in tests.items():
        for path in paths:
            by_stem[kind, path.stem].append(path)
    of_image: dict[Path, Path] = {}
    for kind, mask in ((kind, mask) for kind, paths in masks.items() for mask in paths):
        shown = f"{printable(mask)}:"
        images = [path for stem in {mask.stem, mask.stem.removesuffix("_mask")} for path in by_stem[kind, stem]]
        if not images:
            raise InputError(f"{shown} a mask without an image in test/{printable(kind)}; add the image or remove it.")
        if kind == "good":
            raise InputError(f"{shown} a mask of a good image; remove it or move the image to test/<kind>.")
        if len(images) > 1 or images[0] in of_image:
            raise InputError(f"{shown} several images or masks {images[0].stem!r}; rename or remove one.")
        of_image[images[0]] = mask
    return tuple(TestImage(path, kind, of_image.get(path)) for kind in sorted(tests) for path in tests[kind])


# ---- VisA's table ----


def _visa_rows(root: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of VisA's split table, each with the place to name in a message."""
    table = root / "split_csv" / "1cls.csv"
    shown = printable(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = reader.fieldnames or ()  # read here: an empty file has none, and is closed below
            rows = [(f"{shown}, line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{shown}: not a readable table ({error}); restore VisA's own file.") from None
    for column in _VISA_COLUMNS:
        if column not in header:
            raise InputError(f"{shown}: lacks the column {column!r}; restore the header {','.join(_VISA_COLUMNS)}.")
    for place, row in rows:
        if not re.fullmatch(r"\w[\w. -]*", row["object"]):  # it names folders of results as well
            raise InputError(f"{place}: {_quoted(row['object'])} is no name of a category; restore VisA's own file.")
    return rows


def _quoted(cell: str) -> str:
    return repr(cell if len(cell) <= 100 else f"{cell[:100]} ...")


def _visa_file(root: Path, place: str, cell: str) -> Path:
    """The image or mask that a cell of the table names. It must lie below `root`: a table may come from anywhere."""
    path = root / cell
    if path.suffix.lower() not in SUFFIXES or not os.path.isfile(path):  # a name may be absurd
        raise InputError(f"{place}: {_quoted(cell)} is missing or not {_TYPES}; restore it or edit the line.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{place}: {_quoted(cell)} lies outside the data folder; move it there and edit the line.")
    return path


def _read_visa(root: Path, name: str) -> tuple[tuple[Path, ...], tuple[TestImage, ...]]:
    train: list[Path] = []
    test: list[TestImage] = []
    for place, row in _visa_rows(root):
        if row["object"] != name:
            continue
        path = _visa_file(root, place, row["image"])
        mask = _visa_file(root, place, row["mask"]) if row["mask"] else None
        match row["split"], row["label"]:
            case _, "normal" if mask is not None:
                image = _quoted(row["image"])
                raise InputError(f"{place}: {image} is normal, with a mask; remove the mask or edit the label.")
            case "train", "normal":
                train.append(path)
            case "test", ("normal" | "anomaly") as label:
                test.append(TestImage(path, "good" if label == "normal" else label, mask))
            case split, label:
                known = "train with normal, or test with normal or anomaly"
                raise InputError(f"{place}: split {_quoted(split)} with label {_quoted(label)}; correct it to {known}.")
    return tuple(sorted(train)), tuple(sorted(test, key=lambda image: (image.kind, image.path)))


# ---- content ----


def check_category(category: Category) -> list[str]:
    """Decode every image and mask of the category; a sentence for each image that is there more than once.

    Two files with the same bytes are one image: a test image that was trained on is a leak, and one that is counted
    twice makes an interval too narrow. Raises InputError for the first file that is damaged or does not fit: a mask
    must have its image's size and mark at least one pixel.
    """
    images = [("training", path, None) for path in category.train]
    images += [("test", image.path, image.mask) for image in category.test]
    in_threads(_check_image, images)
    said, first_seen = [], {}
    for image in images:
        role, path, _ = image
        first = first_seen.setdefault(content_hash([path]), image)
        if first is not image:
            same = f"listed before as a {first[0]} image"
            same = same if first[1] == path else f"byte for byte the {first[0]} image {printable(first[1])}"
            said.append(f"{printable(path)}: a {role} image that is {same}; remove one of the two.")
    return said


def _check_image(image: tuple[str, Path, Path | None]) -> None:
    _, path, mask_path = image
    height, width = image_size(path)
    if mask_path is None:
        return
    mask = mask_pixels(mask_path)
    if mask.shape != (height, width):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels for an image of {width} x {height}"
        raise InputError(f"{printable(mask_path)}: a mask of {sizes}; export it at the size of the image.")
    if not mask.any():
        raise InputError(f"{printable(mask_path)}: marks no pixel; redraw it or move the image to test/good.")


def category_hash(category: Category) -> str:
    """SHA-256 over a category's training images, test images and masks, and over what each of them is."""
    masks = [image.mask for image in category.test if image.mask]
    content = content_hash([*category.train, *(image.path for image in category.test), *masks])
    roles = [len(category.train), [[image.kind, image.path.name, image.mask is not None] for image in category.test]]
    return hashlib.sha256(f"{content} {json.dumps(roles)}".encode()).hexdigest()
