"""What several rooms' tests share: a detector that is small enough to fit in a second."""

import numpy as np
import pytest
import torch

from irf_lib import Detector, Settings

torch.set_num_threads(1)  # the networks are tiny, and on a busy machine two threads wait for each other


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
