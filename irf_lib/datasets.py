"""What images are: folders of photographs read as training images, labelled test images and masks.

Four layouts are understood, told apart by what a folder holds:

    mvtec   <category>/train/good, test/<kind>, ground_truth/<kind>/<stem>_mask.png (MVTec AD, MPDD)
    btad    <category>/train/ok, test/ok, test/ko, ground_truth/ko/<stem>.png (BTAD; "ok" becomes "good")
    visa    split_csv/1cls.csv with the columns object, split, label, image, mask (VisA)
    folder  good images in the folder itself or in good/; optionally test/good, test/<kind>, and masks of
            the same stem, with or without "_mask", in ground_truth/<kind> or masks/<kind>

`read_category` looks at names only; `check_category` decodes every file. Whatever is wrong with the input is
one DataError that names the file and the remedy: a file skipped in silence would change a metric.

Pixels: 8 or 16 bit, or float in [0, 1]; grey, RGB, palette, CMYK; alpha is dropped. 16-bit RGB keeps its
depth from TIFF and comes at 8 bits from PNG, because Pillow has no deeper RGB mode. A shortened file is
always noticed, and any damage to a PNG (it has checksums); a flipped bit inside a JPEG or BMP cannot be.
"""

import csv
import difflib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from .storage import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # Pillow's own limit, beyond which it suspects a decompression bomb
_TYPES = "PNG, JPEG, BMP or TIFF"
SIDE_FILES = {"", ".txt", ".md", ".json", ".csv", ".db", ".ini", ".xml", ".yaml", ".yml", ".html", ".pdf"}
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_WORKERS = min(4, os.cpu_count() or 1)  # Pillow releases the GIL while it decodes and resizes
_ByKind = dict[str, tuple[Path, ...]]  # the files of one split by their kind


class DataError(ValueError):
    """Wrong input data; the message names the file or folder and says what to do about it."""


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
    """The names of the categories under `root`, sorted. DataError if there is none."""
    return tuple(_find_categories(Path(root)))


def read_category(root: Path, name: str) -> Category:
    """Find the images of one category by their names alone; no image is opened.

    `root` holds all categories, or is itself the folder of one. Training images are sorted by name, test
    images by kind and name. DataError for an unknown category, an unsupported or misplaced file, no training
    image, or masks that do not pair with the images.
    """
    found = _find_categories(Path(root))
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(f"{root}: no category {name!r}{hint}; choose one of {', '.join(found)}.")
    layout, folder = found[name]
    if layout == "visa":
        train, test = _read_visa(folder, name)
    else:
        train, test = _read_folders(folder, layout)
    if not train:
        raise DataError(f"{folder}: no training image of {name!r}; add good images ({_TYPES}).")
    bare = [image.path for image in test if image.is_anomalous and image.mask is None]
    if bare and any(image.mask for image in test):
        raise DataError(f"{bare[0]}: has no mask, while others have; add its mask, or remove all masks.")
    return Category(name, layout, folder, train, test)


def _find_categories(root: Path) -> dict[str, tuple[str, Path]]:
    """The layout and the folder of every category under `root`, by name, sorted."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; check the path to the data set.")
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
    raise DataError(
        f"{root}: no data set; expected <category>/train/good (MVTec AD, MPDD), <category>/train/ok (BTAD), "
        f"split_csv/1cls.csv (VisA), or good images ({_TYPES}) in the folder itself or in good/."
    )


def _layout(folder: Path) -> str | None:
    if (folder / "train" / "good").is_dir():
        return "mvtec"
    return "btad" if (folder / "train" / "ok").is_dir() else None


def _entries(folder: Path) -> list[Path]:
    """What the folder holds, hidden and system entries left out, sorted by name."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as exc:
        raise DataError(f"{folder}: cannot be listed ({exc.strerror}); check its permissions.") from exc
    return [path for path in entries if not path.name.startswith((".", "__"))]


