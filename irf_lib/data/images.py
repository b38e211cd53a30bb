"""Image files as arrays: what a photograph is once it is decoded, whatever its format and depth.

PNG, JPEG, BMP and TIFF by Pillow, 8 or 16 bit; grey, RGB, palette or CMYK. Alpha is dropped, EXIF orientation applied.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..files import InputError, one_line, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SIDE_FILES = {"", ".txt", ".md", ".json", ".csv", ".db", ".ini", ".xml", ".yaml", ".yml", ".html", ".pdf"}
FORMATS, TYPES = ("PNG", "JPEG", "BMP", "TIFF"), "PNG, JPEG, BMP or TIFF"
Images = Sequence[Path] | np.ndarray


def load_image(path: Path, size: int = 256) -> np.ndarray:
    """An image as float32 (3, size, size) in [0, 1]: grey repeated, the aspect ratio not kept, antialiased bilinear in
    float for every depth. Raises InputError if it cannot be decoded."""
    pixels, white = _decode(path)  # (H, W, 1 or 3)
    channels = [Image.fromarray(np.ascontiguousarray(c, np.float32)) for c in np.moveaxis(pixels, 2, 0)]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
    image = np.clip(np.stack(resized) / np.float32(white), 0, 1)  # rounding leaves [0, 1] by an ulp
    return np.repeat(image, 3 // len(image), axis=0)


def checked_images(images: Images) -> Images:
    """``images`` as a list of paths, or the array (N, 3, H, W) in [0, 1] that they are. InputError for all else."""
    if not isinstance(images, np.ndarray):
        if isinstance(images, (str, bytes, Path)) or not all(isinstance(one, (str, Path)) for one in images):
            raise InputError("images must be a list of paths, or a NumPy array (N, 3, H, W); list the files")
        return [Path(one) for one in images]
    fits = images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 32 and images.dtype.kind == "f"
    if not fits or (images.size and not (images.min() >= 0 and images.max() <= 1)):  # NaN fails as well
        said = f"images must be an array (N, 3, H, W) of floats in [0, 1], got {images.dtype} of shape {images.shape}"
        raise InputError(f"{said}; channels before height and width (at least 32 x 32); divide 8-bit pixels by 255")
    return images


def load_images(paths: Iterable[Path], size: int = 256) -> np.ndarray:
    """The images of ``load_image`` in the order of ``paths``, float32 (N, 3, size, size)."""
    images = in_threads(lambda path: load_image(path, size), paths)
    return np.stack(images) if images else np.empty((0, 3, size, size), np.float32)


def load_picture(path: Path, longest: int = 1024) -> np.ndarray:
    """An image to look at: uint8 (H, W, 3) in its own aspect ratio, its longer side at most ``longest`` pixels."""
    pixels, white = _decode(path)
    eight_bit = (pixels * (255 / white)).round().astype(np.uint8)
    picture = Image.fromarray(np.repeat(eight_bit, 3 // pixels.shape[2], axis=2))
    picture.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, after the whole file has been decoded."""
    return _decode(path)[0].shape[:2]


def load_mask(path: Path | None, size: int = 256) -> np.ndarray:
    """A mask as bool (size, size), nearest neighbour; all False for None. Whatever is not black is anomalous."""
    if path is None:
        return np.zeros((size, size), bool)
    mask = Image.fromarray(mask_pixels(path).astype(np.uint8))
    return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)) > 0


def mask_pixels(path: Path) -> np.ndarray:
    """A mask at its own size, bool (H, W). Raises InputError for a JPEG, which blurs a mask."""
    if Path(path).suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(f"{printable(path)}: JPEG blurs a mask, so that black is no longer 0; export the mask as PNG.")
    return (_decode(path)[0] > 0).any(axis=2)


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the SHA-256 of each file's bytes, in this order and whatever the files are called."""
    digests = (hashlib.sha256(_read_bytes(path)).digest() for path in paths)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def in_threads(function: Callable, arguments: Iterable) -> list:
    """What ``function`` returns for each argument, in their order."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL while it decodes
        return list(pool.map(function, arguments))


def _read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise InputError(f"{printable(path)}: {why}; restore it or its permissions.") from None


def _decode(path: Path) -> tuple[np.ndarray, float]:
    """Pixels (H, W, 1 or 3), upright and without alpha, and the value that is white in them."""
    data, shown = _read_bytes(path), printable(path)
    if not data:
        raise InputError(f"{shown}: empty (0 bytes); copy the file again or remove it.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:  # by content, not by name
            file.verify()  # a PNG's checksums, which decoding does not read to the end
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            frames = 1 if file.format in ("JPEG", "MPO") else getattr(file, "n_frames", 1)  # a phone's has a preview
            image = ImageOps.exif_transpose(file)
    except Exception as error:  # on damaged bytes decoders raise almost anything, even SyntaxError
        reason = one_line(str(error).partition(" <_io")[0])  # an address that means nothing to anybody
        raise InputError(f"{shown}: not a readable {TYPES} file ({reason}); replace or remove it.") from None
    if frames > 1:
        raise InputError(f"{shown}: holds {frames} pictures; save each as a file of its own.")
    if min(image.size) < 2:
        raise InputError(f"{shown}: too small to hold a part; replace or remove it.")
    if image.mode in ("F", "I"):
        raise InputError(f"{shown}: 32-bit pixels; save it with 8 or 16 bits.")
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None], 65535.0  # convert("RGB") would clip at 255
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[..., None], 255.0
    image = image.convert("RGBA") if image.mode in ("P", "PA") else image  # straight to RGB, Pillow warns about alpha
    return np.asarray(image.convert("RGB")), 255.0
