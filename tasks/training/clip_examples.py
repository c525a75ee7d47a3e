"""Images, masks and class words for the training of the small CLIP."""

from __future__ import annotations

import itertools
import multiprocessing as mp
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.scene import CATEGORIES
from cascade.tasks.training.real_scenes import real_scene
from cascade.tasks.training.resizing import resized

_AHEAD = 16
"""Seeds whose examples are made while the ones before are taken; even."""

_OTHER_NOUNS = ("object", "object", "object", "product", "item", "surface", "part", "material", "thing")


@dataclass(frozen=True)
class Example:
    """uint8 image ``[S, S, 3]`` and mask ``[S/4, S/4]``, the share of a cell that is damaged in 0..255."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def make_examples(seed: int, size: int, folder: Path | None, held_out: bool) -> tuple[Example, ...]:
    """A crop of one damaged scene; for odd seeds also of the same scene intact."""
    rng = np.random.default_rng([seed, 5])
    whole = size * 5 // 4
    side = whole if rng.random() < 0.4 else int(whole * rng.uniform(0.6, 1))
    top, left = (int(start) for start in rng.integers(whole - side + 1, size=2))
    window = np.s_[top : top + side, left : left + side]
    examples = []
    for defective in (True, False) if seed % 2 else (True,):
        scene = real_scene(seed, whole, folder, held_out=held_out, defective=defective)
        mask = resized(np.ascontiguousarray(scene.mask[window]).astype(np.uint8) * 255, size // 4)
        examples.append(Example(resized(np.ascontiguousarray(scene.image[window]), size), mask))
    return tuple(examples)


def example_stream(
    first_seed: int, size: int, folder: Path | None, *, held_out: bool = False, skip: int = 0, workers: int = 1
) -> Generator[Example, None, None]:
    """Examples of consecutive seeds without end, the first ``skip`` left out, made by processes of their own."""
    make = partial(make_examples, size=size, folder=folder, held_out=held_out)
    # Three examples of two seeds, the first of which is even.
    first = first_seed + skip // 3 * 2
    with mp.get_context("spawn").Pool(workers, cv2.setNumThreads, (1,)) as pool:
        ahead = pool.map_async(make, range(first, first + _AHEAD))
        for start in itertools.count(first + _AHEAD, _AHEAD):
            ready = list(itertools.chain.from_iterable(ahead.get()))
            ahead = pool.map_async(make, range(start, start + _AHEAD))
            yield from ready[skip % 3 if start == first + _AHEAD else 0 :]


def class_word(rng: np.random.Generator, vocabulary: list[str]) -> str:
    """A category, a generic word or a random one: the states must work with class words never seen."""
    pick = rng.random()
    if pick < 0.35:
        return CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    if pick < 0.6:
        return _OTHER_NOUNS[int(rng.integers(len(_OTHER_NOUNS)))]
    words = [vocabulary[int(index)] for index in rng.integers(len(vocabulary), size=1 + int(pick > 0.85))]
    return "_".join(words) if rng.random() < 0.3 else " ".join(words)