def _images(folder: Path, subfolders: Iterable[str] = ()) -> tuple[Path, ...]:
    """The images in `folder`, sorted by name. DataError for all else but side files and these subfolders."""
    found = []
    for path in _entries(folder):
        suffix = path.suffix.lower()
        if path.is_dir():
            if path.name not in subfolders:
                raise DataError(f"{path}: a folder among images; move its images up or the folder elsewhere.")
        elif suffix in SUFFIXES:
            found.append(path)
        elif suffix not in SIDE_FILES:
            raise DataError(f"{path}: unsupported file type {suffix}; convert it to {_TYPES} or remove it.")
    return tuple(found)


def _images_by_kind(folder: Path) -> _ByKind:
    """The images of each subfolder by its name, "ok" read as "good"; empty where there is no such folder."""
    by_kind: _ByKind = {}
    if not folder.is_dir():
        return by_kind
    subfolders = [path for path in _entries(folder) if path.is_dir()]
    if loose := _images(folder, [path.name for path in subfolders]):
        places = "test/good and test/<kind>" if folder.name == "test" else f"{folder.name}/<kind>"
        raise DataError(f"{loose[0]}: lies directly in {folder.name}/; sort such files in {places}.")
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
                raise DataError(f"{train[0]}: lies beside good/; move it into good/ or remove it.")
            train = _images(folder / "good")
        if (folder / "masks").is_dir():
            if masks.is_dir():
                raise DataError(f"{folder}: has both ground_truth/ and masks/; keep one of them.")
            masks = folder / "masks"
    else:
        train = _images(folder / "train" / ("good" if layout == "mvtec" else "ok"))
    return train, _pair_masks(_images_by_kind(folder / "test"), _images_by_kind(masks))


def _pair_masks(tests: _ByKind, masks: _ByKind) -> tuple[TestImage, ...]:
    """Give every test image the mask of its kind with its stem, or with its stem and "_mask"."""
    by_stem: dict[tuple[str, str], list[Path]] = {}
    for kind, paths in tests.items():
        for path in paths:
            by_stem.setdefault((kind, path.stem), []).append(path)
    of_image: dict[Path, Path] = {}
    for kind, mask in ((kind, mask) for kind, paths in masks.items() for mask in paths):
        stems = {mask.stem, mask.stem.removesuffix("_mask")}
        images = [path for stem in stems for path in by_stem.get((kind, stem), ())]
        if not images:
            raise DataError(f"{mask}: a mask without an image in test/{kind}; add the image or remove it.")
        if kind == "good":
            raise DataError(f"{mask}: a mask of a good image; remove it or move the image to test/<kind>.")
        if len(images) > 1 or images[0] in of_image:
            raise DataError(f"{mask}: several images or masks {images[0].stem!r}; rename or remove one.")
        of_image[images[0]] = mask
    return tuple(TestImage(path, kind, of_image.get(path)) for kind in sorted(tests) for path in tests[kind])


