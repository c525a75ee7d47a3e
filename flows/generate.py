"""A dataset of generated inspection photographs on disk, in MVTec-AD's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cascade.storage.atomic import replacing
from cascade.storage.errors import ConfigError, nearest
from cascade.synthesis.scene import CATEGORIES, generate_scene

# Far above every seed that the mini models are trained on or validated with.
_FIRST_SEED = 10**12
_SEEDS_OF_A_CATEGORY = 10**9
_SEEDS_OF_A_DATASET = 10**4


def generate_dataset(
    target: Path,
    *,
    categories: Sequence[str] = CATEGORIES,
    good: int = 4,
    defective: int = 8,
    size: int = 512,
    seed: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> int:
    """Write ``<category>/test/<good or defect>/<number>.png`` and their masks; returns the number of images.

    The same arguments write the same bytes. Spaces in names become underscores.

    Args:
        target: the dataset's folder; files of the same name are replaced.
        categories: kinds of object and surface; all by default.
        good: normal images for each category.
        defective: defective images for each category.
        size: side of the square images in pixels.
        seed: choose another for other images; none of them is among those that the mini models were trained on.
        on_image: called after each image.

    Raises:
        ConfigError: a category that the generator does not know.
    """
    for category in categories:
        if category not in CATEGORIES:
            raise ConfigError(f"no category '{category}' to generate; {nearest(category, CATEGORIES)}")
    written = 0
    for category in categories:
        first = _FIRST_SEED + CATEGORIES.index(category) * _SEEDS_OF_A_CATEGORY + seed * _SEEDS_OF_A_DATASET
        for number in range(good + defective):
            _write_scene(target, category, number, first + number, size, defective=number >= good)
            written += 1
            on_image()
    return written


def _write_scene(target: Path, category: str, number: int, seed: int, size: int, *, defective: bool) -> None:
    scene = generate_scene(seed, size, category, defective)
    folder = target / category.replace(" ", "_")
    kind = (scene.defect or "good").replace(" ", "_")
    with replacing(folder / "test" / kind / f"{number:04d}.png") as path:
        Image.fromarray(scene.image).save(path, format="PNG")
    if scene.defect is not None:
        with replacing(folder / "ground_truth" / kind / f"{number:04d}_mask.png") as path:
            Image.fromarray(scene.mask.astype(np.uint8) * 255).save(path, format="PNG")
