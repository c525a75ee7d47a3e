"""Images, masks and class words for the training of the small CLIP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.scene import CATEGORIES, generate_scene
from cascade.tasks.training.resizing import resized

_OTHER_NOUNS = ("object", "object", "object", "product", "item", "surface", "part", "material", "thing")


@dataclass(frozen=True)
class Example:
    """uint8 image ``[S, S, 3]`` and mask 0/255 ``[S, S]`` with the caption's ingredients."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    category: str
    defect: str | None


def make_example(seed: int, size: int) -> Example:
    """One example from one scene seed."""
    scene = generate_scene(seed, size)
    return Example(scene.image, scene.mask.astype(np.uint8) * 255, scene.category, scene.defect)


def augment(
    rng: np.random.Generator, example: Example, size: int, least: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random crop (a share ``least``..1 of each side), mirrored, turned and re-coloured, ``size`` wide."""
    side = example.image.shape[0]
    height, width = (int(side * rng.uniform(least, 1.0)) for _ in range(2))
    if rng.random() < 0.5:
        height = width = max(height, width)
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    window = np.s_[top : top + height, left : left + width]
    image = resized(example.image[window], size)
    mask = resized(example.mask[window], size)
    turns = int(rng.integers(4))
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.1:
        image = 255 - image
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def class_word(rng: np.random.Generator, vocabulary: list[str]) -> str:
    """A category, a generic word or a random one: the states must work with class words never seen."""
    pick = rng.random()
    if pick < 0.35:
        return CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    if pick < 0.6:
        return _OTHER_NOUNS[int(rng.integers(len(_OTHER_NOUNS)))]
    words = [vocabulary[int(index)] for index in rng.integers(len(vocabulary), size=1 + int(pick > 0.85))]
    return "_".join(words) if rng.random() < 0.3 else " ".join(words)