def _visa_rows(root: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of VisA's split table, each with the place to name in a message."""
    table = root / "split_csv" / "1cls.csv"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = reader.fieldnames or ()  # read here: an empty file has none, and is closed below
            rows = [(f"{table}, line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeError, csv.Error) as exc:
        raise DataError(f"{table}: not a readable table ({exc}); restore VisA's own file.") from exc
    for column in _VISA_COLUMNS:
        if column not in header:
            raise DataError(f"{table}: lacks the column {column!r}; restore the header {','.join(_VISA_COLUMNS)}.")
    for place, row in rows:
        if not re.fullmatch(r"\w[\w. -]*", row["object"]):  # it names folders of results as well
            raise DataError(f"{place}: {_quoted(row['object'])} is no name of a category; restore VisA's own file.")
    return rows


def _quoted(cell: str) -> str:
    return repr(cell if len(cell) <= 100 else f"{cell[:100]} ...")


def _read_visa(root: Path, name: str) -> tuple[tuple[Path, ...], tuple[TestImage, ...]]:
    train: list[Path] = []
    test: list[TestImage] = []
    for place, row in _visa_rows(root):
        if row["object"] != name:
            continue
        path, mask = root / row["image"], root / row["mask"] if row["mask"] else None
        for cell, file in ((row["image"], path), (row["mask"], mask)):
            if file is None:
                continue
            if file.suffix.lower() not in SUFFIXES or not os.path.isfile(file):  # a name may be absurd
                raise DataError(f"{place}: {_quoted(cell)} is missing or not {_TYPES}; restore it or edit the line.")
        match row["split"], row["label"]:
            case _, "normal" if mask is not None:
                raise DataError(
                    f"{place}: {_quoted(row['image'])} is normal, with a mask; remove the mask or edit the label."
                )
            case "train", "normal":
                train.append(path)
            case "test", ("normal" | "anomaly") as label:
                test.append(TestImage(path, "good" if label == "normal" else label, mask))
            case split, label:
                known = "train with normal, or test with normal or anomaly"
                raise DataError(f"{place}: split {_quoted(split)} with label {_quoted(label)}; correct it to {known}.")
    return tuple(sorted(train)), tuple(sorted(test, key=lambda image: (image.kind, image.path)))


# ---- pixels ----


def check_category(category: Category) -> None:
    """Decode every image and mask of the category. DataError for the first that is damaged or does not fit.

    A mask must have its image's size and mark at least one pixel.
    """
    pairs = [(path, None) for path in category.train] + [(image.path, image.mask) for image in category.test]
    in_threads(lambda pair: _check_pair(*pair), pairs)


def in_threads(function: Callable, arguments: Iterable) -> None:
    """Call `function` for each argument; the first exception in their order is raised."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        for _ in pool.map(function, arguments):
            pass


def _check_pair(path: Path, mask_path: Path | None) -> None:
    height, width = _decode(path).shape[:2]
    if mask_path is None:
        return
    mask = _decode_mask(mask_path)
    if mask.shape != (height, width):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels for an image of {width} x {height}"
        raise DataError(f"{mask_path}: a mask of {sizes}; export it at the size of the image.")
    if not mask.any():
        raise DataError(f"{mask_path}: marks no pixel; redraw it or move the image to test/good.")


def load_image(path: Path, size: int = 256) -> np.ndarray:
    """An image as float32 (3, size, size) in [0, 1]; grey is repeated, the aspect ratio is not kept.

    Antialiased bilinear, computed in float for every depth, so the depth of the file does not matter.
    DataError if it cannot be decoded.
    """
    pixels = _decode(Path(path))  # (H, W, 1 or 3)
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
    channels = [Image.fromarray(np.ascontiguousarray(c, np.float32)) for c in np.moveaxis(pixels, 2, 0)]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
    image = np.clip(np.stack(resized) / np.float32(white), 0, 1)  # rounding leaves [0, 1] by an ulp
    return np.repeat(image, 3 // len(image), axis=0)


def load_picture(path: Path, longest: int = 1024) -> np.ndarray:
    """An image to look at: uint8 (H, W, 3) in its own aspect ratio, its longer side at most ``longest`` pixels.

    DataError if it cannot be decoded.
    """
    pixels = _decode(Path(path))
    if pixels.dtype != np.uint8:
        white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
        pixels = (pixels * (255 / white)).round().astype(np.uint8)
    picture = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], axis=2))
    picture.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def load_images(paths: Iterable[Path], size: int = 256) -> np.ndarray:
    """The images of `load_image` in the order of `paths`, float32 (N, 3, size, size)."""
    paths = tuple(paths)
    images = np.empty((len(paths), 3, size, size), np.float32)

    def load(n: int) -> None:
        images[n] = load_image(paths[n], size)

    in_threads(load, range(len(paths)))
    return images


def load_mask(path: Path | None, size: int = 256) -> np.ndarray:
    """A mask as bool (size, size), nearest neighbour; all False for None. Whatever is not black is anomalous.

    DataError if it cannot be decoded.
    """
    if path is None:
        return np.zeros((size, size), bool)
    mask = Image.fromarray(_decode_mask(Path(path)).astype(np.uint8))
    return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)) > 0


def _decode_mask(path: Path) -> np.ndarray:
    """A mask at its own size, bool (H, W)."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path}: JPEG blurs a mask, so that black is no longer 0; export the mask as PNG.")
    return (_decode(path) > 0).any(axis=2)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would keep us waiting for ever
            raise DataError(f"{path}: a folder or device, not a file; move it elsewhere.")
        return path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror}); restore it or its permissions.") from exc


