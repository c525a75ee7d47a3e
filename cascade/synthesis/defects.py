"""Damage painted into a picture, with the exact pixels that it changed."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from cascade.synthesis import surfaces
from cascade.synthesis.fields import (
    Field,
    Image,
    Mask,
    Rng,
    blob,
    blurred,
    chance,
    draw_curve,
    frame,
    log_uniform,
    mix,
    noise,
    relief,
    uniform,
    walk,
)
from cascade.synthesis.layout import Layout

VISIBLE = 0.04
"""Mean brightness change (0..1) inside a mask below which a defect is strengthened."""

Painter = Callable[[Rng, Layout, float], tuple[Image, Field]]
"""``(rng, layout, area) -> (painted, opacity)``; the area is in pixels."""


def _spot(rng: Rng, region: Mask) -> tuple[float, float]:
    """A random (x, y) inside the region."""
    rows, columns = np.nonzero(region[::4, ::4])
    if len(rows) == 0:
        rows, columns = np.array([region.shape[0] // 8]), np.array([region.shape[1] // 8])
    pick = int(rng.integers(len(rows)))
    return float(columns[pick] * 4 + rng.integers(4)), float(rows[pick] * 4 + rng.integers(4))


def _rim_spot(rng: Rng, region: Mask) -> tuple[float, float]:
    """A random (x, y) on the region's border; on the picture's border when the region fills it."""
    inner = cv2.erode(region.astype(np.uint8), np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return _spot(rng, region & (inner == 0))


def _tone(rng: Rng, image: Image, where: tuple[float, float]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A colour that differs from the picture near ``where``; the difference is log-uniform in 0.08..0.8."""
    size = image.shape[0]
    x, y = (int(np.clip(value, 4, size - 5)) for value in where)
    local = image[y - 4 : y + 5, x - 4 : x + 5].mean(axis=(0, 1))
    step = log_uniform(rng, 0.1, 0.8)
    if chance(rng, 0.55):
        sign = -1.0 if local.mean() > uniform(rng, 0.15, 0.75) else 1.0
        return np.asarray(np.clip(local + sign * step, 0, 1), np.float32)
    other = surfaces.colour(rng, "vivid" if chance(rng, 0.6) else "any")
    return np.asarray(local + (other - local) * min(1.0, 0.3 + step), np.float32)


def _opacity(field: Field, softness: float) -> Field:
    """0 outside, 1 well inside a signed field."""
    return np.asarray(np.clip(field / max(softness, 1e-3), 0, 1), np.float32)


