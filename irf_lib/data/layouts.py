"""What images are: folders of photographs read as training images, labelled test images and masks.

Four layouts are understood, told apart by what a folder holds: mvtec, btad, visa, and folder for a plain one. They
are listed in data/README.md.

`read_category` looks at names only; `check_category` decodes every file. What is wrong is refused: a file that is
skipped in silence would change a metric."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import InputError, one_line, printable
from .images import SIDE_FILES, SUFFIXES, TYPES, content_hash, image_size, in_threads, mask_pixels

GOOD = {"mvtec": "train/good", "btad": "train/ok", "folder": "good"}  # where a layout has its training images
VISA = "split_csv/1cls.csv"


@dataclass(frozen=True)
class TestImage:
    path: Path
    kind: str  # "good" or the defect's name
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
    if (root / VISA).is_file():
        return {name: ("visa", root) for name in sorted({row.object for row in _visa_rows(root)})}
    entries = _entries(root)
    known = [(folder, layout) for layout in ("mvtec", "btad") for folder in (root, *entries)
             if (folder / GOOD[layout]).is_dir()]  # fmt: skip
    if not known and any(path.name == "good" or path.suffix.lower() in SUFFIXES for path in entries):
        known = [(root, "folder")]
    one = [(folder, layout) for folder, layout in known if folder == root][:1]
    return {folder.resolve().name: (layout, folder) for folder, layout in one or sorted(known)}


def read_category(root: Path, name: str) -> Category:
    """The images of one category, training images sorted by name, test images by kind and name. InputError for an
    unknown category, an unsupported or misplaced file, no training image, or masks that do not pair with images."""
    names = list_categories(root)
    if name not in names:
        raise InputError(f"{printable(root)}: no category {name!r}; choose one of {', '.join(map(printable, names))}.")
    layout, folder = find_categories(Path(root))[name]
    train, test = _read_visa(folder, name) if layout == "visa" else _read_folders(folder, layout)
    if not train:
        raise InputError(f"{printable(folder)}: no training image of {name!r}; add good images ({TYPES}).")
    bare = [image.path for image in test if image.is_anomalous and image.mask is None]
    if bare and any(image.mask for image in test):
        raise InputError(f"{printable(bare[0])}: has no mask, while others have; add its mask, or remove all masks.")
    return Category(name, layout, folder, tuple(train), tuple(test))


def _entries(folder: Path) -> list[Path]:
    """What the folder holds, hidden and system entries left out, sorted by name; nothing where there is no folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in entries if not path.name.startswith((".", "__")))


def _images(folder: Path, subfolders: Iterable[str] = ()) -> list[Path]:
    """The images in `folder`, sorted by name. InputError for all else but side files and these subfolders."""
    entries = [path for path in _entries(folder) if path.name not in subfolders]
    for path in entries:
        if path.is_dir():
            raise InputError(f"{printable(path)}: a folder among images; move its images up or the folder elsewhere.")
        if path.suffix.lower() not in (*SUFFIXES, *SIDE_FILES):
            raise InputError(f"{printable(path)}: an unsupported type of file; convert it to {TYPES} or remove it.")
    return [path for path in entries if path.suffix.lower() in SUFFIXES]


def _images_by_kind(folder: Path) -> list[tuple[str, Path]]:
    """(kind, image) for the images of each subfolder, "ok" read as "good"; empty where there is no such folder."""
    kinds = [path for path in _entries(folder) if path.is_dir()]
    if loose := _images(folder, [path.name for path in kinds]):
        raise InputError(f"{printable(loose[0])}: of no kind; sort it into {folder.name}/<kind> (good is one as well).")
    return [("good" if kind.name == "ok" else kind.name, image) for kind in kinds for image in _images(kind)]


def _read_folders(folder: Path, layout: str) -> tuple[list[Path], list[TestImage]]:
    """The training and the test images; each of these with the mask of its kind and stem, with or without "_mask"."""
    good = _images(folder / GOOD[layout])
    loose = _images(folder, ("good", "test", "ground_truth", "masks")) if layout == "folder" else []
    if good and loose:
        raise InputError(f"{printable(loose[0])}: lies beside good/; move it into good/ or remove it.")
    test = sorted(_images_by_kind(folder / "test"))
    of_stem = {(kind, path.stem): path for kind, path in test if kind != "good"}
    masks: dict[Path, Path] = {}
    for kind, mask in _images_by_kind(folder / "ground_truth") + _images_by_kind(folder / "masks"):
        image = of_stem.get((kind, mask.stem)) or of_stem.get((kind, mask.stem.removesuffix("_mask")))
        if image is None or image in masks:
            raise InputError(f"{printable(mask)}: not the one mask of a defective image; add that or remove the mask.")
        masks[image] = mask
    return good or loose, [TestImage(path, kind, masks.get(path)) for kind, path in test]