def _decode(path: Path) -> np.ndarray:
    """Pixels (H, W, 1 or 3), upright (EXIF) and without alpha: uint8, uint16, or float32 in [0, 1]."""
    data = _read_bytes(path)
    if not data:
        raise DataError(f"{path}: empty (0 bytes); copy the file again or remove it.")
    try:
        is_tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        return _decode_tiff(path, data) if is_tiff else _decode_with_pillow(path, data)
    except DataError:
        raise
    except Exception as exc:  # on damaged bytes decoders raise almost anything, even SyntaxError
        reason = re.sub(r" ?<_io\.BytesIO[^>]*>", "", one_line(exc))  # an address that means nothing to anybody
        raise DataError(f"{path}: not a readable {_TYPES} file ({reason}); replace or remove it.") from exc


def _decode_with_pillow(path: Path, data: bytes) -> np.ndarray:
    formats = ("PNG", "JPEG", "BMP", "TIFF")  # by content: a GIF that is called .png is refused
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data), formats=formats) as file:
            file.verify()  # the checksums, which decoding does not read to the end
    with Image.open(io.BytesIO(data), formats=formats) as file:
        _refuse_huge(path, *file.size)
        if file.format == "PNG" and getattr(file, "n_frames", 1) > 1:
            raise DataError(f"{path}: an animation of {file.n_frames} frames; save each as a file of its own.")
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]  # convert("RGB") would clip at 255
    if image.mode == "F":
        return _unit_float(path, np.asarray(image))[..., None]
    if image.mode == "I":
        raise DataError(f"{path}: 32-bit integers have no known white; save it with 8 or 16 bits.")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about a palette with alpha
    return np.asarray(image.convert("RGB"))


def _decode_tiff(path: Path, data: bytes) -> np.ndarray:
    """Deep pixels by tifffile (Pillow cuts 16-bit RGB to 8 bits, refuses float RGB), all else by Pillow."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if len(tiff.pages) > 1:
            raise DataError(f"{path}: holds {len(tiff.pages)} pages; save each as a file of its own.")
        page = tiff.pages[0]
        _refuse_huge(path, page.imagewidth, page.imagelength * page.imagedepth * -(-page.samplesperpixel // 4))
        kind, bits = getattr(page.dtype, "kind", None), page.bitspersample
        white_is_zero = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        is_plain = white_is_zero or page.photometric in (
            tifffile.PHOTOMETRIC.MINISBLACK,
            tifffile.PHOTOMETRIC.RGB,
        )
        if kind in ("b", "u") and bits in (1, 2, 4, 8) or not is_plain:
            return _decode_with_pillow(path, data)
        if not (kind == "f" or kind == "u" and bits == 16):
            raise DataError(f"{path}: {bits}-bit {page.dtype} has no known white; save it with 8 or 16 bits.")
        try:
            pixels = page.asarray()
        except ValueError as exc:
            if "imagecodecs" not in str(exc) or white_is_zero:  # Pillow does not invert 16 bits
                raise
            return _decode_with_pillow(path, data)  # a compression that tifffile lacks: RGB comes at 8 bits
    pixels = pixels[..., None] if pixels.ndim == 2 else np.moveaxis(pixels, page.axes.index("S"), 2)
    pixels = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    if kind == "f":
        pixels = _unit_float(path, pixels)
    if white_is_zero:
        pixels = (np.iinfo(pixels.dtype).max if kind == "u" else 1) - pixels
    turn = page.tags.valueof("Orientation", 1)  # 5 to 8 store columns as rows; then which sides come first
    pixels = pixels.swapaxes(0, 1) if turn >= 5 else pixels
    pixels = pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels
    return pixels[::-1] if turn in (3, 4, 7, 8) else pixels


def _unit_float(path: Path, pixels: np.ndarray) -> np.ndarray:
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails as well
        raise DataError(f"{path}: float pixels outside [0, 1]; scale them or save it with 8 or 16 bits.")
    return pixels.astype(np.float32)


def _refuse_huge(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width} x {height} exceeds {MAX_PIXELS} pixels; scale the image down.")


def content_hash(paths: Iterable[Path]) -> str:
    """sha256 (hex) over the sha256 of each file's bytes, in this order and whatever the files are called."""
    digests = (hashlib.sha256(_read_bytes(Path(path))).digest() for path in paths)
    return hashlib.sha256(b"".join(digests)).hexdigest()
