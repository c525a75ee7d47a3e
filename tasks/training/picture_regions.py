"""Regions of pictures: what a click means on a photograph, and cut-outs of one picture laid over another."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from cascade.synthesis.camera import photograph
from cascade.synthesis.fields import Image, Mask, Rng, blurred, chance, log_uniform, mix, uniform
from cascade.tasks.training.photographs import photographed

Pictures = tuple[NDArray[np.uint8], ...]

_SIDE = 256
"""Pixels to which a picture is reduced before it is segmented."""

_SHARES = (0.003, 0.5)
"""Smallest and largest region, as a share of the picture."""

_CONTRAST = 0.03
"""Least difference between the mean colour of a region and that of the ring around it; colours are in [0, 1]."""

_FILLED = 0.45
"""Least share of its convex hull that a region fills: others are what is left between things."""


@dataclass(frozen=True)
class Regions:
    """A picture uint8 ``[H, W, 3]`` in RGB and bool ``[H, W]`` masks, of which one may lie in another."""

    image: NDArray[np.uint8]
    masks: tuple[Mask, ...]


def picture_regions(seed: int, size: int, pictures: Pictures) -> Regions:
    """A picture and its regions of even colour, finer and coarser (Felzenszwalb and Huttenlocher, IJCV 2004)."""
    rng = np.random.default_rng([seed, 11])
    image = photographed(rng, size, pictures)
    masks = [mask for strength in (60.0, 400.0) for mask in _regions(rng, image, strength)]
    return Regions(photograph(rng, image, chance(rng, 0.2)), tuple(masks))


def cut_outs(seed: int, size: int, pictures: Pictures) -> Regions:
    """Regions of pictures, cut out, turned, scaled and laid over another picture; each visible part has a mask."""
    rng = np.random.default_rng([seed, 13])
    image = photographed(rng, size, pictures)
    labels = np.zeros((size, size), np.int32)
    source = photographed(rng, size, pictures)
    shapes = _regions(rng, source, 250.0)
    for piece in range(1, int(rng.integers(2, 6)) + 1):
        if not shapes:
            break
        opacity, worn = _moved(rng, shapes[int(rng.integers(len(shapes)))], source)
        if chance(rng, 0.35):  # the same surface in another tone, as stains and worn spots are
            worn = np.asarray(image * (1 + rng.normal(0, 0.06, 3) + _signed(rng, 0.1, 0.5)), np.float32)
        image = mix(image, worn, opacity * np.float32(uniform(rng, 0.6, 1.0)))
        labels[opacity > 0.5] = piece
    masks = [part for piece in range(1, int(labels.max()) + 1) for part in connected(labels == piece)]
    return Regions(photograph(rng, image, chance(rng, 0.3)), tuple(masks))


def connected(region: Mask) -> list[Mask]:
    """The 4-connected parts of a mask."""
    count, parts = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
    return [np.asarray(parts == part, np.bool_) for part in range(1, count)]


def _signed(rng: Rng, low: float, high: float) -> float:
    return uniform(rng, low, high) * (1 if chance(rng, 0.5) else -1)


def _regions(rng: Rng, image: Image, strength: float) -> list[Mask]:
    """Regions that stand out from what is around them, ``strength`` or half or twice it; larger ones for more."""
    size = image.shape[0]
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    labels = felzenszwalb(
        small, scale=strength * log_uniform(rng, 0.5, 2.0), sigma=0.8, min_size=int(_SHARES[0] * _SIDE**2)
    )
    found = []
    for label in range(int(labels.max()) + 1):
        region = (labels == label).astype(np.uint8)
        if _SHARES[0] <= region.mean() <= _SHARES[1] and _stands_out(small, region):
            grown = cv2.resize(region * np.float32(255), (size, size), interpolation=cv2.INTER_LINEAR)
            found.append(np.asarray(grown > 127, np.bool_))
    return found


def _stands_out(image: Image, region: NDArray[np.uint8]) -> bool:
    around = (cv2.dilate(region, np.ones((9, 9), np.uint8)) > 0) & (region == 0)
    if not around.any():
        return False
    contrast = np.abs(image[region > 0].mean(axis=0) - image[around].mean(axis=0)).max()
    outlines, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(outlines)))
    return bool(contrast > _CONTRAST and region.sum() > _FILLED * hull)


def _moved(rng: Rng, mask: Mask, source: Image) -> tuple[NDArray[np.float32], Image]:
    """Opacity and picture of a region after a turn, a change of size and a move to anywhere."""
    size = mask.shape[0]
    rows, columns = np.nonzero(mask)
    share = len(rows) / mask.size
    scale = float(np.sqrt(log_uniform(rng, 0.004, 0.3) / share))
    scale = min(max(scale, 0.25), 3.0)
    turn = cv2.getRotationMatrix2D((float(columns.mean()), float(rows.mean())), uniform(rng, 0, 360), scale)
    turn[:, 2] += rng.uniform(0.05, 0.95, 2) * size - [columns.mean(), rows.mean()]
    opacity = cv2.warpAffine(mask.astype(np.float32), turn, (size, size))
    moved = cv2.warpAffine(source, turn, (size, size), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(blurred(opacity, uniform(rng, 0.5, 1.5)), np.float32), np.asarray(moved, np.float32)
