"""Random scalar fields, regions and curves: the vocabulary of the generator.

Every function takes the generator of random numbers first and draws a number of values that depends on its
arguments only, so a scene is a pure function of its seed. Fields are float32 ``[size, size]``.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Field = NDArray[np.float32]
"""float32 ``[H, W]``."""
Image = NDArray[np.float32]
"""float32 ``[H, W, 3]``, RGB in 0..1."""
Mask = NDArray[np.bool_]
"""bool ``[H, W]``."""

SUBPIXEL_BITS = 4
"""Fixed-point bits of the polygon corners given to OpenCV (1/16 pixel)."""


def uniform(rng: Rng, low: float, high: float) -> float:
    """One number, uniform in ``[low, high)``."""
    return float(rng.uniform(low, high))


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """One number whose logarithm is uniform between those of ``low`` and ``high``."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def chance(rng: Rng, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def noise(rng: Rng, size: int, cell: float, octaves: int = 1) -> Field:
    """Smooth noise of about zero mean and unit variance.

    Args:
        rng: source of randomness.
        size: side in pixels.
        cell: distance in pixels between independent values of the first octave.
        octaves: each further octave has half the cell and half the amplitude.
    """
    total: Field = np.zeros((size, size), np.float32)
    power = 0.0
    for octave in range(octaves):
        knots = min(size, max(2, round(size / max(cell / 2**octave, 1.0)) + 1))
        coarse = rng.standard_normal((knots, knots), dtype=np.float32)
        amplitude = 0.5**octave
        total += amplitude * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        power += amplitude**2
    # Cubic interpolation of unit-variance knots has a variance near 0.6.
    return np.asarray(total / math.sqrt(0.6 * power), np.float32)


def streaks(rng: Rng, size: int, length: float, width: float, angle: float) -> Field:
    """Noise stretched along ``angle`` (radians from the x axis): fibres, brush marks, wood grain."""
    wide = math.ceil(size * 1.45)
    rows, columns = max(2, round(wide / width)), max(2, round(wide / length))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    field = cv2.resize(coarse, (wide, wide), interpolation=cv2.INTER_LINEAR)
    turn = cv2.getRotationMatrix2D((wide / 2, wide / 2), math.degrees(-angle), 1.0)
    turn[:, 2] += (size - wide) / 2
    return np.asarray(cv2.warpAffine(field, turn, (size, size), borderMode=cv2.BORDER_REFLECT), np.float32)


def frame(size: int, angle: float, centre: tuple[float, float] | None = None) -> tuple[Field, Field]:
    """Pixel coordinates ``(along, across)`` of an axis through ``centre`` (x, y), turned by ``angle``."""
    x0, y0 = centre if centre is not None else (size / 2, size / 2)
    x = np.arange(size, dtype=np.float32)[None, :] - np.float32(x0)
    y = np.arange(size, dtype=np.float32)[:, None] - np.float32(y0)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return np.asarray(cos * x + sin * y, np.float32), np.asarray(cos * y - sin * x, np.float32)


def blob(
    rng: Rng,
    size: int,
    centre: tuple[float, float],
    area: float,
    roughness: float,
    elongation: float = 1.0,
) -> Field:
    """An irregular patch: positive inside, about 1 at its heart, negative outside.

    Args:
        rng: source of randomness.
        size: side in pixels.
        centre: (x, y) in pixels.
        area: pixels in the ellipse before it is roughened.
        roughness: 0 gives an ellipse; 1 gives a ragged patch, possibly with islands.
        elongation: ratio of the two axes.
    """
    radius = math.sqrt(area / math.pi)
    along, across = frame(size, uniform(rng, 0, math.pi), centre)
    stretch = math.sqrt(elongation)
    squared = (along / (radius * stretch)) ** 2 + (across * stretch / radius) ** 2
    ragged = noise(rng, size, max(2.0, radius * 0.9), 3)
    # A bounded distance keeps islands from appearing far away, where the parabola is steep anyway.
    return np.asarray(1 - squared + roughness * ragged * np.minimum(1, 0.3 + squared), np.float32)


def walk(rng: Rng, start: tuple[float, float], heading: float, length: float, bend: float) -> NDArray[np.float64]:
    """Corners ``[N, 2]`` (x, y) of a curve; ``bend`` is the heading's change in radians per step."""
    steps = max(3, min(60, round(length / 4)))
    headings = heading + np.cumsum(rng.normal(0, bend, steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / steps)
    return np.asarray(np.asarray(start) + np.cumsum(moves, axis=0) - moves.sum(axis=0) / 2, np.float64)


def draw_curve(size: int, corners: NDArray[np.float64], width: float) -> Field:
    """Coverage 0..1 of an antialiased open curve, ``width`` in pixels."""
    plane = np.zeros((size, size), np.uint8)
    fixed = np.round(np.clip(corners, -4 * size, 4 * size) * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.polylines(plane, [fixed], False, 255, max(1, round(width)), cv2.LINE_AA, SUBPIXEL_BITS)
    return np.asarray(plane, np.float32) / np.float32(255)


def fill_polygon(size: int, corners: NDArray[np.float64]) -> Field:
    """Coverage 0..1 of an antialiased polygon with corners ``[N, 2]`` (x, y)."""
    plane = np.zeros((size, size), np.uint8)
    fixed = np.round(np.clip(corners, -4 * size, 4 * size) * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(plane, [fixed], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return np.asarray(plane, np.float32) / np.float32(255)


def blurred(field: Field, sigma: float) -> Field:
    """Gaussian blur with reflected borders."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32) if sigma > 0.2 else field


def relief(height: Field, light: float) -> Field:
    """Brightness change of a height field lit from the direction ``light`` (radians); zero mean slope."""
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    return np.asarray(math.cos(light) * dx + math.sin(light) * dy, np.float32)


def mix(below: Image, above: Image | NDArray[np.float32], alpha: Field) -> Image:
    """``above`` laid over ``below`` with opacity ``alpha``; ``above`` may be one colour ``[3]``."""
    return np.asarray(below + (above - below) * alpha[..., None], np.float32)
