"""Normal surfaces: what an undamaged material looks like."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from cascade.synthesis.fields import (
    Field,
    Image,
    Rng,
    chance,
    frame,
    log_uniform,
    noise,
    relief,
    streaks,
    uniform,
)

Surface = Callable[[Rng, int], Image]
"""A function ``(rng, size) -> image`` that paints a whole square."""

HUES = {
    "metal": ((0.05, 0.65), (0.0, 0.12), (0.35, 0.8)),
    "wood": ((0.05, 0.11), (0.3, 0.65), (0.35, 0.8)),
    "earth": ((0.03, 0.12), (0.15, 0.6), (0.2, 0.75)),
    "any": ((0.0, 1.0), (0.0, 0.9), (0.15, 0.95)),
    "grey": ((0.0, 1.0), (0.0, 0.04), (0.15, 0.9)),
    "vivid": ((0.0, 1.0), (0.5, 1.0), (0.4, 0.95)),
    "pale": ((0.0, 1.0), (0.0, 0.35), (0.7, 0.98)),
}


def colour(rng: Rng, family: str = "any") -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """One RGB colour ``[3]`` of a family of ``HUES``."""
    hue, saturation, value = (uniform(rng, *limits) for limits in HUES[family])
    return np.asarray(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def tinted(base: np.ndarray[tuple[int], np.dtype[np.float32]], shade: Field) -> Image:
    """One colour whose brightness is multiplied by ``1 + shade``."""
    return np.asarray(base * (1 + shade[..., None]), np.float32)


def plain(rng: Rng, size: int, family: str = "any") -> Image:
    """An even coat with faint clouds and fine grain."""
    shade = uniform(rng, 0, 0.06) * noise(rng, size, size / 3)
    shade += uniform(rng, 0, 0.03) * noise(rng, size, 2)
    return tinted(colour(rng, family), shade)


def granular(rng: Rng, size: int, family: str = "any") -> Image:
    """Grains or speckles of two or three shades: granite, cork, asphalt, foam."""
    base, other = colour(rng, family), colour(rng, family)
    cell = log_uniform(rng, 2.5, 14) * size / 512
    pattern = noise(rng, size, cell, 2)
    sharp = uniform(rng, 0.5, 4)
    alpha = 1 / (1 + np.exp(-sharp * (pattern - uniform(rng, -0.5, 1.2))))
    image = base + (other - base) * uniform(rng, 0.15, 0.8) * alpha[..., None]
    return np.asarray(image * (1 + 0.05 * noise(rng, size, 2)[..., None]), np.float32)


def brushed(rng: Rng, size: int, family: str = "metal") -> Image:
    """Fine parallel marks: ground, rolled or drawn metal."""
    angle = uniform(rng, 0, math.pi) if chance(rng, 0.4) else (0.0 if chance(rng, 0.5) else math.pi / 2)
    fine = streaks(rng, size, log_uniform(rng, 40, 400), uniform(rng, 1, 2.5), angle)
    broad = streaks(rng, size, size * 2.0, uniform(rng, 6, 40), angle)
    shade = uniform(rng, 0.02, 0.12) * fine + uniform(rng, 0, 0.09) * broad
    shade += uniform(rng, 0, 0.05) * noise(rng, size, size / 4, 2)
    return tinted(colour(rng, family), shade)


def wood(rng: Rng, size: int) -> Image:
    """Year rings cut lengthwise, with pores along the grain."""
    angle = uniform(rng, -0.25, 0.25) + (math.pi / 2 if chance(rng, 0.6) else 0)
    along, across = frame(size, angle)
    bend = noise(rng, size, size / uniform(rng, 1.5, 4)) * uniform(rng, 4, 30) * size / 512
    period = log_uniform(rng, 10, 60) * size / 512
    rings = np.sin((across + bend + uniform(rng, 0, 0.05) * along) * np.float32(2 * math.pi / period))
    shade = uniform(rng, 0.04, 0.18) * rings.astype(np.float32)
    shade += uniform(rng, 0.03, 0.1) * streaks(rng, size, 60 * size / 512, 1.5, angle)
    return tinted(colour(rng, "wood"), shade)


def fabric(rng: Rng, size: int) -> Image:
    """Over-and-under weave of two threads, slightly irregular."""
    angle = uniform(rng, -0.2, 0.2) if chance(rng, 0.6) else uniform(rng, 0, math.pi)
    along, across = frame(size, angle)
    period = log_uniform(rng, 5, 26) * size / 512
    wobble = noise(rng, size, size / 6, 2) * uniform(rng, 0, 0.25) * period
    u = (along + wobble) * np.float32(math.pi / period)
    v = (across + wobble) * np.float32(math.pi / (period * uniform(rng, 0.7, 1.4)))
    warp, weft = np.abs(np.sin(u)), np.abs(np.sin(v))
    over = (np.sin(u / 2) * np.sin(v / 2) > 0).astype(np.float32) if chance(rng, 0.5) else (warp > weft)
    first = colour(rng)
    second = colour(rng) if chance(rng, 0.3) else first * uniform(rng, 0.6, 1.0)
    over3 = np.asarray(over, np.float32)[..., None]
    image = first * warp[..., None] * over3 + second * weft[..., None] * (1 - over3)
    depth = uniform(rng, 0.3, 0.9)
    image = image * depth + (first + second) / 2 * (1 - depth)
    return np.asarray(image * (1 + 0.08 * noise(rng, size, 2.5))[..., None], np.float32)


def mesh(rng: Rng, size: int) -> Image:
    """Wires crossing over a darker or lighter ground: expanded metal, sieve, grid."""
    angle, skew = uniform(rng, 0, math.pi), uniform(rng, 0.6, 1.57)
    first, _ = frame(size, angle)
    second, _ = frame(size, angle + skew)
    period = log_uniform(rng, 9, 70) * size / 512
    wobble = noise(rng, size, size / 4) * uniform(rng, 0, 0.06) * period
    wave = np.maximum(
        np.cos((first + wobble) * np.float32(2 * math.pi / period)),
        np.cos((second + wobble) * np.float32(2 * math.pi / (period * uniform(rng, 0.8, 1.25)))),
    )
    wire = np.clip((wave - uniform(rng, 0.3, 0.85)) * period * uniform(rng, 0.15, 0.4), 0, 1)[..., None]
    ground = plain(rng, size, "grey")
    metal = tinted(colour(rng, "any" if chance(rng, 0.3) else "metal"), 0.25 * (wave - 0.7).astype(np.float32))
    lit = 0.3 * relief(wave.astype(np.float32) * period, uniform(rng, 0, 6.28))
    return np.asarray(ground * (1 - wire) + (metal + lit[..., None]) * wire, np.float32)


def leather(rng: Rng, size: int) -> Image:
    """A skin of small cells divided by creases."""
    cell = log_uniform(rng, 5, 24) * size / 512
    pattern = np.abs(noise(rng, size, cell)) + 0.5 * np.abs(noise(rng, size, cell * 0.6))
    height = np.minimum(pattern, 0.9)
    shade = uniform(rng, 0.2, 0.8) * (height - 0.6) * 0.5
    shade = shade + uniform(rng, 0.3, 1.2) * relief(height, uniform(rng, 0, 6.28))
    return tinted(colour(rng, "earth" if chance(rng, 0.5) else "any"), shade.astype(np.float32))


def tiles(rng: Rng, size: int) -> Image:
    """Rectangles with joints, each a little different in shade."""
    angle = uniform(rng, -0.15, 0.15)
    along, across = frame(size, angle)
    width = log_uniform(rng, 40, 240) * size / 512
    height = width * uniform(rng, 0.4, 1.2)
    row = np.floor(across / height)
    offset = (row % 2) * width * 0.5 if chance(rng, 0.4) else np.zeros_like(row)
    column = np.floor((along + offset) / width)
    joint = log_uniform(rng, 1.5, 8) * size / 512
    near = np.minimum(
        np.abs(across - np.round(across / height) * height),
        np.abs(along + offset - np.round((along + offset) / width) * width),
    )
    inside = np.clip((near - joint / 2) + 0.5, 0, 1)
    shades = rng.normal(0, uniform(rng, 0, 0.08), (64, 64)).astype(np.float32)
    shade = shades[row.astype(np.int32) % 64, column.astype(np.int32) % 64]
    body = (granular if chance(rng, 0.5) else plain)(rng, size, "any" if chance(rng, 0.5) else "pale")
    grout = colour(rng, "grey")
    return np.asarray(grout + (body * (1 + shade[..., None]) - grout) * inside[..., None], np.float32)


def threaded(rng: Rng, size: int) -> Image:
    """A close-up of a screw thread or ribbed roll: bent ridges with highlights."""
    angle = uniform(rng, 0, math.pi)
    along, across = frame(size, angle)
    period = log_uniform(rng, 18, 150) * size / 512
    curve = (across / size) ** 2 * uniform(rng, -0.8, 0.8) * size * 0.4
    phase = (along + curve + noise(rng, size, size / 2) * 0.02 * period) * np.float32(2 * math.pi / period)
    wave = np.sin(phase) + uniform(rng, -0.5, 0.5) * np.sin(2 * phase + uniform(rng, 0, 6.28))
    shade = uniform(rng, 0.15, 0.5) * wave + uniform(rng, 0, 0.5) * np.maximum(0, np.sin(phase + 1)) ** 8
    shade = shade + uniform(rng, 0.02, 0.08) * streaks(rng, size, 150, 1.6, angle + math.pi / 2)
    return tinted(colour(rng, "metal" if chance(rng, 0.6) else "any"), shade.astype(np.float32))


def perforated(rng: Rng, size: int) -> Image:
    """A sheet with a regular pattern of dots or holes."""
    angle = uniform(rng, 0, math.pi / 2)
    along, across = frame(size, angle)
    period = log_uniform(rng, 12, 80) * size / 512
    row = np.round(across / period)
    shifted = along + (row % 2) * (period / 2 if chance(rng, 0.5) else 0)
    distance = np.hypot(across - row * period, shifted - np.round(shifted / period) * period)
    radius = period * uniform(rng, 0.15, 0.38)
    dot = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    sheet = (brushed if chance(rng, 0.4) else plain)(rng, size, "any")
    return np.asarray(sheet * (1 - dot) + colour(rng) * dot, np.float32)


def marbled(rng: Rng, size: int) -> Image:
    """Veins and clouds: marble, cast resin, paper, cement."""
    clouds = noise(rng, size, size / uniform(rng, 2, 8), 4)
    veins = np.exp(-np.abs(noise(rng, size, size / uniform(rng, 2, 5), 3)) * uniform(rng, 6, 20))
    base = colour(rng, "pale" if chance(rng, 0.5) else "any")
    shade = uniform(rng, 0.02, 0.1) * clouds + uniform(rng, -0.25, 0.25) * veins
    return tinted(base, shade.astype(np.float32))


def carpet(rng: Rng, size: int) -> Image:
    """Dense tufts: short random streaks in two directions."""
    cell = uniform(rng, 2, 5) * size / 512
    tufts = streaks(rng, size, cell * 3, cell, uniform(rng, 0, 3.14))
    tufts = tufts + streaks(rng, size, cell * 3, cell, uniform(rng, 0, 3.14))
    image = tinted(colour(rng), uniform(rng, 0.06, 0.22) * tufts)
    if chance(rng, 0.4):
        along, _ = frame(size, uniform(rng, 0, math.pi))
        rows = np.sin(along * np.float32(2 * math.pi * 512 / size / uniform(rng, 8, 40)))
        image = image * (1 + uniform(rng, 0.05, 0.2) * rows[..., None])
    return np.asarray(image, np.float32)


def ribbed(rng: Rng, size: int) -> Image:
    """Parallel ribs or stripes, sharp or soft: corrugated card, cloth, vents."""
    angle = uniform(rng, 0, math.pi) if chance(rng, 0.5) else 0.0
    along, _ = frame(size, angle)
    period = log_uniform(rng, 6, 60) * size / 512
    wave = np.sin((along + noise(rng, size, size / 3) * 0.05 * period) * np.float32(2 * math.pi / period))
    wave = np.tanh(wave * uniform(rng, 0.5, 6))
    first = colour(rng)
    second = first * uniform(rng, 0.5, 0.95) if chance(rng, 0.8) else colour(rng)
    image = first + (second - first) * (0.5 + 0.5 * wave[..., None])
    return np.asarray(image * (1 + 0.04 * noise(rng, size, 2)[..., None]), np.float32)


PHOTOGRAPHS = ("brick", "grass", "gravel", "moon", "coffee", "camera", "chelsea", "rocket")
"""Pictures that scikit-image ships, in the public domain or dedicated to it (CC0); see its gallery for the origins."""


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(name: str) -> Image:
    """One of ``PHOTOGRAPHS`` as an RGB picture; only read, never changed."""
    from skimage import data

    pixels = np.asarray(getattr(data, name)(), np.float32) / np.float32(255)
    picture = np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3])
    picture.setflags(write=False)
    return picture


def photographed(rng: Rng, size: int) -> Image:
    """A square cut from a real photograph, turned and often coloured anew: nature's own irregularity."""
    picture = _photograph(PHOTOGRAPHS[int(rng.integers(len(PHOTOGRAPHS)))])
    height, width = picture.shape[:2]
    side = int(min(height, width) * log_uniform(rng, 0.15, 1.0))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    cut = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
    image = cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=cv2.INTER_CUBIC)
    if chance(rng, 0.6):
        tone = image.mean(axis=2)
        shade = (tone - tone.mean()) / max(0.02, float(tone.std()))
        return tinted(colour(rng, "grey" if chance(rng, 0.4) else "any"), shade * np.float32(uniform(rng, 0.05, 0.3)))
    return np.asarray(image * np.float32(uniform(rng, 0.6, 1.2)), np.float32)


def backdrop(rng: Rng, size: int) -> Image:
    """What lies behind an object: mostly plain, sometimes a texture kept soft."""
    pick = rng.random()
    if pick < 0.6:
        return plain(rng, size, str(rng.choice(["any", "grey", "pale", "vivid"])))
    if pick < 0.7:
        return np.asarray(plain(rng, size, "grey") * np.float32(uniform(rng, 0.02, 0.25)), np.float32)
    texture = (granular, marbled, brushed, carpet, fabric, photographed)[int(rng.integers(6))](rng, size)
    soft = cv2.GaussianBlur(texture, (0, 0), uniform(rng, 0.8, 3))
    calm = uniform(rng, 0.2, 0.8)
    return np.asarray(soft * (1 - calm) + soft.mean(axis=(0, 1)) * calm, np.float32)
