"""images.py: exact pixels of every kind of file, and one sentence for each that cannot be read."""

import io

import numpy as np
import pytest
from PIL import Image

from irf_lib.data.images import image_size, load_image, load_images, load_mask, load_picture

SIDE = 32
RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
DEEP = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)  # 10 bits in the dark
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[4:10, 20:30] = 1


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def planes(pixels: np.ndarray) -> np.ndarray:
    """The expected result of `load_image` for uint8 pixels (H, W) or (H, W, 3), unresized."""
    return np.stack([pixels] * 3) / np.float32(255) if pixels.ndim == 2 else pixels.transpose(2, 0, 1) / np.float32(255)


FLAT = RGB * 0 + RGB[0, 0]  # which JPEG keeps
TWO = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
TURNED = Image.Exif()
TURNED[274] = 6  # the camera was held upright
PALETTE = np.asarray(Image.fromarray(RGB).convert("P").convert("RGB"))
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
KINDS = {  # name: (bytes, expected, largest error)
    "rgb.png": (encoded(RGB, "PNG"), planes(RGB), 0),
    "grey.bmp": (encoded(GREY, "BMP"), planes(GREY), 0),
    "palette.png": (encoded(RGB, "PNG", "P", transparency=0), planes(PALETTE), 0),
    "alpha.png": (encoded(RGB, "PNG", "RGBA"), planes(RGB), 0),
    "grey_alpha.png": (encoded(RGB, "PNG", "LA"), planes(GREY), 0),
    "bit.png": (encoded(MASK > 0, "PNG"), planes(MASK * np.uint8(255)), 0),
    "turned.png": (encoded(RGB, "PNG", exif=TURNED), planes(np.rot90(RGB, -1)), 0),
    "deep.png": (encoded(DEEP, "PNG"), np.stack([DEEP] * 3) / 65535, 1e-7),
    "deep.tif": (encoded(DEEP, "TIFF", compression="tiff_lzw"), np.stack([DEEP] * 3) / 65535, 1e-7),
    "rgb.tif": (encoded(RGB, "TIFF", compression="tiff_deflate"), planes(RGB), 0),
    "grey.jpg": (encoded(DEEP.clip(0, 200).astype(np.uint8), "JPEG", quality=100), planes(DEEP.clip(0, 200)), 0.05),
    "cmyk.jpg": (encoded(FLAT, "JPEG", "CMYK", quality=100), planes(FLAT), 0.02),
    "phone.jpg": (encoded(FLAT, "MPO", save_all=True, append_images=[Image.fromarray(RGB)]), planes(FLAT), 0.02),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("error")
def test_the_pixels_of_each_kind_of_file(tmp_path, name):
    data, expected, error = KINDS[name]
    (tmp_path / name).write_bytes(data)
    image = load_image(tmp_path / name, SIDE)
    assert image.dtype == np.float32 and np.abs(image - expected).max() <= error
    assert image_size(tmp_path / name) == (SIDE, SIDE) and load_picture(tmp_path / name, 8).shape == (8, 8, 3)


def test_resizing_is_antialiased_and_square(tmp_path):
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert np.abs(load_image(tmp_path / "a.png", 16) - 0.5).max() < 0.05  # nearest would give 0 or 1


def test_load_images_keeps_the_order_and_names_the_first_that_fails(tmp_path, refused):
    paths = [tmp_path / f"{n}.png" for n in range(9)][::-1]
    for path in paths:
        Image.fromarray(np.full((8, 8), int(path.stem), np.uint8)).save(path)
    assert np.allclose(load_images(iter(paths), 8)[:, 0, 0, 0] * 255, np.arange(9)[::-1])
    assert load_images([], 8).shape == (0, 3, 8, 8)
    paths[3].write_bytes(b""), paths[7].write_bytes(b"")
    refused(paths[3].name, load_images, paths, 8)


def test_masks_are_whatever_is_not_black(tmp_path, refused):
    assert load_mask(None, 16).shape == (16, 16) and not load_mask(None).any()
    for name, mask in (("a.png", MASK), ("b.png", MASK > 0), ("c.tif", MASK.astype(np.uint16)), ("d.bmp", MASK * 255)):
        Image.fromarray(mask).save(tmp_path / name)
        assert np.array_equal(load_mask(tmp_path / name, SIDE), MASK > 0)
        assert np.array_equal(load_mask(tmp_path / name, 16), MASK[1::2, 1::2] > 0)  # nearest: no new values
    Image.fromarray(MASK).save(tmp_path / "m.jpg")
    refused("m.jpg export the mask as PNG", load_mask, tmp_path / "m.jpg")


PNG = encoded(RGB, "PNG")
REFUSED = {
    "pages.tif": (encoded(RGB, "TIFF", **TWO), "holds 2 pictures"),
    "float.tif": (encoded(DEEP.astype(np.float32), "TIFF"), "32-bit pixels"),
    "deep.tif": (encoded(DEEP.astype(np.int32), "TIFF"), "32-bit pixels"),
    "gif.png": (encoded(RGB, "GIF"), "not a readable PNG, JPEG, BMP or TIFF file"),
    "text.png": (b"hello", "not a readable PNG, JPEG, BMP or TIFF file"),
    "empty.png": (b"", "empty (0 bytes)"),
    "dot.png": (encoded(RGB[:1, :1], "PNG"), "too small to hold a part"),
    "flipped.png": (PNG[:-20] + bytes([PNG[-20] ^ 1]) + PNG[-19:], "not a readable"),  # the checksum of the pixels
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_one_sentence(tmp_path, name, refused):
    (tmp_path / name).write_bytes(REFUSED[name][0])
    refused(f"{name}: {REFUSED[name][1]}", load_image, tmp_path / name)


@pytest.mark.parametrize("name", ["folder.png", "gone.png"])
def test_what_is_no_file_is_one_sentence(tmp_path, name, refused):
    (tmp_path / "folder.png").mkdir()
    refused(f"{name}: cannot be read restore", load_image, tmp_path / name)
