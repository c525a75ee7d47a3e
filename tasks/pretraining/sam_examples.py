"""Images and target masks for the training of the small SAM."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.scene import generate_scene

MIN_PIXELS = 24
"""Area below which a mask is no target."""


@dataclass(frozen=True)
class Example:
    """uint8 image ``[S, S, 3]`` and packed bool masks; the last ``defects`` of them are single defects."""

    image: NDArray[np.uint8]
    packed: NDArray[np.uint8]
    count: int
    defects: int

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
            return Example(scene.image, packed, len(parts), len(defects))
    raise ValueError(f"no scene with segments near seed {seed}")


def augment(rng: np.random.Generator, example: Example, targets: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image ``[S, S, 3]`` and target masks ``[targets, S, S]``, mirrored, turned, cropped and re-coloured.

    Targets repeat when the scene has fewer; a defect is taken with a probability of 70 % where there is one.
    """
    chosen = []
    for _ in range(targets):
        if example.defects and (rng.random() < 0.7 or example.defects == example.count):
            chosen.append(example.count - 1 - int(rng.integers(example.defects)))
        else:
            chosen.append(int(rng.integers(example.count - example.defects)))
    image = example.image
    masks = np.stack([example.mask(index) for index in chosen])
    side = image.shape[0]
    if rng.random() < 0.5:
        height, width = (int(side * rng.uniform(0.5, 1.0)) for _ in range(2))
        for _ in range(8):
            top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
            window = np.s_[top : top + height, left : left + width]
            if all(mask[window].sum() * 4 >= mask.sum() and mask[window].sum() >= MIN_PIXELS for mask in masks):
                image = cv2.resize(image[window], (side, side), interpolation=cv2.INTER_LINEAR)
                resized = [
                    cv2.resize(mask[window].astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_LINEAR)
                    for mask in masks
                ]
                masks = np.stack(resized) > 127
                break
    turns = int(rng.integers(4))
    image, masks = np.rot90(image, turns), np.rot90(masks, turns, axes=(1, 2))
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    return np.ascontiguousarray(image), np.ascontiguousarray(masks)
