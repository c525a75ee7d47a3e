"""Real surfaces: pictures that Python packages ship, and those of a folder, cut into squares for generated scenes."""

from __future__ import annotations

import importlib.util
import zlib
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.fields import Image, Rng, chance, log_uniform, uniform
from cascade.synthesis.surfaces import colour, tinted

LONGEST = 1100
"""Pixels to which the longer side of a picture is reduced."""

_BUNDLED = {
    "skimage": (
        "data",
        ("brick", "grass", "gravel", "moon", "coffee", "camera", "chelsea", "rocket", "coins", "clock_motion",
         "motorcycle_left", "retina", "hubble_deep_field", "ihc"),
    ),
    "sklearn": ("datasets/images", ("china", "flower")),
}  # fmt: skip
_KINDS = frozenset({".jpg", ".jpeg", ".png", ".tga"})
_NO_COLOURS = ("_nm", "_sm", "_gm")
"""How the files of textures end that hold slopes or gloss."""


@lru_cache(maxsize=2)
def load_pictures(folder: Path | None, held_out: bool) -> tuple[NDArray[np.uint8], ...]:
    """RGB pictures ``[H, W, 3]`` that packages ship and of a folder: one in eight if ``held_out``, else the rest.

    Pictures under 200 px, and those that show next to nothing, are left out. In a folder all levels are searched.
    """
    files = [path for module, (under, names) in _BUNDLED.items() for path in _files_of(module, under, names)]
    if folder is not None:
        files += [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _KINDS]
    files = [path for path in files if not path.stem.endswith(_NO_COLOURS)]
    chosen = [path for path in files if (zlib.crc32(path.name.encode()) % 8 == 0) == held_out]
    return tuple(picture for picture in map(_loaded, chosen) if picture is not None)


def _files_of(module: str, under: str, names: tuple[str, ...]) -> list[Path]:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(module)
    return [path for path in sorted((Path(found.origin).parent / under).iterdir()) if path.stem in names]


def _loaded(path: Path) -> NDArray[np.uint8] | None:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None or min(picture.shape[:2]) < 200 or picture.std() < 6:
        return None
    reduction = LONGEST / max(picture.shape[:2])
    if reduction < 1:
        picture = cv2.resize(picture, None, fx=reduction, fy=reduction, interpolation=cv2.INTER_AREA)
    return np.asarray(picture, np.uint8)


def photographed(rng: Rng, size: int, pictures: tuple[NDArray[np.uint8], ...]) -> Image:
    """A square of one picture, turned and re-coloured; a small cut is mirrored into four to stay sharp."""
    picture = pictures[int(rng.integers(len(pictures)))]
    height, width = picture.shape[:2]
    side = int(min(height, width) * log_uniform(rng, 0.35, 1.0))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    cut = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
    cut = cut[:, ::-1] if chance(rng, 0.5) else cut
    if side < 0.45 * size:
        cut = np.concatenate([cut, cut[:, ::-1]], axis=1)
        cut = np.concatenate([cut, cut[::-1]], axis=0)
    how = cv2.INTER_AREA if len(cut) > size else cv2.INTER_CUBIC
    image = cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=how).astype(np.float32) / np.float32(255)
    if chance(rng, 0.25):
        tone = image.mean(axis=2)
        shade = (tone - tone.mean()) / max(0.02, float(tone.std()))
        return tinted(colour(rng, "grey" if chance(rng, 0.4) else "any"), shade * np.float32(uniform(rng, 0.05, 0.3)))
    mean = image.mean(axis=(0, 1))
    image = (image - mean) * np.float32(uniform(rng, 0.5, 1.2)) + mean
    image = image[..., rng.permutation(3)] if chance(rng, 0.3) else image
    return np.asarray(np.clip(image * np.float32(uniform(rng, 0.7, 1.3)), 0, 1), np.float32)
