"""datasets.py against tiny data sets of every layout, damaged in every way that it promises to notice."""

import json
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from irf_lib import datasets, embedded, textures
from irf_lib.datasets import DataError, check_category, list_categories, load_image, load_mask, read_category

MVTEC = Path(__file__).resolve().parents[2] / "shared" / "data" / "mvtec_ad"
SIDE = 32
RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[4:10, 20:30] = 255


def put(path: Path, pixels: np.ndarray = RGB8, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def mvtec(root: Path, name: str = "bottle") -> Path:
    """A category with 2 training images, 1 good test image, 2 broken ones and 1 scratched one."""
    for file in ("train/good/000", "train/good/001", "test/good/000", "test/scratch/000", *BROKEN):
        put(root / name / f"{file}.png")
    for file in ("broken/000", "broken/001", "scratch/000"):
        put(root / name / "ground_truth" / f"{file}_mask.png", MASK)
    (root / name / "license.txt").write_text("licence")
    return root / name


BROKEN = ("test/broken/000", "test/broken/001")


def visa(root: Path) -> Path:
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
    """The text of the DataError that the call raises: one or two sentences that end in a full stop."""
    with pytest.raises(DataError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


# ---- layouts ----


def test_mvtec_layout_of_all_categories_and_of_one(tmp_path):
    mvtec(tmp_path, "pill"), mvtec(tmp_path, "bottle")
    (tmp_path / "notes").mkdir()
    assert list_categories(tmp_path) == ("bottle", "pill")
    assert list_categories(tmp_path / "pill") == ("pill",)
    category = read_category(tmp_path, "bottle")
    assert category == read_category(tmp_path / "bottle", "bottle")
    assert (category.name, category.layout, category.root) == ("bottle", "mvtec", tmp_path / "bottle")
    assert [path.name for path in category.train] == ["000.png", "001.png"]
    kinds = [(image.kind, image.path.name, image.is_anomalous) for image in category.test]
    assert kinds == [
        ("broken", "000.png", True),
        ("broken", "001.png", True),
        ("good", "000.png", False),
        ("scratch", "000.png", True),
    ]
    assert category.test[1].mask == category.root / "ground_truth" / "broken" / "001_mask.png"
    assert category.test[2].mask is None
    assert category.has_masks
    check_category(category)


def test_a_relative_root_keeps_its_folder_name(tmp_path, monkeypatch):
    monkeypatch.chdir(mvtec(tmp_path))
    assert list_categories(Path(".")) == ("bottle",)
    assert len(read_category(Path("."), "bottle").train) == 2


def test_btad_layout_reads_ok_as_good(tmp_path):
    for file in ("train/ok/0.bmp", "test/ok/0.bmp", "test/ko/0.bmp", "test/ko/1.bmp"):
        put(tmp_path / "01" / file)
    put(tmp_path / "01/ground_truth/ko/0.png", MASK)
    put(tmp_path / "01/ground_truth/ko/1.bmp", MASK)
    category = read_category(tmp_path, "01")
    assert category.layout == "btad" and category.has_masks and len(category.train) == 1
    assert [image.kind for image in category.test] == ["good", "ko", "ko"]
    check_category(category)


def test_visa_layout_and_its_small_integer_masks(tmp_path):
    visa(tmp_path)
    assert list_categories(tmp_path) == ("candle", "pcb")
    category = read_category(tmp_path, "pcb")
    assert category.layout == "visa" and category.has_masks
    assert [image.kind for image in category.test] == ["anomaly", "good"]
    check_category(category)
    assert np.array_equal(load_mask(category.test[0].mask, SIDE), MASK > 0)


def test_visa_table_with_a_byte_order_mark(tmp_path):
    table = visa(tmp_path)
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert len(read_category(tmp_path, "candle").train) == 1


@pytest.mark.parametrize("good", [False, True], ids=["loose", "good"])
def test_plain_folder_with_tests_and_masks(tmp_path, good):
    root = plain(tmp_path / "parts")
    if good:
        (root / "good").mkdir()
        for name in ("a.jpg", "b.png"):
            (root / name).rename(root / "good" / name)
    assert list_categories(root) == ("parts",)
    category = read_category(root, "parts")
    assert category.layout == "folder" and category.has_masks
    assert [path.name for path in category.train] == ["a.jpg", "b.png"]
    masks = [image.mask and image.mask.name for image in category.test]
    assert masks == ["y.png", "z_mask.png", None]
    check_category(category)


def test_plain_folder_without_tests(tmp_path):
    put(tmp_path / "parts" / "a.TIFF")
    category = read_category(tmp_path / "parts", "parts")
    assert category.test == () and not category.has_masks
    check_category(category)


def test_no_mask_at_all_is_allowed(tmp_path):
    root = mvtec(tmp_path)
    for mask in root.glob("ground_truth/*/*"):
        mask.unlink()
    category = read_category(root, "bottle")
    assert not category.has_masks and len(category.test) == 4
    check_category(category)


def test_side_files_are_ignored(tmp_path):
    good = mvtec(tmp_path) / "train" / "good"
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "readme.txt", "notes.md", "meta.json", "LICENSE"):
        (good / name).write_bytes(b"not an image")
    (good / ".ipynb_checkpoints").mkdir()
    check_category(read_category(tmp_path, "bottle"))


# ---- errors of structure ----


def test_missing_and_foreign_roots(tmp_path):
    assert "nowhere" in message(list_categories, tmp_path / "nowhere")
    assert "check the path" in message(read_category, tmp_path / "nowhere", "bottle")
    text = message(list_categories, tmp_path)
    assert str(tmp_path) in text
    assert all(word in text for word in ("train/good", "train/ok", "split_csv/1cls.csv", "PNG"))


def test_unknown_category_names_the_known_and_a_close_one(tmp_path):
    mvtec(tmp_path, "bottle"), mvtec(tmp_path, "pill")
    text = message(read_category, tmp_path, "botle")
    assert "did you mean 'bottle'" in text and "bottle, pill" in text
    assert "did you mean" not in message(read_category, tmp_path, "xyz")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda root: [path.unlink() for path in root.glob("train/good/*")],
            "bottle: no training image; add",
        ),
        (lambda root: put(root / "train/good/a.webp"), "a.webp: unsupported .webp; convert"),
        (lambda root: put(root / "test/broken/a.gif"), "a.gif: unsupported; convert"),
        (lambda root: (root / "train/good/more").mkdir(), "more: folder; move"),
        (lambda root: put(root / "test/loose.png"), "loose.png: test/good and test/<kind>; sort"),
        (lambda root: put(root / "ground_truth/loose_mask.png"), "loose_mask.png: ground_truth/<kind>; sort"),
        (lambda root: (root / "test/broken/001.png").unlink(), "001_mask.png: without an image; remove"),
        (lambda root: put(root / "ground_truth/rust/000_mask.png"), "rust 000_mask.png: without; remove"),
        (lambda root: put(root / "ground_truth/good/000_mask.png"), "000_mask.png: good image; remove"),
        (lambda root: (root / "ground_truth/broken/001_mask.png").unlink(), "001.png: no mask; add"),
        (lambda root: put(root / "ground_truth/broken/000.png"), "000: several; remove"),
        (lambda root: put(root / "test/broken/000.jpg"), "000_mask.png: several; rename"),
    ],
)
def test_each_error_of_structure_names_the_file_and_the_remedy(tmp_path, spoil, words):
    spoil(mvtec(tmp_path))
    text = message(read_category, tmp_path, "bottle")
    for word in words.replace(":", "").replace(";", "").split():
        assert word in text, (word, text)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: put(root / "good/c.png"), "beside good/ move"),
        (lambda root: put(root / "ground_truth/dent/y.png"), "both ground_truth/ masks/ keep"),
        (lambda root: put(root / "dents/y.png"), "dents folder move"),
        (lambda root: put(root / "test/loose.png"), "loose.png sort test/good test/<kind>"),
        (lambda root: put(root / "c.heic", format="PNG"), "c.heic convert PNG"),
    ],
)
def test_errors_of_a_plain_folder(tmp_path, spoil, words):
    spoil(plain(tmp_path / "parts"))
    text = message(read_category, tmp_path / "parts", "parts")
    assert all(word in text for word in words.split()), text


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("split,label", "split,kind", "1cls.csv label column"),
        ("candle,train,normal", "candle,train,anomaly", "line 2 'train' 'anomaly' correct"),
        ("candle,test,normal", "candle,val,normal", "line 3 'val' correct"),
        ("Images/normal/000.JPG", "Images/normal/999.JPG", "line 2 999.JPG missing restore"),
        ("Masks/002.png", "Masks/992.png", "line 4 992.png missing restore"),
        ("candle,test,anomaly", "candle,test,normal", "line 4 002.JPG mask remove"),
    ],
)
def test_errors_of_the_visa_table(tmp_path, old, new, words):
    table = visa(tmp_path)
    table.write_text(table.read_text().replace(old, new, 1))
    text = message(read_category, tmp_path, "candle")
    assert all(word in text for word in words.split()), text


