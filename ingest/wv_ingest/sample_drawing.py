"""Draws the pictures of the sample data: one object of a known class, or something of no class at all.

Every picture is a pure function of its random generator, its class and its size. What makes a class is its outline, the
pattern on it and, most of the time, its hue; background, position, scale, rotation, clutter, occlusion, light, blur
and noise say nothing about it. This file knows no files, labels or lists: `sample_data` decides what is drawn and where
it lies.
"""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Canvas = NDArray[np.floating[Any]]
"""(H, W, 3) float32, 0 … 255; as a colour (3,)."""
Mask = NDArray[np.floating[Any]]
"""(H, W) float32, 0 … 1."""
Points = NDArray[np.float64]
"""(P, 2) float64: a polygon around (0, 0) of radius about 1, x to the right, y down."""

_SUPERSAMPLING = 2
_HUE_TRUST = 0.92  # share of a class's pictures in its own hue


# Outlines


def _circle(points: int = 40) -> Points:
    angles = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _ring() -> Points:
    rim = np.vstack([_circle(), _circle()[:1]])
    return np.vstack([rim, 0.52 * rim[::-1]])  # the hole is the rim again, backwards


def _crescent() -> Points:
    angles = np.linspace(0.85, 2 * math.pi - 0.85, 36)
    outer = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inner = outer[::-1] * (0.45, 0.8) + (0.36, 0.0)
    points: Points = np.vstack([outer, inner])
    points[:, 0] += 0.15
    return points


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 50, endpoint=False)
    lobes = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -lobes / 16], axis=1)


def _drop() -> Points:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return np.stack([0.95 * np.sin(t) * np.abs(np.sin(t / 2)) ** 1.5, -np.cos(t)], axis=1)


def _petals(petals: int, depth: float, points: int = 70, square: bool = False) -> Points:
    angles = np.linspace(0, 2 * math.pi, points, endpoint=False)
    waves = np.cos(petals * angles)
    return _circle(points) * (1 - depth + depth * (np.sign(waves) if square else waves))[:, None]


def _corners(text: str) -> Points:
    """Corners in tenths: "0,-10 9,8 -9,8" is a triangle."""
    return np.array([[int(number) / 10 for number in corner.split(",")] for corner in text.split()])


OUTLINES: dict[str, Points] = {
    "disc": _circle(),
    "ring": _ring(),
    "crescent": _crescent(),
    "heart": _heart(),
    "drop": _drop(),
    "flower": _petals(5, 0.28),
    "gear": _petals(8, 0.13, points=112, square=True),
    "star": _circle(10) * np.tile([1.05, 0.42], 5)[:, None],
    "cross": _corners("-3,-10 3,-10 3,-3 10,-3 10,3 3,3 3,10 -3,10 -3,3 -10,3 -10,-3 -3,-3"),
    "square": _corners("-8,-8 8,-8 8,8 -8,8"),
    "hexagon": _circle(6),
    "triangle": _corners("0,-10 10,8 -10,8"),
    "arrow": _corners("10,0 1,-9 1,-3 -10,-3 -10,3 1,3 1,9"),
    "bolt": _corners("4,-10 -6,2 -1,2 -4,10 6,-2 1,-2"),
    "hourglass": _corners("-8,-10 8,-10 1,0 8,10 -8,10 -1,0"),
    "key": _corners("-10,-5 -6,-8 -1,-5 0,-2 10,-2 10,6 8,6 8,2 5,2 5,5 3,5 3,2 0,2 -1,5 -6,8 -10,5"),
}
"""Neighbours resemble each other: a search engine mixes them up."""
PATTERNS = ("plain", "striped", "dotted", "chequered")
MAX_CLASSES = len(OUTLINES) * len(PATTERNS)
_NAMES = tuple(OUTLINES)


# What the sample data asks for


