"""What several rooms' tests share: photographs, a small detector, and the check of an error that a person reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irf_lib import Detector, Settings
from irf_lib.files import InputError

torch.set_num_threads(1)  # the networks are tiny, and on a busy machine two threads wait for each other


def pytest_collection_modifyitems(items) -> None:
    """The two files that wait for other processes come first: the others then fill the time on every core."""
    items.sort(key=lambda item: item.path.stem not in ("test_execution", "test_kill"))


@pytest.fixture(scope="session")
def tiny_settings() -> Settings:
    return Settings(backbone="rgb", image_size=64, feature_size=8, width=64, depth=1, steps=5, batch_size=4)


@pytest.fixture(scope="session")
def tiny_images() -> np.ndarray:
    """24 smooth random images (24, 3, 64, 64) in [0, 1]."""
    rng = np.random.default_rng(0)
    images = rng.random((24, 3, 8, 8)).repeat(8, axis=2).repeat(8, axis=3) + 0.05 * rng.standard_normal((24, 3, 64, 64))
    return np.clip(images, 0, 1).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_detector(tiny_settings, tiny_images) -> Detector:
    """Fitted once for all tests; a test that changes it works on a copy."""
    return Detector(tiny_settings, device="cpu").fit(tiny_images, progress=None)


def write_photographs(folder: Path, n: int, seed: int = 0, defect: bool = False, masks: Path | None = None) -> Path:
    """Grey ramps of varying brightness, 40 x 30 pixels; a defect is a red square, which ``masks`` mark."""
    rng = np.random.default_rng(seed)
    for one in filter(None, (folder, masks)):
        one.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.linspace(60, 180, 40)[None, :, None] + rng.normal(0, 15) + rng.normal(0, 4, (30, 40, 3))
        mask = np.zeros((30, 40), bool)
        if defect:
            r, c = rng.integers(2, 20), rng.integers(2, 30)
            mask[r : r + 8, c : c + 8] = True
            pixels[mask] += (80, -60, -60)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
        if masks:
            Image.fromarray(mask).save(masks / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def photograph():
    return write_photographs


@pytest.fixture
def refused() -> Callable:
    """The call raises one error of this kind: a single line that holds all of the words."""

    def check(words: str, function: Callable, *arguments, kind: type[Exception] = InputError) -> None:
        with pytest.raises(kind) as caught:
            function(*arguments)
        text = str(caught.value)
        assert "\n" not in text and not [word for word in words.split() if word not in text], text

    return check
