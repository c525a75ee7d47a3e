"""Pieces of surfaces laid over each other: pictures without a meaning, whose regions have clear borders.

They teach a network that segments from clicks what a region is. Damage is mostly small and often faint; from it alone a
small network learns to draw a blob around the click.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis import surfaces
from cascade.synthesis.camera import photograph
from cascade.synthesis.fields import (
    Field,
    Image,
    Mask,
    Rng,
    blob,
    chance,
    fill_polygon,
    frame,
    log_uniform,
    mix,
    noise,
    uniform,
)
from cascade.synthesis.layout import material

PIECES = (2, 7)
"""How many pieces lie on the ground, the second not included."""

AREA_RANGE = (0.004, 0.4)
"""Fractions of the picture that one piece may aim at; drawn log-uniformly."""


@dataclass(frozen=True)
class Patchwork:
    """A picture and its regions.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB.
        ground: bool ``[H, W]``, the connected parts of the ground that no piece covers.
        pieces: bool ``[H, W]``, the connected visible parts of the pieces. No two regions overlap.
    """

    image: NDArray[np.uint8]
    ground: tuple[Mask, ...]
    pieces: tuple[Mask, ...]


def generate_patchwork(seed: int, size: int = 512, surface: surfaces.Surface = material) -> Patchwork:
    """A patchwork that is a pure function of its arguments.

    Args:
        seed: not negative.
        size: side in pixels.
        surface: draws the ground and the pieces that are a surface of their own.
    """
    rng = np.random.default_rng([seed, 7])  # apart from the scene of the same seed
    grey = chance(rng, 0.3)
    image = _mottled(rng, surface(rng, size), surface(rng, size)) if chance(rng, 0.25) else surface(rng, size)
    labels = np.zeros((size, size), np.int32)
    for piece in range(1, int(rng.integers(*PIECES)) + 1):
        opacity = _piece(rng, size, log_uniform(rng, *AREA_RANGE) * size * size)
        image = mix(image, _surface(rng, image, surface), opacity)
        labels[opacity > 0.5] = piece
    pieces = [part for piece in range(1, int(labels.max()) + 1) for part in _connected(labels == piece)]
    return Patchwork(photograph(rng, image, grey), tuple(_connected(labels == 0)), tuple(pieces))


def _connected(region: Mask) -> list[Mask]:
    count, parts = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
    return [np.asarray(parts == part, np.bool_) for part in range(1, count)]


def _piece(rng: Rng, size: int, area: float) -> Field:
    """Opacity of a patch, a polygon, a strip or a ring of about ``area`` pixels somewhere in the picture."""
    where = uniform(rng, 0, size), uniform(rng, 0, size)
    kind, edge = rng.random(), uniform(rng, 0.6, 3.0)
    if kind < 0.4:
        field = blob(rng, size, where, area, uniform(rng, 0, 1), log_uniform(rng, 1, 5))
        return np.asarray(np.clip(field / uniform(rng, 0.02, 0.2), 0, 1), np.float32)
    if kind < 0.7:
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 9))))
        reach = math.sqrt(area / 2) * rng.uniform(0.6, 1.6, len(angles))
        stretch = math.sqrt(log_uniform(rng, 1, 4))
        corners = np.stack([reach * np.cos(angles) * stretch, reach * np.sin(angles) / stretch], axis=1)
        turn = uniform(rng, 0, 2 * math.pi)
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        return fill_polygon(size, corners @ rotation.T + np.array(where))
    along, across = frame(size, uniform(rng, 0, math.pi), where)
    if kind < 0.9:
        half, stretch = math.sqrt(area) / 2, math.sqrt(log_uniform(rng, 1, 8))
        wobble = uniform(rng, 0, 0.3) * half * noise(rng, size, size / 6)
        inside = np.minimum(half * stretch - np.abs(along), half / stretch - np.abs(across))
        return np.asarray(np.clip((inside + wobble) / edge + 0.5, 0, 1), np.float32)
    outer = math.sqrt(area / math.pi) * uniform(rng, 1, 1.6)
    width = outer * uniform(rng, 0.25, 0.7)
    distance = np.abs(np.hypot(along, across * uniform(rng, 0.6, 1.0)) - outer + width / 2)
    return np.asarray(np.clip((width / 2 - distance) / edge + 0.5, 0, 1), np.float32)


def _surface(rng: Rng, below: Image, own: surfaces.Surface) -> Image:
    """Another material, one even colour, or what lies below in another tone; one in three is mottled."""
    size, kind = below.shape[0], rng.random()
    if kind < 0.5:
        surface = own(rng, size)
    elif kind < 0.7:
        surface = surfaces.plain(rng, size)
    elif kind < 0.8:
        surface = surfaces.granular(rng, size)
    else:
        gain = 1 + rng.normal(0, 0.1, 3) + (1 if chance(rng, 0.5) else -1) * uniform(rng, 0.12, 0.6)
        surface = np.asarray(below * gain, np.float32)
    if chance(rng, 0.35):
        surface = _mottled(rng, surface, below if chance(rng, 0.4) else own(rng, size))
    return surface


def _mottled(rng: Rng, surface: Image, spots: Image) -> Image:
    """A surface with spots of another all over it, as of rust or worn paint: borders inside that bound no region."""
    size = surface.shape[0]
    field = noise(rng, size, size * log_uniform(rng, 0.01, 0.06), 3)
    opacity = np.clip((field - uniform(rng, -0.1, 1.2)) / log_uniform(rng, 0.05, 0.6), 0, 1)
    return mix(surface, spots, np.asarray(opacity, np.float32))
