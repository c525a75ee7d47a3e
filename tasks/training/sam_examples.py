"""Images and target masks for the training of the small SAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.fields import Image, Rng, chance
from cascade.synthesis.layout import material
from cascade.synthesis.patchwork import generate_patchwork
from cascade.tasks.training.photographs import load_pictures, photographed
from cascade.tasks.training.picture_regions import Regions, cut_outs, picture_regions
from cascade.tasks.training.real_scenes import real_scene
from cascade.tasks.training.resizing import resized

MIN_PIXELS = 24
"""Area below which a mask is no target."""

LEAST_CROP = 0.25
"""Least side of a crop as a share of the scene's; sides are drawn log-uniformly. The generator's defects are mostly
small, those of users are not: one in ten of the former covers a tenth of the image or more."""

DEFECT_SHARE = 0.9
"""Share of defects among the targets. A click on damage may mean the damage or the part below it; predicted IoU learns
which from this share, and the cascade clicks on what CLIP holds for damage."""

MOST = 16
"""Masks of one example."""

KINDS = ("scene", "patchwork", "scene", "cut-outs", "scene", "patchwork", "scene", "regions")
"""What the examples of consecutive seeds are."""


@dataclass(frozen=True)
class Example:
    """uint8 image ``[S, S, 3]`` and packed bool masks; the last ``wanted`` are what a click means, if it can.

    ``damage`` says that these are damage, and that together they are all there is.
    """

    image: NDArray[np.uint8]
    packed: NDArray[np.uint8]
    count: int
    wanted: int
    damage: bool

    def mask(self, index: int) -> NDArray[np.bool_]:
        """One bool mask ``[S, S]``."""
        side = self.image.shape[0]
        return np.unpackbits(self.packed[index], count=side * side).reshape(side, side).astype(np.bool_)


def make_example(seed: int, size: int, folder: Path | None, *, held_out: bool = False) -> Example:
    """An example of the kind that ``KINDS`` has for a seed.

    Args:
        seed: not negative; different seeds share no scene.
        size: side in pixels.
        folder: pictures of surfaces, beside those that packages ship.
        held_out: with pictures that no training takes.
    """
    kind = KINDS[seed % len(KINDS)]
    for attempt in range(16):
        own = seed * 16 + attempt
        if kind == "scene":
            example = _scene(own, size, folder, held_out)
        elif kind == "patchwork":
            example = _patchwork(own, size, folder, held_out)
        else:
            make = cut_outs if kind == "cut-outs" else picture_regions
            example = _of_regions(make(own, size, load_pictures(folder, held_out)))
        if example is not None:
            return example
    raise ValueError(f"nothing to segment near seed {seed}")


def _scene(seed: int, size: int, folder: Path | None, held_out: bool) -> Example | None:
    scene = real_scene(seed, size, folder, held_out=held_out, defective=True if seed % 4 else None)
    parts = [mask for mask in scene.segments if mask.sum() >= MIN_PIXELS]
    if scene.mask.sum() < MIN_PIXELS:
        return _packed(scene.image, parts[:10], [], damage=True)
    # Defects come last among the segments; their union is one more target of that kind.
    single = [mask for mask in parts if not (mask & ~scene.mask).any()]
    others = [mask for mask in parts if (mask & ~scene.mask).any()]
    return _packed(scene.image, others[:10], single if len(single) == 1 else [*single, scene.mask], damage=True)


def _patchwork(seed: int, size: int, folder: Path | None, held_out: bool) -> Example | None:
    pictures = load_pictures(folder, held_out)

    def surface(rng: Rng, size: int) -> Image:
        return photographed(rng, size, pictures) if chance(rng, 0.6) else material(rng, size)

    patchwork = generate_patchwork(seed, size, surface)
    ground, pieces = (
        [mask for mask in masks if mask.sum() >= MIN_PIXELS] for masks in (patchwork.ground, patchwork.pieces)
    )
    return _packed(patchwork.image, ground[:4], pieces, damage=False)


def _of_regions(regions: Regions) -> Example | None:
    return _packed(regions.image, [], [mask for mask in regions.masks if mask.sum() >= MIN_PIXELS], damage=False)


def _packed(
    image: NDArray[np.uint8], others: list[NDArray[np.bool_]], wanted: list[NDArray[np.bool_]], *, damage: bool
) -> Example | None:
    wanted = wanted[: MOST - len(others)]
    masks = [*others, *wanted]
    if not masks:
        return None
    packed = np.stack([np.packbits(mask.ravel()) for mask in masks])
    return Example(image, packed, len(masks), len(wanted), damage)


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
        targets: ``[T, side, side]``, what prompts ask for.
        damage: ``[side, side]``, all damage in the crop, perhaps none; None where nothing is damage.
    """

    image: NDArray[np.uint8]
    targets: NDArray[np.bool_]
    damage: NDArray[np.bool_] | None


def augment(rng: np.random.Generator, example: Example, targets: int, side: int) -> View:
    """A crop with ``targets`` masks, scaled to ``side``, mirrored, turned and re-coloured.

    A crop is laid over one of the segments, with sides between ``LEAST_CROP`` and all of the scene's. Segments of
    which less than a quarter is left are no targets. Targets repeat when there are fewer; what is wanted is taken with
    a probability of ``DEFECT_SHARE`` where there is such.
    """
    everything = np.stack([example.mask(index) for index in range(example.count)])
    whole = example.image.shape[0]
    window = _crop(rng, everything[int(rng.integers(example.count))], int(LEAST_CROP * whole))
    left = everything[(slice(None), *window)]
    kept = left.sum(axis=(1, 2)) * 4 >= everything.sum(axis=(1, 2))
    image = resized(example.image[window], side)
    wanted: list[NDArray[np.bool_]] = []
    others: list[NDArray[np.bool_]] = []
    for index in np.flatnonzero(kept):
        scaled = resized(left[index].astype(np.uint8) * 255, side) > 127
        if scaled.sum() >= MIN_PIXELS:
            (wanted if index >= example.count - example.wanted else others).append(scaled)
    if not wanted and not others:
        return augment(rng, example, targets, side)
    chosen = []
    for _ in range(targets):
        source = wanted if wanted and (rng.random() < DEFECT_SHARE or not others) else others
        chosen.append(_one_of(rng, source))
    everywhere = np.where(left[example.count - example.wanted :].any(axis=0), 255, 0).astype(np.uint8)
    masks = np.stack([*chosen, resized(everywhere, side) > 127])
    turns = int(rng.integers(4))
    image, masks = np.rot90(image, turns), np.rot90(masks, turns, axes=(1, 2))
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    masks = np.ascontiguousarray(masks)
    return View(_recoloured(rng, image), masks[:-1], masks[-1] if example.damage else None)


def _recoloured(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image under other light, at times with its channels exchanged, grey, or out of focus."""
    gain, offset = rng.uniform(0.7, 1.3), rng.uniform(-25, 25)
    image = cv2.convertScaleAbs(np.ascontiguousarray(image), alpha=gain, beta=offset)
    kind = rng.random()
    if kind < 0.25:
        image = image[..., rng.permutation(3)]
    elif kind < 0.4:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), rng.uniform(0.4, 1.4))
    return np.ascontiguousarray(image)
