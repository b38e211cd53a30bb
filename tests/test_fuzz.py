"""Bad bytes: whatever images, tables, arrays and saved models are given, the answer is a result or a sentence.

The only exceptions allowed are the project's own, and ValueError; the message names the file, where there is one, and a
remedy. Hypothesis draws the same examples every time.
"""

import io
import json
import math
import os
import re
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save

from irf_lib import datasets, feature_store, features
from irf_lib.datasets import DataError
from irf_lib.detector import DetectorSettings, OneStepDetector
from irf_lib.diffusion import build_denoiser, train
from irf_lib.features import BackboneError
from irf_lib.runs import Run
from irf_lib.stages import RunError
from irf_lib.storage import StorageError, file_sha256, load_tensors, read_json, save_tensors

REMEDY = re.compile(
    r"replace|remove|save|scale|move|export|restore|make it again|fit it again|run \d\d_\w+|delete|choose|redraw|copy"
    r"|add|convert|divide|repeat|list the files|correct|check|install|edit"
)
TINY = {"backbone": "rgb", "image_size": 32, "feature_size": 4, "width": 64, "depth": 1, "steps": 2, "alpha": 0.5}
fuzz = settings(
    derandomize=True, deadline=None, max_examples=120, database=None, suppress_health_check=list(HealthCheck)
)
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes) -> bytes:
    """``data`` after a few changes at relative places."""
    data = bytearray(data)
    for kind, where, more in changes:
        at = min(int(where * len(data)), max(0, len(data) - 1))
        if kind == "flip" and data:
            data[at] ^= more[0] or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = more
        elif kind == "zero":
            data[at : at + 4 * len(more)] = bytes(4 * len(more))
        elif kind == "repeat":
            data[at:at] = data[at : at + 64]
    return bytes(data)


def sentence(call, *allowed, name: str = ""):
    """The result of ``call()``, or None after one of ``allowed``, whose line names the file and a remedy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except allowed as error:
            text = str(error)
            assert name in text and REMEDY.search(text) and "\n" not in text and len(text) < 1000, text
            return None


# --- images --------------------------------------------------------------------------------------------------------


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (12, 10), dtype=np.uint16)
IMAGES = {
    "rgb.png": encoded(RGB, "PNG"),
    "palette.png": encoded(RGB, "PNG", "P", transparency=0),
    "alpha.png": encoded(RGB, "PNG", "RGBA"),
    "bit.png": encoded(RGB, "PNG", "1"),
    "deep.png": encoded(DEEP, "PNG"),
    "rgb.jpg": encoded(RGB, "JPEG"),
    "cmyk.jpg": encoded(RGB, "JPEG", "CMYK"),
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "rgb.bmp": encoded(RGB, "BMP"),
    "palette.bmp": encoded(RGB, "BMP", "P"),
    "rgb.tif": encoded(RGB, "TIFF"),
    "lzw.tif": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "deep.tif": encoded(DEEP, "TIFF"),
    "float.tif": encoded(DEEP.astype(np.float32) / 65535, "TIFF"),
    "cmyk.tif": encoded(RGB, "TIFF", "CMYK"),
}


@fuzz
@given(st.sampled_from(sorted(IMAGES)), edits)
def test_a_damaged_image_is_read_or_refused_in_a_sentence(tmp_path_factory, name, changes):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(damaged(IMAGES[name], changes))
    image = sentence(lambda: datasets.load_image(path, 16), DataError, name=name)
    assert image is None or (
        image.shape == (3, 16, 16) and np.isfinite(image).all() and 0 <= image.min() <= image.max() <= 1
    )
    mask = path.with_suffix(".png")
    mask.write_bytes(path.read_bytes())
    sentence(lambda: datasets.load_mask(mask, 16), DataError, name=mask.name)


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_is_read_while_it_is_whole(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(IMAGES[name])
    assert datasets.load_image(path, 16).shape == (3, 16, 16)


def png(width: int, height: int, colour: int = 2, depth: int = 8, *more: bytes) -> bytes:
    """A PNG whose header says what it likes, with a few bytes of pixels."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@fuzz
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 7), st.sampled_from([1, 2, 4, 8, 16, 255]))
def test_a_header_that_lies_is_refused_in_a_sentence(tmp_path_factory, width, height, colour, depth):
    path = tmp_path_factory.getbasetemp() / "liar.png"
    path.write_bytes(png(width, height, colour, depth))
    sentence(lambda: datasets.load_image(path, 16), DataError, name="liar.png")


