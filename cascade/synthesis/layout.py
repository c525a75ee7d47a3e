"""The layout of a photograph before anything goes wrong, and what every object is drawn with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis import surfaces
from cascade.synthesis.fields import (
    Field,
    Image,
    Mask,
    Rng,
    blurred,
    chance,
    log_uniform,
    mix,
    relief,
    uniform,
)


@dataclass(frozen=True)
class Layout:
    """A photograph without defects.

    Attributes:
        image: the composed picture.
        region: where a defect may sit.
        parts: masks of whole objects and of their visible parts.
        behind: the picture that shows where a piece of the object is missing.
    """

    image: Image
    region: Mask
    parts: tuple[Mask, ...]
    behind: Image


Builder = Callable[[Rng, int], Layout]


def material(rng: Rng, size: int) -> Image:
    """A surface that an object may be made of."""
    paint: tuple[surfaces.Surface, ...] = (
        surfaces.plain,
        surfaces.plain,
        surfaces.brushed,
        surfaces.granular,
        surfaces.marbled,
        surfaces.wood,
        surfaces.leather,
        surfaces.photographed,
    )
    return paint[int(rng.integers(len(paint)))](rng, size)


def ring(centre: tuple[float, float], radii: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Corners of a closed outline with ``radii`` at equally spaced directions."""
    theta = angle + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([centre[0] + radii * np.cos(theta), centre[1] + radii * np.sin(theta)], axis=1)


def box(
    centre: tuple[float, float], length: float, width: float, angle: float, corner: float = 0.0
) -> NDArray[np.float64]:
    """Corners of a rectangle; ``corner`` 0..1 rounds its ends up to a capsule."""
    theta = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    power = 1.0 if corner >= 1 else max(0.04, corner)
    radius = width / 2 * power
    x = np.sign(np.cos(theta)) * (length / 2 - radius) + radius * np.cos(theta)
    y = np.sign(np.sin(theta)) * (width / 2 - radius) + radius * np.sin(theta)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y], axis=1)


def dome(alpha: Field, light: float, strength: float) -> Field:
    """Shading of a body that bulges towards the camera, from its silhouette."""
    distance = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    depth = np.clip(distance / max(1.0, float(distance.max())), 0, 1)
    height = np.sqrt(np.clip(1 - (1 - depth) ** 2, 0, 1))
    smooth = blurred(np.asarray(height, np.float32), 3)
    slope = relief(smooth * np.float32(distance.max()), light)
    return np.asarray(strength * (slope * 0.6 + 0.5 * (smooth - 0.7)), np.float32)


def place(rng: Rng, below: Image, body: Image, alpha: Field) -> Image:
    """Lays a body over a background and lets it cast a soft shadow."""
    size = below.shape[0]
    if chance(rng, 0.75):
        reach = size * log_uniform(rng, 0.004, 0.04)
        direction = uniform(rng, 0, 2 * math.pi)
        shift = np.array([[1, 0, reach * math.cos(direction)], [0, 1, reach * math.sin(direction)]], np.float32)
        shadow = blurred(cv2.warpAffine(alpha, shift, (size, size)), reach * uniform(rng, 0.3, 1.0))
        below = np.asarray(below * (1 - uniform(rng, 0.1, 0.7) * shadow)[..., None], np.float32)
    return mix(below, body, alpha)


def shine(rng: Rng, body: Image, alpha: Field, light: float) -> Image:
    """Shades a body as a dome, with a highlight half of the time."""
    shade = dome(alpha, light, uniform(rng, 0.1, 0.9))
    lit = body * (1 + shade)[..., None]
    if chance(rng, 0.5):
        spot = np.clip(shade - np.quantile(shade[::8, ::8], 0.97), 0, None)
        lit = lit + (spot * uniform(rng, 1, 4))[..., None]
    return np.asarray(lit, np.float32)


def masks_of(*alphas: Field) -> tuple[Mask, ...]:
    """The areas that the given coverages fill by more than half, empty ones left out."""
    return tuple(mask for mask in (np.asarray(alpha > 0.5, np.bool_) for alpha in alphas) if mask.any())


def centre_spot(rng: Rng, size: int, slack: float = 0.12) -> tuple[float, float]:
    """A point (x, y) near the middle of the picture."""
    return size * uniform(rng, 0.5 - slack, 0.5 + slack), size * uniform(rng, 0.5 - slack, 0.5 + slack)
