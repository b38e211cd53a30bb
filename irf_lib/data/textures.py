"""Seeded surface textures and their defects: the images that ship with the project.

A texture without a fixed position (brushed metal) and an aligned object (a printed board). One function draws the scene
of each: a surface, the light on it and the sensor's noise.

Lengths are in units of 1/256 of the image side: pixels at the default size, and a smaller image shows the same kind of
surface at a lower resolution. A surface is float (H, W, 3) in about [0, 1], a field is float (H, W), and H = W = size.

How a defect's mask stays exact: the defect-free photograph (surface, light, sensor noise) is drawn first and only then
the defect, which alters the surface alone. So `normal_image(c, rng)` is the defect-free twin of
`defective_image(c, kind, rng)` for equal states of `rng`, the two agree outside the mask, and the background cannot
tell the label.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy  # its ndimage takes half a second to load, and does so when it is first used
from numpy.random import Generator

SIDE = 256  # units along the image side


@dataclass(frozen=True)
class Scene:
    """One photograph before the shutter opens: a surface, what the light does to it, what the sensor adds."""

    size: int
    light: np.ndarray  # (H, W, 3), multiplies the surface
    noise: np.ndarray  # (H, W, 3), in units of the surface
    surface: Callable[..., np.ndarray]  # no arguments: defect-free; keywords alter one thing, keep all else

    def photograph(self, surface: np.ndarray) -> np.ndarray:
        """The uint8 image (H, W, 3) of a surface (H, W, 3)."""
        # one precision for every surface, or untouched pixels could round apart
        exposed = surface.astype(np.float32) * self.light + self.noise
        return np.clip(255 * exposed + 0.5, 0, 255).astype(np.uint8)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel centres in units: y (H, 1) and x (1, W)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) * (SIDE / size)
    return centres[:, None], centres[None, :]


def turned(y: np.ndarray, x: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates (y, x) in axes turned by `turn` radians."""
    return math.cos(turn) * y - math.sin(turn) * x, math.cos(turn) * x + math.sin(turn) * y


def bumps(size: int, cells: int) -> np.ndarray:
    """`cells` smooth bumps along the side, (size, cells + 3); unit rows: white noise keeps its variance."""
    bumps = np.exp(-((grid(size)[0] * cells / SIDE - np.arange(-1, cells + 2)) ** 2) / 0.6)
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def noise(rng: Generator, size: int, cells: int) -> np.ndarray:
    """Smooth unit-variance Gaussian noise (H, W) that varies over about size / cells pixels."""
    basis = bumps(size, cells)
    return basis @ rng.standard_normal((cells + 3, cells + 3), np.float32) @ basis.T


def _lit(rng: Generator, size: int, spread: float, surface: Callable[..., np.ndarray], gloss=0.0) -> Scene:
    """The scene of a surface, with what varies between photographs: exposure, uneven light, cast, noise.

    `spread` scales the light in log units; `gloss` (H, W) is a reflection on top of it."""
    y, x = (c / SIDE - 0.5 for c in grid(size))
    slope_y, slope_x, exposure = rng.normal(0, (1.2, 1.2, 0.6)).tolist()
    light = np.exp(spread * (exposure + slope_y * y + slope_x * x + 0.3 * noise(rng, size, 2))) + gloss
    light = (light[..., None] * (1 + rng.normal(0, 0.012, 3))).astype(np.float32)
    return Scene(size, light, 0.008 * rng.standard_normal((size, size, 3), np.float32), surface)


def blend(under: np.ndarray, opacity: np.ndarray, paint: np.ndarray | tuple | float) -> np.ndarray:
    """`paint`, a colour or a surface, over the surface `under` with an opacity (H, W) in [0, 1]."""
    return under + opacity[..., None] * (np.asarray(paint, np.float32) - under)


