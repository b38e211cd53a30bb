"""Defects of the seeded textures, with exact pixel masks.

How a mask stays exact: the defect-free photograph (surface, light, sensor noise) is drawn first and only then the
defect, which alters the surface alone. So `normal_image(c, rng)` is the defect-free twin of
`defective_image(c, kind, rng)` for equal states of `rng`, the two agree outside the mask, and the background cannot
tell the label.
"""

import math

import numpy as np
import scipy
from numpy.random import Generator

from .textures import PADS, SCENES, SIDE, TRACES, Scene, blend, bumps, cover, grid, lay_chip, noise, streaks, turned

DEFECTS: dict[str, tuple[str, ...]] = {
    "woven": ("missing_thread", "stain", "hole", "cut_paste", "snag"),
    "brushed_metal": ("scratch", "dent", "stain", "cross_brushing"),
    "speckled_stone": ("crack", "hole", "foreign_grain", "blur_patch"),
    "printed_board": ("missing_pad", "broken_trace", "bridge", "misprint", "scratch"),
}
_FILLED = 4  # pixels; a change that rounds away in a hole of at most this size still belongs to the defect
_FOREIGN = np.array([[57, 26, 18], [23, 35, 53], [25, 41, 25], [73, 58, 22]], np.float32) / 100  # colours of grains


