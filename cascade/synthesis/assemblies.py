"""Pictures of many things: repeated items, and boards full of components."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis import surfaces
from cascade.synthesis.fields import (
    SUBPIXEL_BITS,
    Field,
    Rng,
    blurred,
    chance,
    fill_polygon,
    log_uniform,
    mix,
    noise,
    relief,
    uniform,
)
from cascade.synthesis.layout import Layout, box, centre_spot, masks_of, material, place, ring, shine


def _arc(
    rng: Rng, centre: tuple[float, float], radius: float, turn: float, sweep: float, thick: float
) -> NDArray[np.float64]:
    """Corners of a bent tube: the outline of a macaroni or a clip."""
    theta = turn + np.linspace(-sweep / 2, sweep / 2, 24)
    jitter = 1 + 0.03 * rng.standard_normal(24).cumsum() / 5
    outer = np.stack([np.cos(theta), np.sin(theta)], 1) * (radius * jitter)[:, None]
    inner = np.stack([np.cos(theta[::-1]), np.sin(theta[::-1])], 1) * (radius * (1 - thick))
    return np.asarray(np.concatenate([outer, inner]) + np.asarray(centre), np.float64)


def several_parts(rng: Rng, size: int) -> Layout:
    """Repeated small items laid out loosely: pasta, tablets, candles, washers, fuses."""
    behind = surfaces.backdrop(rng, size)
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    step = size / max(rows, columns) * uniform(rng, 0.75, 0.98)
    radius = step * uniform(rng, 0.25, 0.47)
    kind = str(rng.choice(["arc", "disc", "bar", "lump", "ring"]))
    thick, sweep = uniform(rng, 0.45, 0.85), uniform(rng, 1.6, 3.6)
    aspect, turn, spin = uniform(rng, 0.3, 0.8), uniform(rng, 0, 6.28), chance(rng, 0.4)
    alpha = np.zeros((size, size), np.float32)
    items: list[Field] = []
    for row in range(rows):
        for column in range(columns):
            x = size / 2 + (column - (columns - 1) / 2) * step + rng.normal(0, 0.04) * step
            y = size / 2 + (row - (rows - 1) / 2) * step + rng.normal(0, 0.04) * step
            angle = uniform(rng, 0, 6.28) if spin else turn + rng.normal(0, 0.12)
            if kind == "arc":
                corners = _arc(rng, (x, y), radius, angle, sweep, thick)
            elif kind == "bar":
                corners = box((x, y), radius * 2, radius * 2 * aspect, angle, 1.0 if spin else 0.3)
            elif kind == "lump":
                wave = np.convolve(rng.standard_normal(48), np.ones(9) / 9, "same")
                corners = ring((x, y), radius * (1 + 0.12 * wave), angle)
            else:
                corners = ring((x, y), np.full(48, radius), 0.0)
            item = fill_polygon(size, corners)
            if kind == "ring":
                item = item * (1 - fill_polygon(size, ring((x, y), np.full(48, radius * (1 - thick)), 0.0)))
            items.append(item)
            alpha = np.maximum(alpha, item)
    body = material(rng, size)
    body = np.asarray(body * (1 + 0.08 * noise(rng, size, step))[..., None], np.float32)
    body = shine(rng, body, alpha, uniform(rng, 0, 6.28))
    image = place(rng, behind, body, alpha)
    return Layout(image, alpha > 0.5, masks_of(*items), behind)


def board(rng: Rng, size: int) -> Layout:
    """A carrier with many small components, tracks and pads: circuit board, keypad, assembly."""
    behind = surfaces.backdrop(rng, size)
    angle = uniform(rng, -0.08, 0.08)
    centre = centre_spot(rng, size, 0.03)
    length, width = size * uniform(rng, 0.75, 1.3), size * uniform(rng, 0.55, 1.1)
    alpha = fill_polygon(size, box(centre, length, width, angle, 0.05))
    body = surfaces.plain(rng, size, "vivid" if chance(rng, 0.6) else "grey")
    cos, sin = math.cos(angle), math.sin(angle)

    def spot(u: float, v: float) -> tuple[float, float]:
        return centre[0] + cos * u - sin * v, centre[1] + sin * u + cos * v

    def upright() -> float:
        return angle + (math.pi / 2 if chance(rng, 0.5) else 0.0)

    # Tracks and components are drawn on one overlay and blended once: a board has dozens of them.
    overlay = np.zeros((size, size, 3), np.uint8)
    cover = np.zeros((size, size), np.uint8)
    parts = [alpha]

    def lay(corners: NDArray[np.float64], tone: NDArray[np.float32]) -> None:
        fixed = [np.round(corners * 2**SUBPIXEL_BITS).astype(np.int32)]
        shade = [float(value) for value in np.clip(tone, 0, 1) * 255]
        cv2.fillPoly(overlay, fixed, shade, cv2.LINE_8, SUBPIXEL_BITS)
        cv2.fillPoly(cover, fixed, 255, cv2.LINE_8, SUBPIXEL_BITS)

    track = np.asarray(body.mean(axis=(0, 1)) * uniform(rng, 0.7, 1.4), np.float32)
    for _ in range(int(rng.integers(5, 16))):
        u, v = uniform(rng, -0.5, 0.5) * length, uniform(rng, -0.5, 0.5) * width
        run, thin = log_uniform(rng, 0.05, 0.5) * size, uniform(rng, 0.004, 0.01) * size
        lay(box(spot(u, v), run, thin, upright()), track)
    palette = [surfaces.colour(rng, family) for family in ("grey", "grey", "metal", "any")]
    for _ in range(int(rng.integers(6, 22))):
        u, v = uniform(rng, -0.46, 0.46) * length, uniform(rng, -0.46, 0.46) * width
        extent = size * log_uniform(rng, 0.02, 0.16)
        if chance(rng, 0.3):
            corners = ring(spot(u, v), np.full(32, extent / 2), 0.0)
        else:
            corners = box(spot(u, v), extent, extent * uniform(rng, 0.3, 1), upright(), 0.05)
        tone = palette[int(rng.integers(len(palette)))] * uniform(rng, 0.7, 1.2)
        lay(corners, tone.astype(np.float32))
        parts.append(fill_polygon(size, corners) * alpha)
    laid = np.asarray(cover, np.float32) / np.float32(255) * alpha
    body = np.asarray(body * (1 - 0.4 * blurred(laid, 3))[..., None], np.float32)
    body = mix(body, np.asarray(overlay, np.float32) / np.float32(255), laid)
    body = np.asarray(body + (relief(blurred(laid, 1), 0.8) * uniform(rng, 0, 0.6))[..., None], np.float32)
    image = place(rng, behind, body, alpha)
    return Layout(image, alpha > 0.5, masks_of(*parts), behind)
