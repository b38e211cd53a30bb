"""CutPaste (Li et al. 2021, arXiv 2104.04015): defects made from good images, for choices that must not see a label.

A rectangle of the image is pasted somewhere else in it, a little lighter or darker: a patch of 1 to 4 % of the image
(smaller than the paper's, to be harder), or a turned scar of 2 to 16 by 10 to 25 pixels in 256, as in the paper. They
only tell settings apart by whether a local irregularity shows.
"""

import numpy as np
from scipy import ndimage

KINDS = ("patch", "scar")


def cut_paste(images: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spoiled copies of ``images`` (N, 3, H, W) in [0, 1], and where they differ: masks (N, H, W) bool. ``kind`` is one
    of KINDS. Each image has its own draws, so that the first n do not depend on how many follow."""
    copies, (height, width) = np.array(images, dtype=np.float32), images.shape[2:]
    y, x = np.mgrid[:height, :width]
    for image, rng in zip(copies, np.random.default_rng(seed).spawn(len(images)), strict=True):
        if kind == "patch":
            area, aspect = rng.uniform(0.01, 0.04) * height * width, np.exp(rng.uniform(-1.2, 1.2))
            size, turn = (np.sqrt(area * aspect), np.sqrt(area / aspect)), 0.0
        else:
            unit = min(height, width) / 256
            size, turn = (rng.uniform(2, 16) * unit, rng.uniform(10, 25) * unit), rng.uniform(-np.pi / 4, np.pi / 4)
        source, target = rng.uniform(0.15, 0.85, (2, 2)) * (height, width)
        light = rng.uniform(0.9, 1.1)
        v = np.cos(turn) * (y - target[0]) - np.sin(turn) * (x - target[1])  # coordinates in the pasted rectangle
        u = np.sin(turn) * (y - target[0]) + np.cos(turn) * (x - target[1])
        inside = (np.abs(v) <= size[0] / 2) & (np.abs(u) <= size[1] / 2)
        from_y = np.clip(np.round(source[0] + v[inside]), 0, height - 1).astype(int)
        from_x = np.clip(np.round(source[1] + u[inside]), 0, width - 1).astype(int)
        image[:, inside] = np.clip(image[:, from_y, from_x] * light, 0, 1)
    return copies, np.abs(copies - images).max(axis=1) > 1 / 255


def stain(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`cut_paste`: each copy has one smooth random blob, 6 to 16 % of the image wide, that darkens or lightens
    it with a tint. Nothing is pasted, so there is no edge. Bright places are darkened more often than dark ones."""
    copies, (height, width) = np.array(images, dtype=np.float32), images.shape[2:]
    y, x = np.mgrid[:height, :width] / min(height, width)
    for image, rng in zip(copies, np.random.default_rng(seed).spawn(len(images)), strict=True):
        (v, u), radius = rng.uniform(0.15, 0.85, 2) * (y.max(), x.max()), rng.uniform(0.03, 0.08)
        rough = ndimage.gaussian_filter(rng.standard_normal((height, width)), 0.02 * min(height, width))
        blob = np.clip(1 + rough / rough.std() / 3 - ((y - v) ** 2 + (x - u) ** 2) / radius**2, 0, 1)
        sign = 1 if rng.uniform() > np.average(image.mean(axis=0), weights=blob + 1e-9) else -1
        colour = sign * rng.uniform(0.15, 0.4) + rng.uniform(-0.1, 0.1, 3)
        image[:] = np.clip(image + colour[:, None, None] * blob, 0, 1)
    return copies, np.abs(copies - images).max(axis=1) > 1 / 255