def test_a_visa_table_that_is_not_text(tmp_path):
    visa(tmp_path).write_bytes(b"\xff\xfe\x00object")
    assert "1cls.csv" in message(list_categories, tmp_path)


# ---- errors of pixels ----


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: shorten(root / "train/good/001.png"), "good/001.png readable replace"),
        (lambda root: shorten(root / "ground_truth/scratch/000_mask.png"), "000_mask.png readable replace"),
        (lambda root: (root / "test/good/000.png").write_bytes(b""), "good/000.png empty copy"),
        (lambda root: (root / "test/good/000.png").write_text("hello"), "good/000.png readable replace"),
        (lambda root: put(root / "test/good/000.png", format="GIF"), "good/000.png readable replace"),
        (
            lambda root: put(root / "ground_truth/broken/001_mask.png", MASK[:, :16]),
            "001_mask.png 16 32 export",
        ),
        (
            lambda root: put(root / "ground_truth/broken/001_mask.png", MASK * 0),
            "001_mask.png no pixel redraw",
        ),
    ],
)
def test_each_error_of_pixels_is_found_by_check_category_alone(tmp_path, spoil, words):
    spoil(mvtec(tmp_path))
    category = read_category(tmp_path, "bottle")  # looks at names only
    text = message(check_category, category)
    assert all(word in text for word in words.split()), text


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_a_shortened_file_of_any_type_is_an_error(tmp_path, suffix):
    path = put(tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about the cut TIFF header
        for kept in (len(whole) - 20, len(whole) // 2, 30, 3):
            path.write_bytes(whole[:kept])
            assert path.name in message(load_image, path, SIDE)


def test_a_png_with_one_wrong_byte_is_an_error(tmp_path):
    path = put(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # the last bytes of the pixels' own check
    path.write_bytes(data)
    assert "a.png" in message(load_image, path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_PIXELS", SIDE * SIDE - 1)
    for name in ("a.png", "a.tif"):
        text = message(load_image, put(tmp_path / name))
        assert name in text and "scale the image down" in text
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses at twice its own limit
    assert "bomb" in message(load_image, put(tmp_path / "b.png"))


def test_files_that_cannot_be_read(tmp_path):
    assert "gone.png" in message(load_image, tmp_path / "gone.png")
    assert "gone.png" in message(datasets.content_hash, [tmp_path / "gone.png"])


def test_a_jpeg_mask_is_refused(tmp_path):
    assert "export the mask as PNG" in message(load_mask, put(tmp_path / "m.jpg", MASK))


# ---- pixel values ----


def planes(pixels: np.ndarray) -> np.ndarray:
    """The expected result of `load_image` for uint8 pixels (H, W) or (H, W, 3), unresized."""
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    return pixels.transpose(2, 0, 1) / np.float32(255)


def png16(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """A 16-bit PNG by hand, as Pillow writes only grey ones; colours 0, 4, 2, 6: grey, LA, RGB, RGBA."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("kind", ["grey", "rgb", "bit"])
def test_8_bit_pixels_are_exact(tmp_path, suffix, kind):
    pixels = {"grey": RGB8[..., 0], "rgb": RGB8, "bit": RGB8[..., 0] > 99}[kind]
    image = load_image(put(tmp_path / f"a{suffix}", pixels), SIDE)
    assert image.dtype == np.float32 and image.shape == (3, SIDE, SIDE)
    assert np.array_equal(image, planes(pixels * np.uint8(255) if kind == "bit" else pixels))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}])
def test_compressed_tiff(tmp_path, options):
    assert np.array_equal(load_image(put(tmp_path / "a.tif", **options), SIDE), planes(RGB8))
    grey16 = RGB8[..., 0].astype(np.uint16) * 257
    assert np.array_equal(load_image(put(tmp_path / "b.tif", grey16, **options), SIDE), planes(RGB8[..., 0]))


def test_jpeg_is_close(tmp_path):
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE))
    smooth = np.stack([ramp, 2 * ramp, 4 * ramp], -1).astype(np.uint8)
    for pixels in (smooth, smooth[..., 1]):
        image = load_image(put(tmp_path / "a.jpg", pixels, quality=100, subsampling=0), SIDE)
        assert np.abs(image - planes(pixels)).max() < 6 / 255


def test_cmyk_jpeg_is_read_as_rgb(tmp_path):
    Image.new("RGB", (SIDE, SIDE), (200, 100, 50)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.allclose(load_image(tmp_path / "a.jpg", 4)[:, 0, 0] * 255, (200, 100, 50), atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P with alpha"])
def test_alpha_is_dropped_and_palettes_are_looked_up(tmp_path, mode):
    image, options = Image.fromarray(RGB8), {}
    if mode.startswith("P"):
        image = image.quantize(16)
        expected = np.asarray(image.convert("RGB"))
        options = {"transparency": bytes([0, 128] + [255] * 14)} if "alpha" in mode else {}
    else:
        image = image.convert(mode[:-1])
        expected = np.asarray(image)
        image.putalpha(Image.fromarray(RGB8[..., 1]))
    image.save(tmp_path / "a.png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_image(tmp_path / "a.png", SIDE), planes(expected))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_equals_8_bit(tmp_path, suffix, channels):
    pixels = RNG.integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)
    deep, path = pixels.astype(np.uint16) * 257, tmp_path / f"a{suffix}"
    if suffix == ".png":
        png16(path, deep, {1: 0, 2: 4, 3: 2, 4: 6}[channels])
    else:
        alpha = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
        photometric = "rgb" if channels > 2 else "minisblack"
        tifffile.imwrite(path, deep.squeeze(), photometric=photometric, planarconfig="contig", **alpha)
    shallow = put(tmp_path / "b.png", pixels[..., :3] if channels > 2 else pixels[..., 0])
    for size in (SIDE, 20, 48):
        assert np.abs(load_image(path, size) - load_image(shallow, size)).max() < 1e-6


def test_16_bit_keeps_what_lies_below_8_bits(tmp_path):
    faint = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)  # 10 bits in the dark
    png16(tmp_path / "a.png", faint, 0)
    for byteorder in "<>":
        path = tmp_path / f"b{ord(byteorder)}.tif"
        tifffile.imwrite(path, np.stack([faint] * 3, -1), photometric="rgb", byteorder=byteorder)
        assert np.allclose(load_image(path, SIDE), faint / 65535, atol=1e-7)
    assert np.allclose(load_image(tmp_path / "a.png", SIDE), faint / 65535, atol=1e-7)


def test_unusual_tiffs(tmp_path):
    pixels = RGB8.astype(np.uint16) * 257
    planar = tmp_path / "planar.tif"
    tifffile.imwrite(planar, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(load_image(planar, SIDE), planes(RGB8))
    for grey in (RGB8[..., 0], pixels[..., 0]):
        tifffile.imwrite(tmp_path / "negative.tif", grey, photometric="miniswhite")
        assert np.allclose(load_image(tmp_path / "negative.tif", SIDE), planes(255 - RGB8[..., 0]), atol=1e-7)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([pixels[..., 0]] * 2), photometric="minisblack")
    assert "pages.tif: holds 2 pages" in message(load_image, tmp_path / "pages.tif")
    for name, dtype in (("signed.tif", np.int16), ("deep.tif", np.uint32)):
        tifffile.imwrite(tmp_path / name, RGB8[..., 0].astype(dtype), photometric="minisblack")
        assert name in message(load_image, tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, SIDE, 3)])
def test_float_tiff_within_0_and_1(tmp_path, dtype, shape):
    pixels, path = RNG.random(shape).astype(dtype), tmp_path / "a.tif"
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=photometric)
    expected = pixels.transpose(2, 0, 1) if len(shape) == 3 else np.stack([pixels] * 3)
    assert np.allclose(load_image(path, SIDE), expected, atol=1e-6)
    for value in (1.5, -0.1, np.nan):
        pixels.flat[0] = value
        tifffile.imwrite(path, pixels, photometric=photometric)
        assert "a.tif: float pixels outside [0, 1]; scale" in message(load_image, path)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, turn, suffix, depth):
    pixels = RGB8[:20]  # not square, so that a transposition shows
    exif = Image.Exif()
    exif[274] = turn
    path = tmp_path / f"a{suffix}"
    if depth == 16 and suffix == ".tif":
        tags = [(274, "H", 1, turn, True)]
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb", extratags=tags)
    else:
        pixels = pixels if depth == 8 else pixels[..., 0]
        put(path, pixels if depth == 8 else pixels.astype(np.uint16) * 257, exif=exif)
    image = Image.fromarray(pixels)
    image.getexif()[274] = turn
    upright = put(tmp_path / "b.png", np.asarray(ImageOps.exif_transpose(image)))
    assert np.abs(load_image(path, 24) - load_image(upright, 24)).max() < 1e-6


def test_resizing_is_antialiased_square_and_bilinear(tmp_path):
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(put(tmp_path / "a.png", stripes), 16)
    assert image.shape == (3, 16, 16) and np.abs(image - 0.5).max() < 0.05  # nearest would give 0 or 1
    path = put(tmp_path / "b.png", RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    reference = Image.open(path).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.abs(load_image(path, 24) - planes(np.asarray(reference))).max() <= 1 / 255


def test_load_images_keeps_the_order(tmp_path):
    paths = [put(tmp_path / f"{n}.png", np.full((8, 8), n, np.uint8)) for n in range(20)][::-1]
    images = datasets.load_images(iter(paths), 8)
    assert images.shape == (20, 3, 8, 8) and images.dtype == np.float32
    assert np.allclose(images[:, 0, 0, 0] * 255, np.arange(20)[::-1])
    assert datasets.load_images([], 8).shape == (0, 3, 8, 8)
    shorten(paths[3]), shorten(paths[7])
    assert paths[3].name in message(datasets.load_images, paths, 8)


def test_load_mask(tmp_path):
    assert load_mask(None, 16).shape == (16, 16) and not load_mask(None).any()
    for name, mask in (("a.png", MASK // 255), ("b.png", MASK > 0), ("c.tif", MASK.astype(np.uint16) // 255)):
        loaded = load_mask(put(tmp_path / name, mask), SIDE)
        assert loaded.dtype == bool and np.array_equal(loaded, MASK > 0)
        assert np.array_equal(load_mask(tmp_path / name, 16), MASK[1::2, 1::2] > 0)  # nearest: no new values
    index = Image.fromarray(MASK // 255).convert("P")
    index.putpalette([0, 0, 0, 128, 0, 0])
    index.save(tmp_path / "d.png")
    assert np.array_equal(load_mask(tmp_path / "d.png", SIDE), MASK > 0)


def test_content_hash_sees_bytes_and_order_but_no_names(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"1"), b.write_bytes(b"2"), c.write_bytes(b"1")
    assert datasets.content_hash([a, b]) == datasets.content_hash([c, b]) != datasets.content_hash([b, a])
    empty, both = tmp_path / "d", tmp_path / "e"
    empty.write_bytes(b""), both.write_bytes(b"12")
    assert datasets.content_hash([a, b]) != datasets.content_hash([empty, both])  # where a file ends counts


# ---- the embedded textures ----

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

    monkeypatch.setattr(textures, "DEFECTS", {"cloth": ("hole", "stain"), "metal": ("scratch",)})
    monkeypatch.setattr(textures, "normal_image", normal_image)
    monkeypatch.setattr(textures, "defective_image", defective_image)
    return drawn


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_real_textures_are_a_sound_data_set(tmp_path):
    root = embedded.write_embedded(tmp_path / "textures", n_train=1, n_test_good=1, n_per_defect=1)
    assert list_categories(root) == tuple(sorted(textures.DEFECTS))
    for name, kinds in textures.DEFECTS.items():
        category = read_category(root, name)
        assert category.layout == "mvtec" and category.has_masks
        assert sorted(image.kind for image in category.test) == sorted(("good", *kinds))
        check_category(category)
    assert load_image(category.train[0]).shape == (3, 256, 256)


def test_write_embedded_is_deterministic_and_each_image_is_on_its_own(tmp_path, cheap):
    first = contents(embedded.write_embedded(tmp_path / "a", **TINY, seed=3))
    assert first == contents(embedded.write_embedded(tmp_path / "b", **TINY, seed=3))
    more = contents(embedded.write_embedded(tmp_path / "c", n_train=3, n_test_good=2, n_per_defect=2, seed=3))
    assert all(more[name] == data for name, data in first.items() if name != "manifest.json")
    other = contents(embedded.write_embedded(tmp_path / "d", **TINY, seed=4))
    images = [data for files in (more, other) for name, data in files.items() if "_mask" not in name]
    assert len(set(images)) == len(images)  # no two images anywhere share their random numbers
    assert {mask.getextrema() for mask in map(Image.open, (tmp_path / "a").rglob("*_mask.png"))} == {(0, 255)}


def test_write_embedded_reuses_what_is_intact(tmp_path, cheap):
    root = embedded.write_embedded(tmp_path / "new" / "a", **TINY)
    assert sorted(path.name for path in root.parent.iterdir()) == ["a"]  # no scratch folder stays behind
    assert len(cheap) == 9  # 2 categories of 2 + 1 good images, and 3 defects
    (root / ".DS_Store").write_bytes(b"")
    embedded.write_embedded(root, **TINY)
    assert len(cheap) == 9


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "cloth/train/good/001.png").unlink(),
        lambda root: shorten(root / "metal/ground_truth/scratch/000_mask.png"),
        lambda root: shorten(root / "manifest.json"),
        lambda root: (root / "manifest.json").write_text(
            (root / "manifest.json").read_text().replace('"generator": "', '"generator": "0')
        ),
    ],
    ids=["lost", "shortened", "manifest", "older generator"],
)
def test_write_embedded_rebuilds_what_is_damaged(tmp_path, cheap, damage):
    root = embedded.write_embedded(tmp_path / "a", **TINY)
    before = contents(root)
    damage(root)
    embedded.write_embedded(root, **TINY)
    assert contents(root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_write_embedded_replaces_other_parameters(tmp_path, cheap):
    root = embedded.write_embedded(tmp_path / "a", n_train=5)
    embedded.write_embedded(root, **TINY)
    assert len(read_category(root, "cloth").train) == 2
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["parameters"] == TINY | {"seed": 0}
    assert str(tmp_path) not in json.dumps(manifest)


def test_write_embedded_refuses_a_folder_of_somebody_else(tmp_path, cheap):
    mine = put(tmp_path / "mine" / "holiday.png")
    assert "mine" in message(embedded.write_embedded, mine.parent)
    (mine.parent / "manifest.json").write_text('{"name": "web app"}')
    assert "choose a new or empty folder" in message(embedded.write_embedded, mine.parent)
    (mine.parent / "manifest.json").write_text("{")
    assert "holiday.png" in message(embedded.write_embedded, mine.parent)
    root = embedded.write_embedded(tmp_path / "a", **TINY)
    extra = put(root / "cloth" / "train" / "good" / "mine.png")
    assert "mine.png" in message(lambda: embedded.write_embedded(root, **TINY, seed=1))
    assert mine.exists() and extra.exists() and not cheap[9:]
    assert "choose another folder" in message(embedded.write_embedded, mine)
    assert "n_train" in message(embedded.write_embedded, tmp_path / "b", 0)


def test_write_embedded_leaves_nothing_after_a_failure(tmp_path, cheap, monkeypatch):
    (tmp_path / "a").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(textures, "defective_image", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embedded.write_embedded(tmp_path / "a", **TINY)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and not list((tmp_path / "a").iterdir())
    assert len(contents(embedded.write_embedded(tmp_path / "a", **TINY))) == 13


@pytest.mark.parametrize("damaged", [False, True])
def test_several_writers_at_once_draw_once(tmp_path, cheap, damaged):
    root = tmp_path / "a"
    if damaged:
        shorten(embedded.write_embedded(root, **TINY) / "cloth/test/good/000.png")
        cheap.clear()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: embedded.write_embedded(root, **TINY), range(6)))
    assert list(tmp_path.iterdir()) == [root]
    assert embedded.write_embedded(root, **TINY) == root
    assert len(cheap) == 9 or os.name == "nt"


# ---- the real data, where it is at hand ----


@pytest.mark.skipif(not MVTEC.is_dir(), reason="MVTec AD is not at ../shared/data/mvtec_ad")
@pytest.mark.parametrize(
    "name, train, good, anomalous", [("bottle", 209, 20, 63), ("pill", 267, 26, 141), ("screw", 320, 41, 119)]
)
def test_real_mvtec_counts(name, train, good, anomalous):
    category = read_category(MVTEC, name)
    labels = [image.is_anomalous for image in category.test]
    assert (len(category.train), labels.count(False), labels.count(True)) == (train, good, anomalous)
    assert category.has_masks
    check_category(category)