def cover(depth: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel a shape covers, from the depth in units inside its outline, negative outside."""
    return np.clip(0.5 + depth * (size / SIDE), 0, 1)


def streaks(rng: Generator, size: int, turn: float) -> np.ndarray:
    """Streaks (H, W) of several lengths, of about unit variance, at `turn` radians to the rows."""
    n = int(1.45 * size)  # a square that covers the image at any angle
    canvas = sum(0.6 * rng.standard_normal((n, c + 3), np.float32) @ bumps(n, c).T for c in (4, 14, 60))
    canvas = scipy.ndimage.gaussian_filter1d(canvas, 0.6 * size / SIDE, axis=0)
    y, x = turned(*(np.mgrid[:size, :size].astype(np.float32) - size / 2), turn)
    return scipy.ndimage.map_coordinates(canvas, (y + n / 2, x + n / 2), order=1, mode="nearest")


def _metal(rng: Generator, size: int) -> Scene:
    grain = streaks(rng, size, rng.normal(0, 0.05))
    grain *= rng.uniform(0.06, 0.11) * (1 + 0.25 * noise(rng, size, 3))
    metal = rng.uniform(0.46, 0.56) * np.array([1.0, 1.0, 1.02])
    y, x = (c / SIDE - 0.5 for c in grid(size))
    band = (x + rng.normal(0, 0.25) * y - rng.uniform(-0.6, 0.6)) / rng.uniform(0.2, 0.4)
    gloss = rng.uniform(0.1, 0.4) * np.exp(-(band**2))  # the lamp's reflection, somewhere
    return _lit(rng, size, 0.16, lambda streaks=grain: metal * (1 + streaks)[..., None], gloss)


# ---- printed board ----
# One layout for all boards. A shape is (x, y, half width, half height, rounding) and may stand at an angle.

_PINS = [(86 + 12 * k, y, 2.4, 7.0, 1.0) for y in (72, 152) for k in range(8)]
_HEADER = [(36 + 26.3 * k, 224, 0, 0, 8.0) for k in range(8)]
_ENDS = [(x, y + d, 8.0, 5.0, 1.0) for x in (30, 228) for y in (84, 140) for d in (-14, 14)]
PADS = _PINS + _HEADER + _ENDS
_PARTS = [(x, y, 7.0, 12.0, 1.0) for x in (30, 228) for y in (84, 140)]
_CHIP = (128, 112, 46.0, 30.0, 2.0)
_VIAS = [(40 + 25 * k, 22 + 12 * (k % 2)) for k in range(8)] + [(x, y) for x in (30, 228) for y in (112, 186)]
TRACES = [[(86 + 12 * k, 72), (86 + 12 * k, 56), (40 + 25 * k, 44), _VIAS[k]] for k in range(8)]
TRACES += [[p[:2], (p[0], 168), (h[0], 200), h[:2]] for p, h in zip(_PINS[8:], _HEADER, strict=True)]
TRACES += [[(x, 98), (x, 186)] for x in (30, 228)]
_TIN, _GOLD, _LAMINATE = np.array([[0.74, 0.74, 0.70], [0.72, 0.60, 0.34], [0.52, 0.44, 0.24]])
_PRINT = """
### ##  ###     ### ###
 #  # # #         # #
 #  ##  ##  ### ### ###
 #  # # #       #   # #
### # # #       ### ###

### # #  #  ### ### ### ###
# # # # ##  # #   # # #   #
# # ###  #  ###  ## ###  ##
# #   #  #  # #   #   #   #
###   # ### ### ### ### ###"""
_DOTS = np.array([[c == "#" for c in row.ljust(27)] for row in _PRINT.split("\n")[1:]], np.float32)
_DOT = 2.8  # units a printed dot


def _board(rng: Generator, size: int) -> Scene:
    turn, shift = rng.normal(0, 0.005), rng.normal(0, 0.8, 2)
    # layout coordinates of each pixel: every board lies a little askew in its tray
    by, bx = turned(*(c - 128 for c in grid(size)), turn)
    by, bx = by + float(128 + shift[0]), bx + float(128 + shift[1])
    lacquer = np.array([0.07, 0.31, 0.17], np.float32) * (1 + 0.03 * rng.standard_normal(3, np.float32))
    grain = 1 + 0.03 * noise(rng, size, 100) + 0.03 * noise(rng, size, 8)
    shine = rng.uniform(0.94, 1.06, len(PADS))
    ink, ink_shift = rng.uniform(0.72, 0.85), rng.normal(0, 0.3, (2, 1, 1))

    def window(cx: float, cy: float, reach: float) -> tuple[slice, ...]:
        """The pixels within `reach` of a place in the layout, with room for the askew pose."""
        ends = [[(c - reach - 6) * size / SIDE, (c + reach + 6) * size / SIDE] for c in (cy, cx)]
        return tuple(slice(max(int(low), 0), max(int(high), 0)) for low, high in ends)

    def draw(canvas: np.ndarray, shape: tuple, colour: tuple | float, angle: float = 0.0) -> None:
        """Paint one shape, in place, on the few pixels that it may reach."""
        cx, cy, half_width, half_height, rounding = shape
        w = window(cx, cy, max(half_width, half_height) + rounding)
        dy, dx = turned(by[w] - cy, bx[w] - cx, angle)
        outside = np.hypot(np.maximum(abs(dx) - half_width, 0), np.maximum(abs(dy) - half_height, 0))
        opacity = cover(rounding - outside, size)
        canvas[w] = blend(canvas[w], opacity, np.multiply(colour, grain[w][..., None]))

    def draw_line(canvas: np.ndarray, start: tuple, stop: tuple, radius: float, colour: float) -> None:
        (x0, y0), (x1, y1) = start, stop
        shape = ((x0 + x1) / 2, (y0 + y1) / 2, math.hypot(x1 - x0, y1 - y0) / 2, 0, radius)
        draw(canvas, shape, colour, math.atan2(y1 - y0, x1 - x0))

    copper = np.zeros((size, size, 1), np.float32)
    for trace in TRACES:
        for start, stop in pairwise(trace):
            draw_line(copper, start, stop, 2.2, 1.0)
    copper = np.clip(copper[..., 0], 0, 1)

    def surface(no_pad=None, cut=0.0, solder=None, misprint=None) -> np.ndarray:
        """With pad `no_pad` torn off; copper etched away by `cut` (H, W); `solder` (start, stop, radius); the
        print moved by `misprint`, a matrix (2, 2) and a shift (2, 1, 1) of (y, x) about the chip's middle."""
        board = blend(lacquer * grain[..., None], copper * (1 - cut), lacquer * (1.8, 1.5, 1.6))
        for via in _VIAS:
            draw(board, (*via, 0, 0, 5), _GOLD)
            draw(board, (*via, 0, 0, 2.3), 0.05)
        for k, pad in enumerate(PADS):
            draw(board, pad, shine[k] * _TIN)
            if k == no_pad:  # some lacquer came off with it
                draw(board, (*pad[:4], pad[4] + 2.5), _LAMINATE)
        for k, part in enumerate(_PARTS):
            draw(board, part, 0.13 if k < 2 else (0.55, 0.42, 0.28))
        if solder is not None:
            start, stop, radius = solder
            draw_line(board, start, stop, radius, 0.6)
            up = (0, -radius / 3)
            draw_line(board, start + up, stop + up, radius / 3, 0.9)  # its highlight
        draw(board, _CHIP, 0.1)
        draw(board, (86, 136, 0, 0, 2.5), 0.2)
        w = window(*_CHIP[:3])
        place = np.stack([by[w] - 112, bx[w] - 128]) + ink_shift
        if misprint is not None:
            place = np.tensordot(misprint[0], place, 1) + misprint[1]
        place = place / _DOT + (np.array(_DOTS.shape).reshape(2, 1, 1) - 1) / 2
        dots = scipy.ndimage.map_coordinates(_DOTS, place, order=1, mode="constant")
        board[w] = blend(board[w], np.clip(2 * dots - 0.4, 0, 1), ink)
        return board

    return _lit(rng, size, 0.09, surface)


SCENES = {"brushed_metal": _metal, "printed_board": _board}


def normal_image(category: str, rng: Generator, size: int = 256) -> np.ndarray:
    """A defect-free image, uint8 (size, size, 3), size >= 64."""
    scene = SCENES[category](rng, size)
    return scene.photograph(scene.surface())


# ---- defects ----

DEFECTS: dict[str, tuple[str, ...]] = {
    "brushed_metal": ("scratch", "dent", "stain", "cross_brushing"),
    "printed_board": ("missing_pad", "broken_trace", "bridge", "misprint", "scratch"),
}
_FILLED = 4  # pixels; a change that rounds away in a hole of at most this size still belongs to the defect


def defective_image(category: str, kind: str, rng: Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """An image with one defect of DEFECTS, uint8 (size, size, 3), and its mask, bool (size, size).

    The mask holds the pixels whose value the defect changed, with enclosed holes of up to four pixels filled."""
    scene = SCENES[category](rng, size)
    clean = scene.surface()
    image = scene.photograph(_spoiled(category, kind, scene, clean, rng))
    mask = (scene.photograph(clean) != image).any(axis=2)
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

    Its share of the image is drawn log-uniformly from `low` to `high`; `at` is its middle (y, x) in units."""
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


def _stroke(rng: Generator, size: int, length: float, width: float) -> np.ndarray:
    """Opacity (H, W) of a tapered line that strays sideways by about 0.04 * length, in wide bends and smaller ones."""
    cy, cx = (rng.uniform(0.3, 0.7, 2) * SIDE).tolist()
    y, x = grid(size)
    across, along = turned(y - cy, x - cx, rng.uniform(0, np.pi))
    place, knots = along / length + 0.5, np.linspace(0, 1, 256)  # 0 to 1 between the ends
    path = 0.04 * sum(0.5**i * bumps(256, n) @ rng.standard_normal(n + 3) for i, n in enumerate((2, 6)))
    sideways = across - length * np.interp(place, knots, path)
    distance = np.abs(sideways) / np.hypot(1, np.interp(place, knots, np.gradient(path, knots)))
    taper = np.sqrt(np.clip(4 * place * (1 - place), 0, 1))
    return cover(width / 2 * taper - distance, size) * (taper > 0)


def _relief(rng: Generator, height: np.ndarray) -> np.ndarray:
    """Shading (H, W) in [-1, 1] of a relief lit from a random side."""
    slope, _ = turned(*np.gradient(height), rng.uniform(0, 2 * np.pi))
    return slope / np.abs(slope).max()


def _spoiled(category: str, kind: str, scene: Scene, clean: np.ndarray, rng: Generator) -> np.ndarray:
    """The surface (H, W, 3) of a scene with one defect, from its defect-free surface `clean`."""
    size = scene.size
    match category, kind:
        case "brushed_metal", "scratch":  # raw metal shines in it, one flank in the light and one in shadow
            line = _stroke(rng, size, rng.uniform(60, 180), rng.uniform(1.2, 2.6))
            return clean * (1 + rng.uniform(0.12, 0.45) * (line + _relief(rng, line)))[..., None]
        case "brushed_metal", "dent":
            bowl = _ramp(_blob(rng, size, 0.01, 0.04), 1)
            return clean * (1 + rng.uniform(0.12, 0.4) * _relief(rng, bowl))[..., None]
        case "brushed_metal", "stain":  # a dried spill, mottled, with a darker rim; the texture shows through in part
            field = _blob(rng, size, 0.005, 0.045)
            rim = np.clip(1 - np.abs(field - 0.15) / 0.15, 0, 1)
            mottle = 0.7 + 0.3 * rim + 0.1 * noise(rng, size, 24)
            opacity = np.clip(rng.uniform(0.55, 1) * _ramp(field, 0.25) * mottle, 0, 1)
            tint = np.array([0.62, 0.46, 0.30]) + rng.normal(0, 0.05, 3)
            return blend(clean, opacity, tint * (0.5 * clean + 0.5 * clean.mean(axis=(0, 1))))
        case "brushed_metal", "cross_brushing":
            across = streaks(rng, size, rng.choice((-1, 1)) * rng.uniform(0.5, 1.57))
            patch = rng.uniform(0.7, 1) * _ramp(_blob(rng, size, 0.012, 0.05), 0.3)
            return blend(clean, patch, scene.surface(rng.uniform(0.06, 0.1) * across))
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
            line = _stroke(rng, size, rng.uniform(60, 150), rng.uniform(1.6, 3.4))
            return blend(clean, rng.uniform(0.5, 0.9) * line, (0.55, 0.62, 0.48))
    raise KeyError(f"{category} has no defect {kind}")
