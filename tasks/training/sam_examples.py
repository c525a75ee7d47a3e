"""Images and target masks for the training of the small SAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.patchwork import generate_patchwork
from cascade.synthesis.scene import generate_scene
from cascade.tasks.training.resizing import resized

MIN_PIXELS = 24
"""Area below which a mask is no target."""

LEAST_CROP = 0.2
"""Least side of a crop as a share of the scene's; sides are drawn log-uniformly. The generator's defects are mostly
small, those of users are not: one in ten of the former covers a tenth of the image or more."""

DEFECT_SHARE = 0.9
"""Share of defects among the targets. A click on damage may mean the damage or the part below it; predicted IoU learns
which from this share, and the cascade clicks on what CLIP holds for damage."""


@dataclass(frozen=True)
class Example:
    """uint8 image ``[S, S, 3]`` and packed bool masks; the last ``defects`` are damage, or the pieces of a patchwork.

    ``category`` is the scene's class word; empty for a patchwork.
    """

    image: NDArray[np.uint8]
    packed: NDArray[np.uint8]
    count: int
    defects: int
    category: str

    def mask(self, index: int) -> NDArray[np.bool_]:
        """One bool mask ``[S, S]``."""
        side = self.image.shape[0]
        return np.unpackbits(self.packed[index], count=side * side).reshape(side, side).astype(np.bool_)


def make_example(seed: int, size: int) -> Example:
    """One example from the first scene at or after ``seed`` that shows something to segment.

    Scenes follow each other at a stride that keeps the seeds of different examples apart.
    """
    for attempt in range(16):
        scene = generate_scene(seed * 16 + attempt, size, defective=True if attempt % 4 else None)
        parts = [mask for mask in scene.segments if mask.sum() >= MIN_PIXELS]
        if scene.mask.any() and scene.mask.sum() >= MIN_PIXELS:
            # Defects come last among the segments; their union is one more target of that kind.
            single = [mask for mask in parts if not (mask & ~scene.mask).any()]
            others = [mask for mask in parts if (mask & ~scene.mask).any()]
            defects = single if len(single) == 1 else [*single, scene.mask]
            parts = [*others[:10], *defects]
        else:
            defects, parts = [], parts[:10]
        if parts:
            packed = np.stack([np.packbits(mask.ravel()) for mask in parts])
            return Example(scene.image, packed, len(parts), len(defects), scene.category)
    raise ValueError(f"no scene with segments near seed {seed}")


def make_patchwork(seed: int, size: int) -> Example:
    """A patchwork: its pieces in the place of damage, and the ground; it has no category."""
    patchwork = generate_patchwork(seed, size)
    parts = [mask for mask in patchwork.ground if mask.sum() >= MIN_PIXELS][:4]
    pieces = [mask for mask in patchwork.pieces if mask.sum() >= MIN_PIXELS][:12]
    packed = np.stack([np.packbits(mask.ravel()) for mask in (*parts, *pieces)])
    return Example(patchwork.image, packed, len(parts) + len(pieces), len(pieces), "")


def make_mixed(seed: int, size: int) -> Example:
    """A scene for even seeds, a patchwork for odd ones."""
    return make_patchwork(seed, size) if seed % 2 else make_example(seed, size)


def _crop(rng: np.random.Generator, segment: NDArray[np.bool_], least: int) -> tuple[slice, slice]:
    """Rows and columns of a random window that holds a random pixel of the segment, ``least`` or more a side."""
    whole = segment.shape[0]
    where = np.flatnonzero(segment)
    pixel = divmod(int(where[rng.integers(len(where))]), whole)
    sides = [round(float(np.exp(rng.uniform(np.log(least), np.log(whole))))) for _ in range(2)]
    if rng.random() < 0.5:
        sides = [max(sides)] * 2
    starts = [
        int(rng.integers(max(0, at - extent + 1), min(at, whole - extent) + 1))
        for at, extent in zip(pixel, sides, strict=True)
    ]
    return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])


def _one_of(rng: np.random.Generator, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """One of the masks, drawn by the root of their areas.

    Where small masks are as likely as large ones, predicted IoU learns to prefer the smallest of the three on offer.
    """
    weight = np.sqrt([mask.sum() for mask in masks])
    return masks[int(rng.choice(len(masks), p=weight / weight.sum()))]


@dataclass(frozen=True)
class View:
    """A crop of an example: uint8 image ``[side, side, 3]`` and bool masks.

    Attributes:
        image: what SAM sees.
        category: the scene's class word.
        targets: ``[T, side, side]``, what prompts ask for.
        damage: ``[side, side]``, all damage in the crop, perhaps none.
    """

    image: NDArray[np.uint8]
    category: str
    targets: NDArray[np.bool_]
    damage: NDArray[np.bool_]


def augment(rng: np.random.Generator, example: Example, targets: int, side: int) -> View:
    """A crop with ``targets`` masks, scaled to ``side``, mirrored, turned and re-coloured.

    A crop is laid over one of the segments, with sides between ``LEAST_CROP`` and all of the scene's. Segments of
    which less than a quarter is left are no targets. Targets repeat when there are fewer; a defect is taken with a
    probability of ``DEFECT_SHARE`` where there is one.
    """
    everything = np.stack([example.mask(index) for index in range(example.count)])
    whole = example.image.shape[0]
    window = _crop(rng, everything[int(rng.integers(example.count))], int(LEAST_CROP * whole))
    left = everything[(slice(None), *window)]
    kept = left.sum(axis=(1, 2)) * 4 >= everything.sum(axis=(1, 2))
    image = resized(example.image[window], side)
    damage: list[NDArray[np.bool_]] = []
    others: list[NDArray[np.bool_]] = []
    for index in np.flatnonzero(kept):
        scaled = resized(left[index].astype(np.uint8) * 255, side) > 127
        if scaled.sum() >= MIN_PIXELS:
            (damage if index >= example.count - example.defects else others).append(scaled)
    if not damage and not others:
        return augment(rng, example, targets, side)
    chosen = []
    for _ in range(targets):
        source = damage if damage and (rng.random() < DEFECT_SHARE or not others) else others
        chosen.append(_one_of(rng, source))
    everywhere = np.where(left[example.count - example.defects :].any(axis=0), 255, 0).astype(np.uint8)
    masks = np.stack([*chosen, resized(everywhere, side) > 127])
    turns = int(rng.integers(4))
    image, masks = np.rot90(image, turns), np.rot90(masks, turns, axes=(1, 2))
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    masks = np.ascontiguousarray(masks)
    return View(np.ascontiguousarray(image), example.category, masks[:-1], masks[-1])
