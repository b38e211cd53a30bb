"""images.py: exact pixels of every kind of file, and one sentence for each that cannot be read."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from irf_lib.data import images
from irf_lib.data.images import content_hash, image_size, load_image, load_images, load_mask, load_picture
from irf_lib.files import InputError

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


PALETTE = np.asarray(Image.fromarray(RGB).convert("P").convert("RGB"))
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
KINDS = {  # name: (bytes, expected, largest error)
    "rgb.png": (encoded(RGB, "PNG"), planes(RGB), 0),
    "grey.bmp": (encoded(GREY, "BMP"), planes(GREY), 0),
    "palette.png": (encoded(RGB, "PNG", "P", transparency=0), planes(PALETTE), 0),
    "alpha.png": (encoded(RGB, "PNG", "RGBA"), planes(RGB), 0),
    "grey_alpha.png": (encoded(RGB, "PNG", "LA"), planes(GREY), 0),
    "bit.png": (encoded(MASK > 0, "PNG"), planes(MASK * np.uint8(255)), 0),
    "deep.png": (encoded(DEEP, "PNG"), np.stack([DEEP] * 3) / 65535, 1e-7),
    "deep.tif": (encoded(DEEP, "TIFF", compression="tiff_lzw"), np.stack([DEEP] * 3) / 65535, 1e-7),
    "float.tif": (encoded(DEEP.astype(np.float32) / 65535, "TIFF"), np.stack([DEEP] * 3) / 65535, 1e-7),
    "rgb.tif": (encoded(RGB, "TIFF", compression="tiff_deflate"), planes(RGB), 0),
    "grey.jpg": (encoded(DEEP.clip(0, 200).astype(np.uint8), "JPEG", quality=100), planes(DEEP.clip(0, 200)), 0.05),
    "cmyk.jpg": (encoded(RGB * 0 + RGB[0, 0], "JPEG", "CMYK", quality=100), planes(RGB * 0 + RGB[0, 0]), 0.02),
}


def message(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("error")
def test_the_pixels_of_each_kind_of_file(tmp_path, name):
    data, expected, error = KINDS[name]
    (tmp_path / name).write_bytes(data)
    image = load_image(tmp_path / name, SIDE)
    assert image.dtype == np.float32 and np.abs(image - expected).max() <= error
    assert image_size(tmp_path / name) == (SIDE, SIDE) and load_picture(tmp_path / name, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, turn):
    image = Image.fromarray(RGB[:20])  # not square, so that a transposition shows
    image.getexif()[274] = turn
    image.save(tmp_path / "a.png", exif=image.getexif())
    Image.fromarray(np.asarray(ImageOps.exif_transpose(image))).save(tmp_path / "b.png")
    assert np.array_equal(load_image(tmp_path / "a.png", 24), load_image(tmp_path / "b.png", 24))


def test_resizing_is_antialiased_square_and_bilinear(tmp_path):
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert np.abs(load_image(tmp_path / "a.png", 16) - 0.5).max() < 0.05  # nearest would give 0 or 1
    Image.fromarray(RGB[:20]).save(tmp_path / "b.png")
    reference = Image.fromarray(RGB[:20]).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.abs(load_image(tmp_path / "b.png", 24) - planes(np.asarray(reference))).max() <= 1 / 255


def test_load_images_keeps_the_order_and_names_the_first_that_fails(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(20)][::-1]
    for path in paths:
        Image.fromarray(np.full((8, 8), int(path.stem), np.uint8)).save(path)
    assert np.allclose(load_images(iter(paths), 8)[:, 0, 0, 0] * 255, np.arange(20)[::-1])
    assert load_images([], 8).shape == (0, 3, 8, 8)
    paths[3].write_bytes(b""), paths[7].write_bytes(b"")
    assert paths[3].name in message(load_images, paths, 8)


def test_masks_are_whatever_is_not_black(tmp_path):
    assert load_mask(None, 16).shape == (16, 16) and not load_mask(None).any()
    for name, mask in (("a.png", MASK), ("b.png", MASK > 0), ("c.tif", MASK.astype(np.uint16)), ("d.bmp", MASK * 255)):
        Image.fromarray(mask).save(tmp_path / name)
        assert np.array_equal(load_mask(tmp_path / name, SIDE), MASK > 0)
        assert np.array_equal(load_mask(tmp_path / name, 16), MASK[1::2, 1::2] > 0)  # nearest: no new values
    Image.fromarray(MASK).save(tmp_path / "m.jpg")
    assert "export the mask as PNG" in message(load_mask, tmp_path / "m.jpg")


def test_content_hash_sees_bytes_and_order_but_no_names(tmp_path):
    for name, data in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b""), ("e", b"12")):
        (tmp_path / name).write_bytes(data)
    ab, cb, ba, de = (content_hash([tmp_path / x, tmp_path / y]) for x, y in ("ab", "cb", "ba", "de"))
    assert ab == cb and len({ab, ba, de}) == 3  # where a file ends counts


def test_what_is_no_image_is_one_sentence(tmp_path, monkeypatch):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(DEEP.astype(np.float32)).save(tmp_path / "bright.tif")
    Image.fromarray(DEEP.astype(np.int32)).save(tmp_path / "deep.tif")
    frames[0].save(tmp_path / "gif.png", "GIF")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    flipped = bytearray(KINDS["rgb.png"][0])
    flipped[-20] ^= 1  # the last bytes of the pixels' own check
    (tmp_path / "flipped.png").write_bytes(flipped)
    for path in (*tmp_path.iterdir(), tmp_path / "gone.png", tmp_path / ("y" * 300 + ".png")):
        assert path.name in message(load_image, path)
    frames[0].save(tmp_path / "big.png")
    monkeypatch.setattr(images, "MAX_PIXELS", SIDE * SIDE - 1)
    assert "scale it down" in message(load_image, tmp_path / "big.png")


EDIT = st.tuples(st.sampled_from(["flip", "cut", "insert", "zero"]), st.floats(0, 1), st.binary(min_size=1, max_size=9))


@settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(KINDS)), st.lists(EDIT, min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_read_or_refused_in_a_sentence(tmp_path_factory, name, edits):
    path, data = tmp_path_factory.getbasetemp() / name, bytearray(KINDS[name][0])
    for kind, where, more in edits:
        at = int(where * max(0, len(data) - 1))
        end = {"flip": at + len(more), "cut": len(data), "insert": at, "zero": at + 4 * len(more)}[kind]
        data[at:end] = {"flip": more, "cut": b"", "insert": more, "zero": bytes(4 * len(more))}[kind]
    read_or_refused(path, bytes(data))


@settings(derandomize=True, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 7), st.sampled_from([1, 2, 8, 16, 255]))
@pytest.mark.filterwarnings("ignore")
def test_a_header_that_lies_is_refused_in_a_sentence(tmp_path_factory, width, height, colour, depth):
    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    read_or_refused(tmp_path_factory.getbasetemp() / "liar.png", data)


def read_or_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        image = load_image(path, 16)
    except InputError as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert image.shape == (3, 16, 16) and np.isfinite(image).all() and 0 <= image.min() <= image.max() <= 1