def class_look(class_id: int) -> tuple[str, str, float]:
    """Outline, pattern and hue (0 … 1) of a class in 0 … MAX_CLASSES − 1; no two classes share outline and pattern."""
    shape = class_id % len(_NAMES)
    pattern = (class_id // len(_NAMES) + shape) % len(PATTERNS)
    return _NAMES[shape], PATTERNS[pattern], (shape * 5 % len(_NAMES)) / len(_NAMES)


def draw_object(rng: np.random.Generator, class_id: int, width: int, height: int) -> Image.Image:
    """An RGB picture of `width` × `height` pixels that shows one object of the class, amid what the web adds to it."""
    canvas = _background(rng, width, height)
    for _ in range(rng.integers(0, 3)):
        _paste_clutter(rng, canvas)
    outline, pattern, hue = class_look(class_id)
    if rng.random() > _HUE_TRUST:
        hue = rng.random()
    _paste_object(rng, canvas, outline, pattern, hue)
    if rng.random() < 0.2:
        _paste_clutter(rng, canvas, largest=0.15)
    return _photograph(rng, canvas)


def draw_outlier(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An RGB picture that shows an object of no class: a texture, a page of text, a chart, scraps or a blob."""
    canvas = _background(rng, width, height)
    kind = rng.integers(5)
    if kind == 0:
        _paste_texture(rng, canvas)
    elif kind == 1:
        _paste_page(rng, canvas)
    elif kind == 2:
        _paste_chart(rng, canvas)
    elif kind == 3:
        for _ in range(rng.integers(8, 16)):
            _paste_clutter(rng, canvas)
    else:
        _paste_polygon(canvas, _blob(rng), _random_colour(rng), *_place(rng, canvas, 0.3, 0.46))
        for _ in range(rng.integers(0, 4)):
            _paste_clutter(rng, canvas)
    return _photograph(rng, canvas)


# Light and camera


def _photograph(rng: np.random.Generator, canvas: Canvas) -> Image.Image:
    """Light, noise and blur of a camera; 8-bit RGB."""
    contrast, brightness = rng.uniform(0.75, 1.15), rng.uniform(-20, 20)
    canvas = (canvas - 128) * contrast + (128 + brightness)
    canvas *= rng.uniform(0.9, 1.1, size=3).astype(np.float32)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(2, 12)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    blur = rng.uniform(-0.6, 1.0)
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else image


# Backgrounds


def _random_colour(rng: np.random.Generator) -> Canvas:
    """(3,) float32, 0 … 255."""
    return _colour(rng.random(), rng.uniform(0.0, 0.6), rng.uniform(0.15, 0.95))


def _colour(hue: float, saturation: float, value: float) -> Canvas:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32) * 255


def _grid(width: int, height: int) -> tuple[Mask, Mask]:
    """Pixel coordinates x (1, W) and y (H, 1), float32."""
    return np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]


def _cloud(rng: np.random.Generator, width: int, height: int, cells: int) -> Mask:
    """Smooth noise of `cells` × `cells` bumps, (H, W) in 0 … 1."""
    bumps = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(bumps.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _wave(rng: np.random.Generator, width: int, height: int, longest: float) -> Mask:
    """Parallel waves of random direction and a length of 5 … `longest` pixels, (H, W) in 0 … 1."""
    x, y = _grid(width, height)
    angle, length = rng.uniform(0, math.pi), rng.uniform(5, longest)
    step = 2 * math.pi / length
    phase = rng.uniform(0, 2 * math.pi)
    return 0.5 + 0.5 * np.sin(step * (math.cos(angle) * x + math.sin(angle) * y) + phase)


def _background(rng: np.random.Generator, width: int, height: int) -> Canvas:
    one, other = _random_colour(rng), _random_colour(rng)
    kind = rng.integers(4)
    if kind == 0:  # studio: nearly plain
        other = 0.7 * one + 0.3 * other
        mix = _wave(rng, width, height, longest=400)
    elif kind == 1:  # a gradient
        mix = _wave(rng, width, height, longest=250)
    elif kind == 2:  # out of focus
        mix = _cloud(rng, width, height, cells=int(rng.integers(3, 9)))
    else:  # a wall, a fence, a lawn
        mix = _wave(rng, width, height, longest=22) * 0.5 + _cloud(rng, width, height, cells=14) * 0.4
    return one + mix[:, :, None] * (other - one)


# Things in front of the background


def _place(
    rng: np.random.Generator, canvas: Canvas, smallest: float, largest: float
) -> tuple[float, float, float, float]:
    """Centre x, y, radius (pixels; shares of the shorter side) and rotation (radians) of a thing in the picture."""
    height, width = canvas.shape[:2]
    radius = rng.uniform(smallest, largest) * min(width, height)
    reach = 0.85 * radius
    x = rng.uniform(min(reach, width / 2), max(width - reach, width / 2))
    y = rng.uniform(min(reach, height / 2), max(height - reach, height / 2))
    return x, y, radius, rng.uniform(-0.4, 0.4)


def _polygon_mask(points: Points, width: int, height: int) -> Mask:
    """Coverage of a polygon (P, 2) in pixels, smooth at its edges."""
    drawing = Image.new("L", (_SUPERSAMPLING * width, _SUPERSAMPLING * height))
    ImageDraw.Draw(drawing).polygon((points * _SUPERSAMPLING).ravel().tolist(), fill=255)
    return np.asarray(drawing.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def _paste_polygon(
    canvas: Canvas, outline: Points, colour: Canvas, x: float, y: float, radius: float, angle: float
) -> None:
    """Lay one colour, (3,) or (H, W, 3), on the canvas where the outline covers it."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    mask = _polygon_mask(outline @ turn * radius + (x, y), canvas.shape[1], canvas.shape[0])[:, :, None]
    canvas += mask * (colour - canvas)


def _paste_object(rng: np.random.Generator, canvas: Canvas, outline: str, pattern: str, hue: float) -> None:
    x, y, radius, angle = _place(rng, canvas, 0.38, 0.5)
    hue += rng.normal(0, 0.035)
    light = _colour(hue, rng.uniform(0.45, 0.9), rng.uniform(0.65, 1.0))
    dark = _colour(hue + rng.normal(0, 0.04), rng.uniform(0.5, 1.0), rng.uniform(0.15, 0.45))
    mix = _pattern(rng, pattern, canvas, x, y, radius, angle)
    points = OUTLINES[outline] * rng.uniform(0.85, 1.15, size=2) + rng.normal(0, 0.025, OUTLINES[outline].shape)
    if rng.random() < 0.5:
        points *= (-1, 1)
    if rng.random() < 0.5:  # a rim
        _paste_polygon(canvas, points * 1.1, _colour(rng.random(), 0.3, rng.uniform(0.0, 1.0)), x, y, radius, angle)
    _paste_polygon(canvas, points, light + mix[:, :, None] * (dark - light), x, y, radius, angle)


def _pattern(
    rng: np.random.Generator, pattern: str, canvas: Canvas, x: float, y: float, radius: float, angle: float
) -> Mask:
    """Share of the dark colour, (H, W) in 0 … 1, in the object's own frame."""
    across, down = _grid(canvas.shape[1], canvas.shape[0])
    across, down = (across - x) / radius, (down - y) / radius
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * across + sin * down, cos * down - sin * across
    pitch = math.pi * rng.uniform(1.9, 2.6)
    if pattern == "striped":
        ripple = np.sin(pitch * v)
    elif pattern == "dotted":
        ripple = np.cos(pitch * u) + np.cos(pitch * v) - 0.6
    elif pattern == "chequered":
        ripple = np.sin(pitch * u) * np.sin(pitch * v) * 2
    else:
        return np.broadcast_to(0.35 + 0.2 * u, canvas.shape[:2])
    return np.clip(0.5 + 2 * ripple, 0, 1)


def _blob(rng: np.random.Generator) -> Points:
    """A closed curve without meaning, of radius about 1."""
    angles = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    radius: NDArray[np.float64] = np.full(36, 0.8)
    for wave in (1, 2, 3, 4):
        radius += rng.uniform(0.05, 0.45) / wave * np.cos(wave * angles + rng.uniform(0, 2 * math.pi))
    return _circle(36) * radius[:, None]


def _paste_clutter(rng: np.random.Generator, canvas: Canvas, largest: float = 0.25) -> None:
    """One scrap: a bar, a splinter or a blob, smaller than an object."""
    kind = rng.integers(3)
    if kind == 0:
        half = rng.uniform(0.04, 0.16)
        scrap = np.array([(-2.2, -half), (2.2, -half), (2.2, half), (-2.2, half)])
    elif kind == 1:
        scrap = rng.uniform(-1, 1, (int(rng.integers(3, 6)), 2))
    else:
        scrap = _blob(rng)
    height, width = canvas.shape[:2]
    radius = rng.uniform(0.05, largest) * min(width, height)
    x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
    _paste_polygon(canvas, scrap, _random_colour(rng), x, y, radius, angle)


# Pictures of nothing that was searched for


def _paste_texture(rng: np.random.Generator, canvas: Canvas) -> None:
    height, width = canvas.shape[:2]
    mix = _wave(rng, width, height, longest=30)
    if rng.random() < 0.7:
        mix = mix * _wave(rng, width, height, longest=30) + _cloud(rng, width, height, cells=20) * 0.4
    one, other = _random_colour(rng), _random_colour(rng)
    canvas[:] = one + mix[:, :, None] * (other - one)


def _paste_page(rng: np.random.Generator, canvas: Canvas) -> None:
    """Lines of little bars, as letters and words look from afar."""
    height, width = canvas.shape[:2]
    drawing = Image.new("L", (_SUPERSAMPLING * width, _SUPERSAMPLING * height))
    pen = ImageDraw.Draw(drawing)
    size = int(rng.integers(6, 18))
    for top in range(int(rng.integers(2, 12)), drawing.height - size, size + int(rng.integers(3, 10))):
        left = int(rng.integers(2, 16))
        while left < drawing.width - size:
            for _ in range(int(rng.integers(2, 9))):
                drop = int(rng.integers(0, size // 2))
                pen.rectangle((left, top + drop, left + max(1, size // 5), top + size), fill=255)
                left += max(2, size // 3)
            left += size
    ink = np.asarray(drawing.reduce(_SUPERSAMPLING), dtype=np.float32)[:, :, None] / 255
    paper = _colour(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.75, 1.0))
    canvas[:] = paper + rng.uniform(0, 0.3) * (canvas - paper)
    canvas += ink * (_colour(rng.random(), 0.6, rng.uniform(0, 0.4)) - canvas)


def _paste_chart(rng: np.random.Generator, canvas: Canvas) -> None:
    """Bars on a base line."""
    height, width = canvas.shape[:2]
    bars = int(rng.integers(3, 9))
    colour = _random_colour(rng)
    for bar, value in enumerate(rng.uniform(0.1, 0.85, bars)):
        left = width * (0.08 + 0.86 * bar / bars)
        top, right, base = height * (0.92 - value), left + 0.6 * width / bars, height * 0.92
        corners = np.array([(left, top), (right, top), (right, base), (left, base)])
        canvas += _polygon_mask(corners, width, height)[:, :, None] * (colour - canvas)
        if rng.random() < 0.3:
            colour = _random_colour(rng)