def _visa_rows(root: Path) -> list[Any]:
    """The rows of VisA's split table, all texts, with their lines as `Index`. InputError if it is no such table."""
    import pandas as pd

    columns, shown = ["object", "split", "label", "image", "mask"], printable(root / VISA)
    try:
        table = pd.read_csv(root / VISA, usecols=columns, index_col=False, dtype=str, na_filter=False)
    except ValueError as error:
        raise InputError(f"{shown}: no table of {columns} ({one_line(error)}); restore VisA's own file.") from None
    if len(odd := table[~table["object"].str.fullmatch(r"\w[\w. -]*")]):  # it names folders of results as well
        raise InputError(f"{shown}: {odd['object'].iloc[0]!r} is no name of a category; restore VisA's own file.")
    table.index += 2
    return list(table.itertuples())


def _read_visa(root: Path, name: str) -> tuple[list[Path], list[TestImage]]:
    images: list[TestImage] = []
    kinds = {("train", "normal"): "train", ("test", "normal"): "good", ("test", "anomaly"): "anomaly"}
    for row in (row for row in _visa_rows(root) if row.object == name):
        place, kind = f"{printable(root / VISA)}, line {row.Index}", kinds.get((row.split, row.label))
        if kind is None or (row.mask and kind != "anomaly"):
            found = f"{row.split!r} with {row.label!r} and {'a' if row.mask else 'no'} mask"
            raise InputError(f"{place}: {found}; correct it to train or test with normal, or test with anomaly.")
        mask = _visa_file(root, place, row.mask) if row.mask else None
        images.append(TestImage(_visa_file(root, place, row.image), kind, mask))
    images.sort(key=lambda image: (image.kind, image.path))
    return [image.path for image in images if image.kind == "train"], [one for one in images if one.kind != "train"]


def _visa_file(root: Path, place: str, cell: str) -> Path:
    """The image or mask that a cell of the table names. It must lie below `root`: a table may come from anywhere."""
    path = root / cell
    found = path.suffix.lower() in SUFFIXES and path.is_file()
    if not found or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{place}: {cell!r} is missing, no image, or outside the data folder; restore it there.")
    return path


def check_category(category: Category) -> list[str]:
    """Decode every file; a sentence for each image whose bytes are there before: a leak if it is tested after training,
    an interval too narrow if it is counted twice. InputError for a damaged file or a mask that does not fit."""
    in_threads(image_size, category.train)
    in_threads(_check_test_image, category.test)
    said, seen = [], {}
    images = [("training", path) for path in category.train] + [("test", image.path) for image in category.test]
    for role, path in images:
        this = f"{role} image {printable(path)}"
        first = seen.setdefault(content_hash([path]), this)
        if first is not this:
            said.append(f"{printable(path)}: a {role} image that is byte for byte the {first}; remove one of the two.")
    return said


def _check_test_image(image: TestImage) -> None:
    height, width = image_size(image.path)
    mask = None if image.mask is None else mask_pixels(image.mask)
    if mask is not None and mask.shape != (height, width):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels for an image of {width} x {height}"
        raise InputError(f"{printable(image.mask)}: a mask of {sizes}; export it at the size of the image.")
    if mask is not None and not mask.any():
        raise InputError(f"{printable(image.mask)}: marks no pixel; redraw it or move the image to test/good.")


def category_hash(category: Category) -> str:
    """SHA-256 over a category's training images, test images and masks, and over what each of them is."""
    files = [*category.train, *(image.path for image in category.test)]
    content = content_hash(files + [image.mask for image in category.test if image.mask])
    roles = [len(category.train), [[image.kind, image.path.name, image.mask is not None] for image in category.test]]
    return hashlib.sha256(f"{content} {json.dumps(roles)}".encode()).hexdigest()