def defective_image(category: str, kind: str, rng: Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """An image with one defect of DEFECTS, uint8 (size, size, 3), and its mask, bool (size, size).

    The mask holds the pixels whose value the defect changed, with enclosed holes of up to four pixels filled; a pasted
    patch counts whole.
    """
    scene = SCENES[category](rng, size)
    clean = scene.surface()
    spoiled = _spoiled(category, kind, scene, clean, rng)
    image = scene.photograph(spoiled)
    # cloth pasted on cloth may agree by chance, so that patch is read off the surface before it is rounded
    before, after = (clean, spoiled) if kind == "cut_paste" else (scene.photograph(clean), image)
    mask = (before != after).any(axis=2)
    holes, _ = scipy.ndimage.label(scipy.ndimage.binary_fill_holes(mask) & ~mask)
    filled = np.bincount(holes.ravel()) <= _FILLED
    filled[0] = False  # label 0 is everything that is no hole
    return image, mask | filled[holes]


def _ramp(field: np.ndarray, width: float) -> np.ndarray:
    """Smooth opacity (H, W): 0 where the field is negative, 1 from `width` on."""
    t = np.clip(field / width, 0, 1)
    return t * t * (3 - 2 * t)


def _blob(rng: Generator, size: int, low: float, high: float, at=None) -> np.ndarray:
    """A field (H, W): 1 at the middle of an irregular blob, 0 on its outline, negative outside.

    Its share of the image is drawn log-uniformly from `low` to `high`; `at` is its middle (y, x) in units.
    """
    area = math.exp(rng.uniform(math.log(low), math.log(high))) * SIDE**2
    cy, cx = (rng.uniform(0.15, 0.85, 2) * SIDE if at is None else at).tolist()
    y, x = grid(size)
    across, along = turned(y - cy, x - cx, rng.uniform(0, np.pi))
    stretch = rng.uniform(1.0, 1.5)
    across, along = across * stretch, along / stretch
    theta = np.linspace(-np.pi, np.pi, 128)
    waves = (rng.normal(0, 0.3 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5, 8))
    outline = math.sqrt(area / np.pi) * np.exp(sum(waves))
    return 1 - np.hypot(along, across) / np.interp(np.arctan2(across, along), theta, outline)


def _stroke(rng: Generator, size: int, length: float, width: float, wander: float, bends) -> np.ndarray:
    """Opacity (H, W) of a tapered line that strays sideways by about wander * length.

    `bends` are the numbers of bends along it, each kind half as strong as the one before.
    """
    cy, cx = (rng.uniform(0.3, 0.7, 2) * SIDE).tolist()
    y, x = grid(size)
    across, along = turned(y - cy, x - cx, rng.uniform(0, np.pi))
    place, knots = along / length + 0.5, np.linspace(0, 1, 256)  # 0 to 1 between the ends
    path = wander * sum(0.5**i * bumps(256, n) @ rng.standard_normal(n + 3) for i, n in enumerate(bends))
    sideways = across - length * np.interp(place, knots, path)
    distance = np.abs(sideways) / np.hypot(1, np.interp(place, knots, np.gradient(path, knots)))
    taper = np.sqrt(np.clip(4 * place * (1 - place), 0, 1))
    return cover(width / 2 * taper - distance, size) * (taper > 0)


def _relief(rng: Generator, height: np.ndarray) -> np.ndarray:
    """Shading (H, W) in [-1, 1] of a relief lit from a random side."""
    slope, _ = turned(*np.gradient(height), rng.uniform(0, 2 * np.pi))
    return slope / np.abs(slope).max()


def _stained(scene: Scene, clean: np.ndarray, rng: Generator) -> np.ndarray:
    """A dried spill, brownish and mottled, with a darker rim; the texture shows through in part."""
    field = _blob(rng, scene.size, 0.005, 0.045)
    rim = np.clip(1 - np.abs(field - 0.15) / 0.15, 0, 1)
    mottle = 0.7 + 0.3 * rim + 0.1 * noise(rng, scene.size, 24)
    opacity = np.clip(rng.uniform(0.55, 1) * _ramp(field, 0.25) * mottle, 0, 1)
    tint = np.array([0.62, 0.46, 0.30]) + rng.normal(0, 0.05, 3)
    return blend(clean, opacity, tint * (0.5 * clean + 0.5 * clean.mean(axis=(0, 1))))


def _spoiled(category: str, kind: str, scene: Scene, clean: np.ndarray, rng: Generator) -> np.ndarray:
    """The surface (H, W, 3) of a scene with one defect, from its defect-free surface `clean`."""
    size = scene.size
    match category, kind:
        case _, "stain":
            return _stained(scene, clean, rng)
        case "woven", "missing_thread":
            system, number = rng.integers(2), rng.integers(13, 29)
            middle, half = rng.uniform(14, 28), rng.uniform(2.5, 10)
            return scene.surface(lost=lambda k, yarn, v: (k == system) & (yarn == number) & (np.abs(v - middle) < half))
        case "woven", "hole":  # each yarn breaks off at its own place, so that frayed ends reach in
            field, reach = _blob(rng, size, 0.005, 0.03), rng.uniform(0, 0.6, (2, 64))
            return scene.surface(lost=lambda k, yarn, v: field > reach[k, yarn % 64])
        case "woven", "snag":  # weft yarns pulled aside by something sharp
            pull = np.clip(_blob(rng, size, 0.012, 0.035), 0, 1) ** 2
            return scene.surface(drag=rng.choice((-1, 1)) * rng.uniform(1.0, 1.8) * pull)
        case "woven", "cut_paste":  # cloth from the far side of the image, turned
            patch = _blob(rng, size, 0.006, 0.03) > 0
            middle = np.array(scipy.ndimage.center_of_mass(patch))
            source = np.stack(turned(*(np.nonzero(patch) - middle[:, None]), rng.uniform(0.4, 1.1)))
            source += (middle + 0.35 * size * np.sign(size / 2 - middle))[:, None]
            spoiled = clean.copy()
            for c in range(3):
                spoiled[patch, c] = scipy.ndimage.map_coordinates(clean[..., c], source, order=1, mode="mirror")
            return spoiled
        case "brushed_metal", "scratch":  # raw metal shines in it, one flank in the light and one in shadow
            line = _stroke(rng, size, rng.uniform(60, 180), rng.uniform(1.2, 2.6), 0.04, (2, 6))
            return clean * (1 + rng.uniform(0.12, 0.45) * (line + _relief(rng, line)))[..., None]
        case "brushed_metal", "dent":
            bowl = _ramp(_blob(rng, size, 0.01, 0.04), 1)
            return clean * (1 + rng.uniform(0.12, 0.4) * _relief(rng, bowl))[..., None]
        case "brushed_metal", "cross_brushing":
            across = streaks(rng, size, rng.choice((-1, 1)) * rng.uniform(0.5, 1.57))
            patch = rng.uniform(0.7, 1) * _ramp(_blob(rng, size, 0.012, 0.05), 0.3)
            return blend(clean, patch, scene.surface(rng.uniform(0.06, 0.1) * across))
        case "speckled_stone", "crack":
            line = _stroke(rng, size, rng.uniform(90, 200), rng.uniform(2.8, 4.8), 0.07, (3, 9, 27))
            return blend(clean, rng.uniform(0.75, 1) * line, 0.12)
        case "speckled_stone", "hole":  # where a chip fell out: dark, one wall in the light
            field = _blob(rng, size, 0.004, 0.02)
            inside = 0.2 + 0.2 * _relief(rng, _ramp(field, 0.8)) + 0.04 * noise(rng, size, 60)
            return blend(clean, _ramp(field, 0.12), inside[..., None])
        case "speckled_stone", "foreign_grain":
            spoiled = clean.copy()
            lay_chip(spoiled, rng, rng.uniform(12, 22), _FOREIGN[rng.integers(4)], margin=24)
            return spoiled
        case "speckled_stone", "blur_patch":  # polished until the grains run together
            sigma = rng.uniform(3.5, 6) * size / SIDE
            smooth = scipy.ndimage.gaussian_filter(clean, (sigma, sigma, 0), truncate=2)
            return blend(clean, _ramp(_blob(rng, size, 0.015, 0.05), 0.2), smooth)
        case "printed_board", "missing_pad":
            return scene.surface(no_pad=rng.integers(len(PADS)))
        case "printed_board", "broken_trace":  # burnt through: a gap in the copper within a scorched spot
            _, start, stop, _ = np.array(TRACES[rng.integers(16)])
            x, y = start + rng.uniform(0.15, 0.85) * (stop - start)
            field = _blob(rng, size, 0.003, 0.012, at=np.array([y, x]))
            scorch = rng.uniform(0.6, 1) * _ramp(field, 0.4)
            return blend(scene.surface(cut=_ramp(field, 0.3)), scorch, (0.08, 0.07, 0.04))
        case "printed_board", "bridge":  # solder that joins two or three neighbouring pads of a row
            first, span = 8 * rng.integers(3) + rng.integers(6), rng.integers(1, 3)
            ends = np.array([PADS[first][:2], PADS[first + span][:2]]) + rng.uniform(-2, 2, (2, 2))
            return scene.surface(solder=(*ends, rng.uniform(3.5, 6)))
        case "printed_board", "misprint":  # tilted, mirrored or shifted
            way, side = rng.integers(3), rng.choice((-1, 1), 2)
            matrix = np.array(turned(*np.eye(2), side[0] * rng.uniform(0.1, 0.3) * (way == 0)))
            matrix[1] *= -1 if way == 1 else 1
            shift = side * rng.uniform(4, 8, 2) * (way == 2)
            return scene.surface(misprint=(matrix, shift.reshape(2, 1, 1)))
        case "printed_board", "scratch":  # pale where the lacquer is scraped
            line = _stroke(rng, size, rng.uniform(60, 150), rng.uniform(1.6, 3.4), 0.04, (2, 6))
            return blend(clean, rng.uniform(0.5, 0.9) * line, (0.55, 0.62, 0.48))
    raise KeyError(f"{category} has no defect {kind}")