def tiff(**tags: int) -> bytes:
    """An uncompressed 2 x 2 TIFF whose tags say what they like."""
    numbers = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "strip": 273}
    numbers |= {"samples": 277, "rows": 278, "bytes": 279, "depth": 32997}
    values = {
        "width": 2,
        "height": 2,
        "bits": 16,
        "compression": 1,
        "photometric": 1,
        "strip": 8,
        "samples": 1,
        "rows": 2,
    }
    values |= {"bytes": 8} | tags
    entries = sorted((numbers[name], value) for name, value in values.items())
    body = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in entries)
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(entries)) + body + bytes(4)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["width", "height", "bits", "compression", "photometric", "samples", "rows", "strip", "depth"]),
        st.one_of(st.integers(0, 70000), st.integers(0, 2**32 - 1)),
        max_size=4,
    )
)
def test_a_tiff_whose_tags_lie_is_refused_in_a_sentence(tmp_path_factory, tags):
    path = tmp_path_factory.getbasetemp() / "liar.tif"
    path.write_bytes(tiff(**tags))
    sentence(lambda: datasets.load_image(path, 16), DataError, name="liar.tif")


def test_what_is_no_single_image_is_refused(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "long.png").symlink_to("x" * 200)
    names = ["animated.png", "pages.tif", "folder.png", "empty.png", "long.png", "y" * 300 + ".png"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        names.append("pipe.png")
    for name in names:
        for cache in (None, tmp_path / "cache"):
            store = feature_store.FeatureStore(features.build_backbone("rgb", 4), 32, cache)
            assert sentence(lambda s=store, n=name: s([tmp_path / n]), DataError, name=name) is None, name


@settings(fuzz, max_examples=60)
@given(edits, st.binary(max_size=200))
def test_a_damaged_entry_of_the_cache_is_computed_again(tmp_path_factory, changes, noise):
    folder = tmp_path_factory.getbasetemp() / "fuzzed_cache"
    shutil.rmtree(folder, ignore_errors=True)
    image = folder / "a.png"
    folder.mkdir()
    image.write_bytes(IMAGES["rgb.png"])
    store = feature_store.FeatureStore(features.build_backbone("rgb", 4), 32, folder / "cache")
    expected = store([image])
    (entry,) = folder.glob("cache/*/*/*.npz")
    for data in (damaged(entry.read_bytes(), changes), noise):
        entry.write_bytes(data)
        assert torch.equal(store([image]), expected)


# --- tables --------------------------------------------------------------------------------------------------------

VISA = "object,split,label,image,mask\nnut,train,normal,a.png,\nnut,test,normal,b.png,\nnut,test,anomaly,c.png,m.png\n"
cells = st.one_of(
    st.sampled_from(
        ["nut", "train", "test", "normal", "anomaly", "a.png", "m.png", "", "..", "../x", "/etc", "\0", '"']
    ),
    st.text(max_size=8),
    st.just("x" * 300 + ".png"),
)


@fuzz
@given(
    st.one_of(
        edits.map(lambda changes: damaged(VISA.encode(), changes)),
        st.lists(st.lists(cells, max_size=6).map(",".join), max_size=5).map(
            lambda lines: "\n".join([VISA.splitlines()[0], *lines]).encode("utf-8", "surrogatepass")
        ),
        st.binary(max_size=300),
    )
)
def test_a_damaged_visa_table_is_refused_in_a_sentence(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "visa"
    (root / "split_csv").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c", "m"):
        (root / f"{name}.png").write_bytes(IMAGES["rgb.png"])
    (root / "split_csv" / "1cls.csv").write_bytes(content)
    names = sentence(lambda: datasets.list_categories(root), DataError, name="1cls.csv")
    for name in names or ():
        assert Path("results", name).parent == Path("results") and name.strip(". "), "a name, not a path"
        category = sentence(lambda n=name: datasets.read_category(root, n), DataError, name=str(root))
        assert category is None or category.train


def test_a_category_of_visa_is_no_path(tmp_path):
    (tmp_path / "split_csv").mkdir()
    for name in ("../nut", "", "..", "a/b", "a\\b", "/tmp"):
        (tmp_path / "split_csv" / "1cls.csv").write_text(VISA.replace("nut", name))
        with pytest.raises(DataError, match="no name of a category; restore"):
            datasets.list_categories(tmp_path)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return Run.open("00_start_here", out=str(tmp_path_factory.mktemp("tables")))


@settings(fuzz, max_examples=40)
@given(edits, st.booleans(), st.booleans(), st.binary(max_size=60))
def test_a_damaged_table_is_left_out_or_refused_in_a_sentence(opened, changes, hashed, of_json, noise):
    for key in "ab":
        opened.save_piece(pd.DataFrame({"category": [key], "x": [1.5]}), "metrics.csv", key)
    paths = [opened.path("metrics.csv"), opened.path("pieces/metrics/a.csv")]
    for path, data in zip(paths, (damaged(paths[0].read_bytes(), changes), noise), strict=True):
        if of_json:
            path = path.with_suffix(".json")
            data = damaged(path.read_bytes(), changes)
        elif not hashed:  # as versions wrote it that kept no hash
            record = read_json(path.with_suffix(".json"))
            path.with_suffix(".json").write_text(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
        path.write_bytes(data)
    table = sentence(lambda: opened.read_table("metrics.csv"), RunError, name="metrics.csv")
    assert table is None or isinstance(table, pd.DataFrame)
    joined = opened.save_piece(pd.DataFrame({"category": ["b"], "x": [2.5]}), "metrics.csv", "b")
    assert list(joined) == ["category", "x"] and joined.x.iloc[-1] == 2.5
    for path in opened.folder.glob("pieces/metrics/*"):
        path.unlink()


# --- score ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    images = np.random.default_rng(0).random((30, 3, 32, 32), np.float32)
    return OneStepDetector(DetectorSettings(**TINY), device="cpu").fit(images, progress=None)


@fuzz
@given(
    st.one_of(
        st.lists(st.sampled_from([0, 1, 3, 31, 32]), max_size=5),
        st.tuples(st.integers(0, 2), st.just(3), st.integers(32, 40), st.integers(31, 40)),
    ),
    st.sampled_from(["f2", "f4", "f8", ">f4", "u1", "i8", "u2", "?", "c8", "U3", "O", "M8[s]"]),
    st.sampled_from([0.0, 0.5, 1.0, -0.1, 1.1, 255.0, math.nan, math.inf]),
)
def test_any_array_is_scored_or_refused_in_a_sentence(detector, shape, dtype, value):
    images = np.zeros(shape, dtype)
    if images.size and images.dtype.kind in "fu" and math.isfinite(value) and value >= 0 or images.dtype.kind == "f":
        images.ravel()[-1:] = value
    result = sentence(lambda: detector.score(images), ValueError)
    good = len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= 32 and images.dtype.kind == "f"
    assert (result is not None) == bool(good and (not images.size or 0 <= value <= 1))
    if result:
        assert result.scores.shape == result.flagged.shape == (len(images),) and np.isfinite(result.scores).all()
        assert result.maps.shape == (len(images), 32, 32)


def test_images_as_they_come_from_elsewhere(detector, tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGES["rgb.png"])
    assert len(detector.score([str(tmp_path / "a.png")]).scores) == 1 and len(detector.score([]).scores) == 0
    images = np.random.default_rng(1).random((2, 3, 32, 32))
    same = (images.astype(np.float32), np.asfortranarray(images.astype(np.float32)), images.astype(">f4"))
    scores = [detector.score(one).scores for one in same]
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])
    for wrong in (str(tmp_path / "a.png"), tmp_path, [images], torch.from_numpy(images), 3, None, b"a.png", [None]):
        assert sentence(lambda w=wrong: detector.score(w), ValueError) is None
        assert sentence(lambda w=wrong: OneStepDetector(DetectorSettings(**TINY)).fit(w, None), ValueError) is None


# --- saved models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    detector.save(folder)
    return folder


def load(folder: Path):
    """The detector in ``folder``, or None after a sentence; one that loads also scores."""
    loaded = sentence(lambda: OneStepDetector.load(folder, "cpu"), StorageError, BackboneError, name=str(folder))
    if loaded:
        assert np.isfinite(loaded.score(np.full((1, 3, 32, 32), 0.5, np.float32)).scores).all()
    return loaded


def spoiled(saved: Path, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A fresh copy of the saved detector: its folder, JSON and tensors."""
    folder = tmp_path_factory.getbasetemp() / "spoiled"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    return folder, folder / "detector.json", next(folder.glob("*.safetensors"))


@fuzz
@given(edits, st.booleans())
def test_a_damaged_detector_is_refused_in_a_sentence(saved, tmp_path_factory, changes, of_json):
    folder, path, tensors = spoiled(saved, tmp_path_factory)
    file = path if of_json else tensors
    before = file.read_bytes()
    file.write_bytes(damaged(before, changes))
    if load(folder) and not of_json:
        assert file.read_bytes() == before, "changed, and loaded all the same"


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = [("tensors",), ("sha256",), ("meta",), ("meta", "format"), ("meta", "settings"), ("meta", "seed")]
KEYS += [("meta", "backbone_fingerprint"), ("meta", "train_seconds"), ("meta", "settings", "t")]
KEYS += [("meta", "settings", name) for name in ("backbone_weights", "backbone", "width", "depth", "density")]
KEYS += [("meta", "settings", name) for name in ("image_size", "feature_size", "patch_size", "denoiser", "steps")]


@fuzz
@given(st.sampled_from(KEYS), st.one_of(values, st.just("__missing__")))
def test_a_detector_with_any_other_value_in_its_json_is_refused_or_works(saved, tmp_path_factory, keys, value):
    folder, path, _ = spoiled(saved, tmp_path_factory)
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner.pop(keys[-1])
    if value != "__missing__":
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))
    load(folder)


NAMES = ["", ".", "..", "/etc/passwd", "../detector.000000000000.safetensors", "x" * 300, "a\0b", "detector.json"]


@pytest.mark.parametrize("name", [*NAMES, None, 3, ["a"]])
def test_a_detector_names_only_its_own_tensors(saved, tmp_path_factory, name):
    folder, path, _ = spoiled(saved, tmp_path_factory)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tensors": name}))
    assert load(folder) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "NaN", "3", '"a"', "{}", "[" * 10**5, '{"a":' * 10**5, "1" * 5000])
def test_any_other_json_is_refused_in_a_sentence(saved, tmp_path_factory, text):
    folder, path, _ = spoiled(saved, tmp_path_factory)
    path.write_text(text)
    assert load(folder) is None


def sealed(folder: Path, path: Path, data: bytes) -> None:
    """Put ``data`` in the tensors' place, with a name and a hash that vouch for them."""
    content = json.loads(path.read_text())
    (folder / content["tensors"]).write_bytes(data)
    path.write_text(json.dumps(content | {"sha256": file_sha256(folder / content["tensors"])}))


tamperings = {
    "missing": lambda t, a, b: t.pop(a),
    "added": lambda t, a, b: t.update({f"{a}.more": t[a].clone()}),
    "swapped": lambda t, a, b: t.update({a: t[b], b: t[a]}),
    "double": lambda t, a, b: t.update({a: t[a].double()}),
    "integer": lambda t, a, b: t.update({a: t[a].int()}),
    "flat": lambda t, a, b: t.update({a: t[a].flatten()[None, None]}),
    "empty": lambda t, a, b: t.update({a: t[a].flatten()[:0]}),
    "longer": lambda t, a, b: t.update(
        {a: torch.cat([t[a].flatten(), t[a].flatten(), torch.ones(1, dtype=t[a].dtype)])}
    ),
    "nan": lambda t, a, b: t.update({a: t[a] * math.nan}),
    "negative": lambda t, a, b: t.update({a: -t[a] - 1}),
}


@fuzz
@given(st.sampled_from(sorted(tamperings)), st.integers(0, 10**6), st.integers(0, 10**6))
def test_tensors_that_do_not_fit_are_refused_although_their_hash_is_right(saved, tmp_path_factory, how, first, second):
    folder, path, file = spoiled(saved, tmp_path_factory)
    tensors = load_file(file)
    few = ["mean", "std", "calibration_scores", "fit_index", "calibration_index", "history", *sorted(tensors)]
    names = [few[first % len(few)], few[second % len(few)]]
    before = {name: (one.dtype, one.shape) for name, one in tensors.items()}
    tamperings[how](tensors, *names)
    sealed(folder, path, save(tensors))
    if load(folder):
        assert {name: (one.dtype, one.shape) for name, one in tensors.items()} == before, "another shape, and loaded"


@fuzz
@given(st.one_of(st.binary(max_size=100), edits))
def test_bytes_that_are_no_tensors_are_refused_although_their_hash_is_right(saved, tmp_path_factory, changes):
    folder, path, file = spoiled(saved, tmp_path_factory)
    sealed(folder, path, changes if isinstance(changes, bytes) else damaged(file.read_bytes(), changes))
    load(folder)


def test_weights_of_the_backbone_that_are_none(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "others.pth")
    for name in ("weights.pth", "others.pth", "gone.pth"):
        with pytest.raises(BackboneError, match=f"{name}: correct the setting backbone_weights"):
            features.build_backbone("efficientnet-lite0", 4, str(tmp_path / name))


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "swapped", "flat", "nothing", "other code", "no fingerprint"])
def test_a_checkpoint_of_another_shape_is_ignored_or_refused_in_a_sentence(tmp_path, how):
    path, x0 = tmp_path / "checkpoint.json", torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    recipe = DetectorSettings(**TINY | {"steps": 4, "precision": "fp32"})

    def steps(stop=None):
        denoiser = build_denoiser("dit", 3, 4, 64, 1, 0, 2)
        for one in train(denoiser, x0, recipe, 0, checkpoint=path, checkpoint_seconds=0):
            if one.step == stop:
                return None
        return denoiser.state_dict()

    expected = steps()
    path.unlink()
    steps(stop=2)
    tensors, meta = load_tensors(path)
    if how == "other code":
        meta["fingerprint"]["code"] = "of an earlier version"
    elif how == "no fingerprint":
        meta = {"made_by": "an earlier version"}
    elif how != "nothing":
        name = next(name for name in tensors if name.startswith("ema."))
        tamperings[how](tensors, name, "history")
    save_tensors(path, tensors, meta)
    found = sentence(steps, StorageError, name="checkpoint.json")
    if how in ("nothing", "other code", "no fingerprint"):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    else:
        assert found is None
