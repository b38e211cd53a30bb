"""Seeded surface textures: the images that ship with the project. Their defects are in texture_defects.py.

Three textures without a fixed position (woven cloth, brushed metal, speckled stone) and one aligned object (a printed
board). One function draws the scene of each: a surface, the light on it and the sensor's noise.

Lengths are in units of 1/256 of the image side: pixels at the default size, and a smaller image shows the same kind of
surface at a lower resolution. A surface is float (H, W, 3) in about [0, 1], a field is float (H, W), and H = W = size.
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

    `spread` scales the light in log units; `gloss` (H, W) is a reflection on top of it.
    """
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


def _woven(rng: Generator, size: int) -> Scene:
    """Plain weave: blue-grey warp, cream weft."""
    pitch, (y, x) = SIDE / 24 * rng.uniform(0.94, 1.06), grid(size)
    v, u = turned(y / pitch, x / pitch, rng.normal(0, 0.03))
    # u counts warp yarns and v weft yarns, from about 8 so that none is negative; no cloth lies straight
    u += rng.uniform(8, 10) + 0.18 * noise(rng, size, 5)
    v += rng.uniform(8, 10) + 0.18 * noise(rng, size, 5)
    dyes = np.array([[0.36, 0.43, 0.56], [0.74, 0.70, 0.62]], np.float32)
    dyes *= 1 + 0.02 * rng.standard_normal((2, 3), np.float32)
    # a row per yarn: thick and thin places along it, on top of its own thickness
    slubs = rng.standard_normal((2, 64, 256), np.float32)
    slubs = 3.2 * scipy.ndimage.gaussian_filter1d(slubs, 6, axis=2, mode="wrap")
    slubs += 0.7 * rng.standard_normal((2, 64, 1), np.float32)

    def surface(drag=0.0, lost: Callable[..., np.ndarray] | None = None) -> np.ndarray:
        """`drag` (H, W) moves weft yarns, in yarns; `lost(k, yarn, along)`: where system k has gaps."""
        heights, paints = [], []
        for k, (across, along) in enumerate(((u, v + drag), (v + drag, u))):
            yarn = across.astype(int)
            slub = slubs[k, yarn % 64, (4 * along).astype(int) % 256]
            across = (across - yarn - 0.5) / (0.45 + 0.025 * slub)
            bulge = np.sqrt(np.clip(1 - across**2, 0, 1))
            lift = (1 - 2 * k) * np.cos(np.pi * (along - 0.5 + yarn))  # over, under, over, ...
            gone = bulge <= 0 if lost is None else (bulge <= 0) | lost(k, yarn, along)
            heights.append(np.where(gone, -2, bulge + lift))
            twist = np.cos(2 * np.pi * (3 * along + 0.8 * across))  # the fibres' slant
            shade = (0.35 + 0.65 * bulge) * (0.82 + 0.18 * lift) * (1 + 0.07 * slub + 0.06 * twist)
            paints.append(shade[..., None] * dyes[k])
        cloth = np.where((heights[0] > heights[1])[..., None], *paints)
        return np.where((np.maximum(*heights) < -1.5)[..., None], 0.08, cloth)  # dark ground between them

    return _lit(rng, size, 0.12, surface)


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


_MINERALS = np.array([[78, 76, 73], [33, 31, 31], [56, 45, 39], [49, 51, 52], [67, 61, 52]], np.float32) / 100


def lay_chip(surface: np.ndarray, rng: Generator, radius: float, colour: np.ndarray, margin=0.0) -> None:
    """Lay an angular chip into the surface, in place, its middle at least `margin` units off the border."""
    size, middle = len(surface), rng.uniform(margin, SIDE - margin, 2)
    ends = (middle + [[-1.5 * radius], [1.5 * radius]]) * size / SIDE
    rows, columns = (slice(low, high + 2) for low, high in ends.clip(0).astype(int).T)
    y, x = grid(size)
    dy, dx = y[rows] - middle[0], x[:, columns] - middle[1]
    facing = np.arange(6)[:, None, None] * np.pi / 3 + rng.uniform(-0.4, 0.4, (6, 1, 1)) + rng.uniform(0, 1)
    sides = radius * rng.uniform(0.55, 1.1, (6, 1, 1))
    depth = (sides - np.cos(facing) * dx - np.sin(facing) * dy).min(axis=0)
    surface[rows, columns] = blend(surface[rows, columns], cover(depth, size), colour)


def _stone(rng: Generator, size: int) -> Scene:
    """Terrazzo: chips of five minerals from 2 to 13 units in a speckled binder."""
    minerals = (_MINERALS * (1 + rng.normal(0, 0.03, (5, 3)))).astype(np.float32)
    binder = (np.array([0.63, 0.61, 0.58]) * (1 + rng.normal(0, 0.02, 3))).astype(np.float32)
    speckle = noise(rng, size, 80)
    stone = binder * (1 + 0.03 * noise(rng, size, 12) + 0.05 * noise(rng, size, 120))[..., None]
    stone = blend(stone, np.clip(2.5 * (speckle - 1.4), 0, 1), minerals[1])
    stone = blend(stone, np.clip(2.5 * (-speckle - 1.5), 0, 1), minerals[0])
    for radius in np.geomspace(13, 2.2, int(rng.uniform(130, 170))):  # the small over the large
        lay_chip(stone, rng, radius, minerals[rng.integers(5)] * rng.normal(1, 0.06))
    return _lit(rng, size, 0.14, lambda: stone)


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


SCENES = {"woven": _woven, "brushed_metal": _metal, "speckled_stone": _stone, "printed_board": _board}


def normal_image(category: str, rng: Generator, size: int = 256) -> np.ndarray:
    """A defect-free image, uint8 (size, size, 3), size >= 64."""
    scene = SCENES[category](rng, size)
    return scene.photograph(scene.surface())