def _scratch(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    strokes = 1 if chance(rng, 0.6) else int(rng.integers(2, 6))
    width = max(1.0, min(log_uniform(rng, 1, 5) * size / 512, math.sqrt(area / 8)))
    length = min(area / (width * strokes), 0.9 * size)
    heading = uniform(rng, 0, 6.28)
    alpha = np.zeros((size, size), np.float32)
    for _ in range(strokes):
        start = (where[0] + rng.normal(0, 3 * width), where[1] + rng.normal(0, 3 * width))
        path = walk(rng, start, heading + rng.normal(0, 0.15), length * uniform(rng, 0.6, 1.2), 0.02)
        alpha = np.maximum(alpha, draw_curve(size, path, width))
    painted = mix(layout.image, _tone(rng, layout.image, where), np.ones_like(alpha))
    if chance(rng, 0.4):
        painted = np.asarray(painted + relief(alpha * 4, uniform(rng, 0, 6.28))[..., None], np.float32)
    return painted, alpha


def _crack(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    width = max(1.0, min(log_uniform(rng, 1, 7) * size / 512, math.sqrt(area / 6)))
    length = min(area / width, 1.2 * size)
    heading = uniform(rng, 0, 6.28)
    path = walk(rng, where, heading, length * 0.7, 0.35)
    alpha = draw_curve(size, path, width)
    for _ in range(int(rng.integers(0, 4))):
        root = path[int(rng.integers(len(path)))]
        twig = walk(rng, (float(root[0]), float(root[1])), heading + rng.normal(0, 1), length * 0.25, 0.4)
        alpha = np.maximum(alpha, draw_curve(size, twig, width * 0.6))
    dark = layout.image * np.float32(uniform(rng, 0.05, 0.6))
    if chance(rng, 0.2):
        dark = mix(layout.image, _tone(rng, layout.image, where), np.ones_like(alpha))
    return np.asarray(dark, np.float32), alpha


def _hole(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    field = blob(rng, size, where, area, uniform(rng, 0, 0.3), uniform(rng, 1, 2))
    alpha = _opacity(field, uniform(rng, 0.05, 0.3))
    floor = np.asarray(layout.image * np.float32(uniform(rng, 0.02, 0.5)), np.float32)
    if chance(rng, 0.25):
        floor = layout.behind
    lip = relief(blurred(alpha, 1.2) * 6, uniform(rng, 0, 6.28)) * uniform(rng, 0, 0.5)
    return np.asarray(floor + lip[..., None], np.float32), alpha


def _stain(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    field = blob(rng, size, where, area, uniform(rng, 0.2, 1), uniform(rng, 1, 4))
    alpha = _opacity(field, uniform(rng, 0.05, 0.5)) * np.float32(uniform(rng, 0.35, 1.0))
    if chance(rng, 0.4):
        ring = np.exp(-((field - 0.08) ** 2) * 60) * (field > 0)
        alpha = np.asarray(np.clip(alpha * 0.6 + 0.5 * ring, 0, 1), np.float32)
    ink = _tone(rng, layout.image, where)
    painted = mix(layout.image, ink, np.ones_like(alpha))
    if chance(rng, 0.4):
        painted = np.asarray(layout.image * (0.3 + ink), np.float32)
    if chance(rng, 0.3):
        painted = np.asarray(painted * (1 + 0.3 * noise(rng, size, 6)[..., None]), np.float32)
    return painted, alpha


def _dent(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    field = np.clip(blob(rng, size, where, area, uniform(rng, 0, 0.4), uniform(rng, 1, 4)), 0, 1)
    height = blurred(np.asarray(field, np.float32), 1.0) * np.float32(math.sqrt(area))
    slope = relief(height, uniform(rng, 0, 6.28)) * uniform(rng, 0.2, 0.9)
    painted = layout.image * (1 + slope)[..., None] + 0.25 * slope[..., None]
    painted = painted * (1 - uniform(rng, 0, 0.25) * field)[..., None]
    return np.asarray(painted, np.float32), np.asarray(field > 0.02, np.float32)


def _missing(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _rim_spot(rng, layout.region)
    field = blob(rng, size, where, area * 1.6, uniform(rng, 0.1, 0.6), uniform(rng, 1, 2))
    alpha = _opacity(field, 0.06)
    lip = relief(blurred(alpha, 1.0) * 5, uniform(rng, 0, 6.28)) * uniform(rng, 0, 0.3)
    painted = layout.behind
    if layout.region.all() or chance(rng, 0.3):
        broken = surfaces.granular(rng, size, "grey" if chance(rng, 0.5) else "any")
        painted = mix(broken, layout.image, np.full_like(alpha, uniform(rng, 0, 0.7)))
    return np.asarray(painted + lip[..., None], np.float32), alpha


def _fibre(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    width = max(1.0, min(log_uniform(rng, 1, 6) * size / 512, math.sqrt(area / 10)))
    length = min(area / width, 1.2 * size)
    path = walk(rng, where, uniform(rng, 0, 6.28), length, uniform(rng, 0.05, 0.3))
    alpha = draw_curve(size, path, width)
    ink = _tone(rng, layout.image, where)
    return mix(layout.image, ink, np.ones_like(alpha)), alpha


def _contamination(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    pieces = 1 if chance(rng, 0.5) else int(rng.integers(2, 7))
    spread = math.sqrt(area) * uniform(rng, 0.8, 3)
    alpha = np.zeros((size, size), np.float32)
    for _ in range(pieces):
        centre = (where[0] + rng.normal(0, spread) * (pieces > 1), where[1] + rng.normal(0, spread) * (pieces > 1))
        field = blob(rng, size, centre, area / pieces, uniform(rng, 0.1, 0.7), uniform(rng, 1, 3))
        alpha = np.maximum(alpha, _opacity(field, uniform(rng, 0.05, 0.25)))
    ink = _tone(rng, layout.image, where)
    painted = ink * (1 + 0.2 * noise(rng, size, uniform(rng, 2, 8))[..., None])
    shine = relief(blurred(alpha, 1.5) * 8, uniform(rng, 0, 6.28)) * uniform(rng, 0, 0.6)
    return np.asarray(painted + shine[..., None], np.float32), alpha


def _deformation(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _rim_spot(rng, layout.region) if chance(rng, 0.5) else _spot(rng, layout.region)
    bump = np.clip(blob(rng, size, where, area, 0.1, uniform(rng, 1, 3)), 0, 1)
    push = min(0.5 * math.sqrt(area), uniform(rng, 6, 28) * size / 512)
    heading = uniform(rng, 0, 6.28)
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    map_x = x + bump * np.float32(push * math.cos(heading))
    map_y = y + bump * np.float32(push * math.sin(heading))
    painted = cv2.remap(layout.image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    changed = blurred(np.abs(painted - layout.image).max(axis=2), 1.5) > 0.03
    return np.asarray(painted, np.float32), np.asarray((bump > 0.05) & changed, np.float32)


def _discoloration(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    field = blob(rng, size, where, area, uniform(rng, 0.1, 0.8), uniform(rng, 1, 4))
    alpha = _opacity(field, uniform(rng, 0.2, 0.9))
    gain = 1 + rng.normal(0, 0.12, 3) + (1 if chance(rng, 0.5) else -1) * uniform(rng, 0.12, 0.55)
    return np.asarray(layout.image * gain.astype(np.float32), np.float32), alpha


def _corrosion(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    other: tuple[surfaces.Surface, ...] = (
        surfaces.granular,
        surfaces.marbled,
        surfaces.carpet,
        surfaces.wood,
        surfaces.photographed,
        surfaces.photographed,
    )
    worn = other[int(rng.integers(len(other)))](rng, size)
    if chance(rng, 0.5):
        rust = surfaces.colour(rng, "earth")
        worn = np.asarray(rust * (0.5 + 0.5 * worn / max(0.1, float(worn.mean()))), np.float32)
    if chance(rng, 0.3):
        along, across = frame(size, uniform(rng, 0, 3.14), where)
        side = math.sqrt(area)
        field = np.minimum(1 - np.abs(along) / side, 1 - np.abs(across) / side * 1.5)
        field = field + uniform(rng, 0, 0.2) * noise(rng, size, 12, 2)
    else:
        field = blob(rng, size, where, area, uniform(rng, 0.4, 1.2), uniform(rng, 1, 3))
    return worn, _opacity(np.asarray(field, np.float32), uniform(rng, 0.05, 0.4)) * np.float32(uniform(rng, 0.6, 1))


def _misplacement(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    """The picture's own content where it does not belong: shifted, mirrored or turned."""
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    field = blob(rng, size, where, area, uniform(rng, 0, 0.5), uniform(rng, 1, 3))
    turn = cv2.getRotationMatrix2D(where, uniform(rng, 0, 360) if chance(rng, 0.5) else 0.0, 1.0)
    turn[:, 2] += rng.uniform(-0.3, 0.3, 2) * size
    painted = cv2.warpAffine(layout.image, turn, (size, size), borderMode=cv2.BORDER_REFLECT)
    painted = np.asarray(painted * np.float32(1 + rng.normal(0, 0.06)), np.float32)
    changed = blurred(np.abs(painted - layout.image).max(axis=2), 3) > 0.03
    return painted, np.asarray(_opacity(field, uniform(rng, 0.05, 0.4)) * changed, np.float32)


def _smear(rng: Rng, layout: Layout, area: float) -> tuple[Image, Field]:
    """A texture rubbed away or covered by a film: glue, wear, fraying."""
    size = layout.image.shape[0]
    where = _spot(rng, layout.region)
    field = blob(rng, size, where, area, uniform(rng, 0.1, 0.8), uniform(rng, 1, 4))
    sigma = log_uniform(rng, 2, 10) * size / 512
    soft = cv2.GaussianBlur(layout.image, (0, 0), sigma, sigmaY=sigma * uniform(rng, 0.2, 1))
    gain = 1 + (1 if chance(rng, 0.5) else -1) * uniform(rng, 0.05, 0.25)
    film = uniform(rng, 0, 0.06) * noise(rng, size, log_uniform(rng, 4, 40) * size / 512)
    return np.asarray(soft * gain + film[..., None], np.float32), _opacity(field, uniform(rng, 0.1, 0.7))


PAINTERS: dict[str, Painter] = {
    "scratch": _scratch,
    "crack": _crack,
    "hole": _hole,
    "stain": _stain,
    "dent": _dent,
    "broken edge": _missing,
    "fibre": _fibre,
    "contamination": _contamination,
    "deformation": _deformation,
    "discoloration": _discoloration,
    "corrosion": _corrosion,
    "misplacement": _misplacement,
    "smear": _smear,
}
"""Painter of each kind of defect."""

DEFECTS: tuple[str, ...] = tuple(PAINTERS)
"""Kinds of defect, as they are named in captions."""

_THIN = frozenset({"scratch", "crack", "fibre"})


def apply_defect(rng: Rng, layout: Layout, kind: str, area: float) -> tuple[Image, Mask]:
    """Paints one defect.

    Args:
        rng: source of randomness.
        layout: the picture so far.
        kind: one of ``DEFECTS``.
        area: aimed-at fraction of the picture; the result may be smaller where the object ends.

    Returns:
        The new picture and the bool ``[H, W]`` mask of the pixels that changed visibly. The mask is empty, and
        the picture unchanged, when the defect fell outside the object.
    """
    pixels = area * layout.image.shape[0] * layout.image.shape[1]
    painted, alpha = PAINTERS[kind](rng, layout, pixels)
    if kind != "fibre":
        alpha = alpha * layout.region
    mask = np.asarray(alpha > (0.4 if kind in _THIN else 0.25), np.bool_)
    count = int(mask.sum())
    if count < 12:
        return layout.image, np.zeros_like(mask)
    change = np.asarray(np.clip(painted, 0, 1.2) - layout.image, np.float32) * alpha[..., None]
    strength = float(np.abs(change[mask]).max(axis=1).mean())
    if strength < 0.004:
        return layout.image, np.zeros_like(mask)
    floor = VISIBLE * (1.6 if count < 400 else 1.0)
    change *= min(6.0, max(1.0, floor / strength))
    return np.asarray(layout.image + change, np.float32), mask
