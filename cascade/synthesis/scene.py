"""One generated inspection photograph with its masks and its caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.synthesis import assemblies, objects, surfaces
from cascade.synthesis.camera import photograph
from cascade.synthesis.captions import abnormal_sentence, normal_sentence
from cascade.synthesis.defects import DEFECTS, apply_defect
from cascade.synthesis.fields import Mask, Rng, chance, log_uniform, uniform
from cascade.synthesis.layout import Builder, Layout

AREA_RANGE = (0.0005, 0.25)
"""Fractions of the picture that one defect may aim at; drawn log-uniformly."""

_BUILDERS: dict[str, Builder] = {
    "carpet": objects.sheet(surfaces.carpet),
    "fabric": objects.sheet(surfaces.fabric),
    "leather": objects.sheet(surfaces.leather),
    "wood": objects.sheet(surfaces.wood),
    "tile": objects.sheet(surfaces.tiles),
    "granite": objects.sheet(surfaces.granular),
    "marble": objects.sheet(surfaces.marbled),
    "metal surface": objects.sheet(surfaces.brushed),
    "painted surface": objects.sheet(surfaces.plain),
    "grid": objects.sheet(surfaces.mesh),
    "perforated sheet": objects.sheet(surfaces.perforated),
    "corrugated panel": objects.sheet(surfaces.ribbed),
    "screw thread": objects.sheet(surfaces.threaded),
    "nut": objects.round_body,
    "bean": objects.round_body,
    "pill": objects.round_body,
    "metal nut": objects.ring_body,
    "bottle": objects.ring_body,
    "washer": objects.ring_body,
    "metal plate": objects.plate,
    "bracket": objects.plate,
    "label": objects.plate,
    "screw": objects.elongated,
    "capsule": objects.elongated,
    "bolt": objects.elongated,
    "pasta": assemblies.several_parts,
    "tablets": assemblies.several_parts,
    "candle": assemblies.several_parts,
    "circuit board": assemblies.board,
    "keypad": assemblies.board,
    "stone": objects.sheet(surfaces.photographed),
}

CATEGORIES: tuple[str, ...] = tuple(_BUILDERS)
"""Class words of the generator."""


@dataclass(frozen=True)
class Scene:
    """A photograph and everything that is known about it.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB.
        mask: bool ``[H, W]``, union of all defects; empty for an intact scene.
        segments: bool ``[H, W]`` masks of objects, of their parts and of each single defect (defects come last).
        category: class word, one of ``CATEGORIES``.
        defect: kind of the first defect, one of ``DEFECTS``; None for an intact scene.
        caption: one English sentence about the scene.
    """

    image: NDArray[np.uint8]
    mask: Mask
    segments: tuple[Mask, ...]
    category: str
    defect: str | None
    caption: str


def _damage(rng: Rng, layout: Layout) -> tuple[Layout, list[Mask], str]:
    """Adds one to three kinds of defect; tries again until one of them is visible."""
    found: list[Mask] = []
    first = ""
    wanted = 1 if chance(rng, 0.65) else int(rng.integers(2, 4))
    repeat = chance(rng, 0.35)
    kind = DEFECTS[int(rng.integers(len(DEFECTS)))]
    area = log_uniform(rng, *AREA_RANGE)
    for attempt in range(16):
        if len(found) >= wanted or (found and attempt >= 5):
            break
        if not (repeat and found):
            kind = DEFECTS[int(rng.integers(len(DEFECTS)))]
            area = log_uniform(rng, *AREA_RANGE)
        limit = 0.6 * float(layout.region.mean())
        image, mask = apply_defect(rng, layout, kind, min(area * uniform(rng, 0.7, 1.4), limit, AREA_RANGE[1]))
        if mask.any():
            layout = Layout(image, layout.region, layout.parts, layout.behind)
            found.append(mask)
            first = first or kind
    return layout, found, first


def generate_scene(
    seed: int,
    size: int = 512,
    category: str | None = None,
    defective: bool | None = None,
    changed: Callable[[str, Builder], Builder] | None = None,
) -> Scene:
    """A scene that is a pure function of its arguments.

    Args:
        seed: not negative; the same seed gives the same bytes in every process.
        size: side of the square photograph in pixels, at least 64.
        category: one of ``CATEGORIES``; drawn when None.
        defective: whether to damage the scene; drawn (60 % damaged) when None.
        changed: another builder in place of a category's own.

    Raises:
        ValueError: an unknown category, or a size below 64.
    """
    if size < 64:
        raise ValueError(f"size is {size}; choose at least 64 pixels")
    if category is not None and category not in _BUILDERS:
        raise ValueError(f"unknown category {category!r}; valid: {', '.join(CATEGORIES)}")
    rng = np.random.default_rng(seed)
    drawn = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    damaged = chance(rng, 0.6)
    category = drawn if category is None else category
    damaged = damaged if defective is None else defective
    grey = chance(rng, 0.3)
    builder = _BUILDERS[category]
    layout = (changed(category, builder) if changed else builder)(rng, size)
    found: list[Mask] = []
    defect = None
    if damaged:
        layout, found, kind = _damage(rng, layout)
        defect = kind or None
    caption = abnormal_sentence(rng, category, defect) if found else normal_sentence(rng, category)
    mask = np.any(found, axis=0) if found else np.zeros((size, size), np.bool_)
    return Scene(
        image=photograph(rng, layout.image, grey),
        mask=np.asarray(mask, np.bool_),
        segments=(*layout.parts, *found),
        category=category,
        defect=defect,
        caption=caption,
    )
