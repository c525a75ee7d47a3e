"""Normal objects in front of a background, and sheets of material that fill the picture."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis import surfaces
from cascade.synthesis.fields import (
    Rng,
    blurred,
    chance,
    fill_polygon,
    frame,
    log_uniform,
    mix,
    noise,
    relief,
    uniform,
)
from cascade.synthesis.layout import Builder, Layout, box, centre_spot, masks_of, material, place, ring, shine


def round_body(rng: Rng, size: int) -> Layout:
    """One roundish body: nut, bean, cap, pill; possibly lobed, possibly with a coloured part."""
    behind = surfaces.backdrop(rng, size)
    corners = 96
    theta = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = size * uniform(rng, 0.16, 0.46)
    shape = np.ones(corners)
    for harmonic in range(1, 5):
        shape += rng.normal(0, 0.06 / harmonic) * np.cos(harmonic * theta + uniform(rng, 0, 6.28))
    stretch = uniform(rng, 0.7, 1.0)
    outline = ring(centre_spot(rng, size), radius * shape * np.hypot(np.cos(theta), stretch * np.sin(theta)), 0)
    alpha = fill_polygon(size, outline)
    body = material(rng, size)
    parts = [alpha]
    if chance(rng, 0.4):
        field = noise(rng, size, radius * 1.2) + frame(size, uniform(rng, 0, 6.28))[0] / np.float32(radius)
        patch = np.asarray(np.clip(field * 8, 0, 1) * alpha, np.float32)
        body = mix(body, np.asarray(body * uniform(rng, 0.5, 0.9) + 0.2 * surfaces.colour(rng), np.float32), patch)
        parts.append(patch)
    body = shine(rng, body, alpha, uniform(rng, 0, 6.28))
    image = place(rng, behind, body, alpha)
    return Layout(image, masks_of(alpha)[0], masks_of(*parts), behind)


def ring_body(rng: Rng, size: int) -> Layout:
    """Concentric rings or a polygon around a bore: washer, hex nut, bottle neck, bearing."""
    behind = surfaces.backdrop(rng, size)
    centre = centre_spot(rng, size, 0.08)
    radius = size * uniform(rng, 0.2, 0.46)
    sides = int(rng.choice([6, 8, 12, 64, 64, 64]))
    alpha = fill_polygon(size, ring(centre, np.full(sides, radius), uniform(rng, 0, 6.28)))
    body = material(rng, size)
    parts = [alpha]
    rings = int(rng.integers(1, 4))
    scale = 1.0
    for _ in range(rings):
        scale *= uniform(rng, 0.55, 0.9)
        disc = fill_polygon(size, ring(centre, np.full(64, radius * scale), 0.0))
        tone = body * uniform(rng, 0.5, 1.3) if chance(rng, 0.6) else np.broadcast_to(surfaces.colour(rng), body.shape)
        body = mix(body, np.asarray(tone, np.float32), disc)
        body = np.asarray(
            body + (relief(blurred(disc, 1.2), uniform(rng, 0, 6.28)) * uniform(rng, 0, 1.5))[..., None],
            np.float32,
        )
        parts.append(disc)
    region = alpha > 0.5
    if chance(rng, 0.6):
        bore = fill_polygon(size, ring(centre, np.full(64, radius * scale * uniform(rng, 0.5, 0.95)), 0.0))
        hole = behind * uniform(rng, 0.1, 1.0)
        body = mix(body, np.asarray(hole, np.float32), bore)
        region &= bore < 0.5
        parts.append(bore)
    parts.insert(0, np.asarray(region, np.float32))
    image = place(rng, behind, shine(rng, body, alpha, uniform(rng, 0, 6.28)), alpha)
    return Layout(image, region, masks_of(*parts), behind)


def plate(rng: Rng, size: int) -> Layout:
    """A flat rectangle with holes, stripes or marks."""
    behind = surfaces.backdrop(rng, size)
    angle = uniform(rng, 0, math.pi) if chance(rng, 0.5) else uniform(rng, -0.06, 0.06)
    centre = centre_spot(rng, size, 0.08)
    length, width = size * uniform(rng, 0.4, 0.95), size * uniform(rng, 0.3, 0.75)
    alpha = fill_polygon(size, box(centre, length, width, angle, uniform(rng, 0, 0.4)))
    body = material(rng, size)
    along, _ = frame(size, angle, centre)
    body = np.asarray(body * (1 + uniform(rng, -0.25, 0.25) * along / size)[..., None], np.float32)
    parts = [alpha]
    region = alpha > 0.5
    if chance(rng, 0.3):
        stripe = np.asarray(np.clip(length * uniform(rng, 0.05, 0.3) - np.abs(along), 0, 1) * alpha, np.float32)
        body = mix(body, surfaces.colour(rng), stripe)
        parts.append(stripe)
    for _ in range(int(rng.integers(0, 5))):
        u, v = uniform(rng, -0.42, 0.42) * length, uniform(rng, -0.42, 0.42) * width
        spot = (
            centre[0] + math.cos(angle) * u - math.sin(angle) * v,
            centre[1] + math.sin(angle) * u + math.cos(angle) * v,
        )
        hole = fill_polygon(size, ring(spot, np.full(40, width * uniform(rng, 0.02, 0.14)), 0.0))
        seen = behind * uniform(rng, 0.3, 1.0) if chance(rng, 0.7) else body * uniform(rng, 0.3, 0.7)
        body = mix(body, np.asarray(seen, np.float32), hole)
        region &= hole < 0.5
        parts.append(hole)
    if chance(rng, 0.35):
        ink = surfaces.colour(rng)
        written = np.zeros((size, size), np.uint8)
        text = "".join(rng.choice(list("ABCDEFHKLMNPRSTXZ0123456789"), int(rng.integers(2, 7))))
        origin = (int(centre[0] - width * 0.3), int(centre[1] + width * uniform(rng, -0.3, 0.3)))
        cv2.putText(written, text, origin, 0, size / 512 * uniform(rng, 0.5, 2), 255, 2, cv2.LINE_AA)
        body = mix(body, ink, np.asarray(written, np.float32) / np.float32(255) * 0.8)
    edge = relief(blurred(alpha, 1.5), uniform(rng, 0, 6.28)) * uniform(rng, 0, 1.5)
    image = place(rng, behind, np.asarray(body + edge[..., None], np.float32), alpha)
    return Layout(image, region, masks_of(*parts), behind)


def elongated(rng: Rng, size: int) -> Layout:
    """A turned part seen from the side: screw, bolt, pen, capsule, rod; head and thread are optional."""
    behind = surfaces.backdrop(rng, size)
    angle = uniform(rng, 0, 2 * math.pi)
    along, across = frame(size, angle, centre_spot(rng, size, 0.06))
    half = size * uniform(rng, 0.25, 0.46)
    radius = size * log_uniform(rng, 0.03, 0.16)
    pitch = radius * uniform(rng, 0.25, 0.8)
    outline: NDArray[np.floating] = np.full_like(along, radius)
    threaded = chance(rng, 0.55)
    phase = (along / pitch + 0.35 * across / radius) * np.float32(2 * math.pi)
    start = uniform(rng, -0.6, 0.3) * half
    in_thread = (along > start) if threaded else np.zeros_like(along, np.bool_)
    outline = np.where(in_thread, radius * (0.9 + 0.1 * np.sin(along / pitch * np.float32(2 * math.pi))), outline)
    head = along < -half * uniform(rng, 0.6, 0.85)
    has_head = chance(rng, 0.6)
    if has_head:
        outline = np.where(head, radius * uniform(rng, 1.3, 2.2), outline)
    ends = half - np.abs(along)
    if chance(rng, 0.4):
        outline = outline * np.clip(ends / (radius * uniform(rng, 0.5, 3)), 0, 1) ** 0.5
    alpha = np.asarray(np.clip(np.minimum(outline - np.abs(across), ends) + 0.5, 0, 1), np.float32)
    body = material(rng, size)
    if not threaded and chance(rng, 0.5):
        half_mark = np.asarray(np.clip(along - start, 0, 1), np.float32)
        body = mix(body, surfaces.colour(rng), half_mark)
    bulge = np.sqrt(np.clip(1 - (across / (outline + 1e-3)) ** 2, 0, 1))
    shade = uniform(rng, 0.3, 0.8) * (bulge - 0.6) + uniform(rng, -0.3, 0.3) * across / radius
    shade = shade + np.where(in_thread, uniform(rng, 0.2, 0.5) * np.sin(phase), 0)
    shade = shade + uniform(rng, 0, 0.6) * np.exp(-(((across / radius) - uniform(rng, -0.4, 0.4)) ** 2) * 40)
    body = np.asarray(body * (1 + shade)[..., None], np.float32)
    image = place(rng, behind, body, alpha)
    parts = [alpha]
    if has_head:
        parts.append(alpha * head)
    if threaded:
        parts.append(alpha * in_thread)
    return Layout(image, alpha > 0.5, masks_of(*parts), behind)


def sheet(surface: surfaces.Surface) -> Builder:
    """A builder whose material fills the picture, sometimes short of one border."""

    def build(rng: Rng, size: int) -> Layout:
        image = surface(rng, size)
        behind = surfaces.plain(rng, size, "grey") * np.float32(log_uniform(rng, 0.05, 1))
        region = np.ones((size, size), np.bool_)
        if chance(rng, 0.2):
            along, _ = frame(size, float(rng.integers(4)) * math.pi / 2 + uniform(rng, -0.04, 0.04))
            wavy = along + noise(rng, size, size / 3) * size * 0.008
            alpha = np.asarray(np.clip(size * uniform(rng, 0.36, 0.48) - wavy, 0, 1), np.float32)
            fall = blurred(alpha, size * 0.02) if chance(rng, 0.6) else alpha
            image = mix(behind, np.asarray(image * (0.4 + 0.6 * fall)[..., None], np.float32), alpha)
            region = np.asarray(alpha > 0.5, np.bool_)
        parts = () if region.all() else (region,)
        return Layout(np.asarray(image, np.float32), region, parts, np.asarray(behind, np.float32))

    return build
