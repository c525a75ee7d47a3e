"""Clicks and boxes that a user, or the cascade, would give for a known mask.

Points and boxes are in input pixels (x, y) of a square image of ``side`` pixels, with pixel centres at integers.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _sample(rng: np.random.Generator, region: NDArray[np.bool_], count: int, side: int) -> NDArray[np.float32]:
    """``count`` random xy pixels of a region; of the whole image when the region is empty."""
    where = np.flatnonzero(region)
    if len(where) == 0:
        where = np.arange(region.size)
    picks = where[rng.integers(len(where), size=count)]
    scale = side / region.shape[1]
    xy = np.stack([picks % region.shape[1], picks // region.shape[1]], axis=1).astype(np.float32)
    return np.asarray((xy + 0.5) * scale - 0.5, np.float32)


def _ring(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels just outside a mask, as the cascade draws its negatives from."""
    small = cv2.resize(mask.astype(np.uint8), (128, 128), interpolation=cv2.INTER_NEAREST)
    reach = int(rng.choice([5, 9, 15, 25]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    wide = cv2.dilate(small, kernel)
    gap = cv2.dilate(small, np.ones((3, 3), np.uint8))
    return np.asarray((wide > 0) & (gap == 0), np.bool_)


def _heart(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The half of a mask that lies farther from its border."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(depth >= 0.5 * depth.max(), np.bool_) & mask


def first_points(
    rng: np.random.Generator, masks: NDArray[np.bool_], positives: int, negatives: int
) -> tuple[Tensor, Tensor]:
    """Clicks ``[N, K, 2]`` and labels ``[N, K]`` for target masks ``[N, S, S]``; all rows have the same K."""
    side = masks.shape[1]
    rows = []
    for mask in masks:
        inside = _heart(mask) if rng.random() < 0.4 else mask
        good = _sample(rng, inside, positives, side)
        if rng.random() < 0.15:
            good = good + rng.normal(0, side / 100, good.shape).astype(np.float32)
        near = _ring(rng, mask) if rng.random() < 0.8 else ~mask
        bad = _sample(rng, near, negatives, side)
        rows.append(np.concatenate([good, bad]).clip(0, side - 1))
    labels = torch.tensor([1.0] * positives + [0.0] * negatives).expand(len(masks), -1)
    return torch.from_numpy(np.stack(rows)).float(), labels.clone()


def correction(rng: np.random.Generator, logits: Tensor, target: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """One click per row from the error of ``logits [N, 1, h, h]`` against ``target [N, h, h]``."""
    predicted = (logits[:, 0] > 0).cpu().numpy()
    wanted = target.cpu().numpy() > 0
    rows, labels = [], []
    for guess, truth in zip(predicted, wanted, strict=True):
        wrong = guess ^ truth
        point = _sample(rng, wrong if wrong.any() else truth, 1, side)
        column, row = ((point[0] + 0.5) * guess.shape[0] / side).astype(int).clip(0, guess.shape[0] - 1)
        rows.append(point)
        labels.append([float(truth[row, column])])
    return torch.from_numpy(np.stack(rows)), torch.tensor(labels)


def boxes_of(masks: NDArray[np.bool_], side: int) -> Tensor:
    """Boxes xyxy ``[N, 4]`` in input pixels around masks ``[N, h, h]``; the whole image for an empty mask."""
    scale = side / masks.shape[1]
    rows = []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        if len(ys) == 0:
            rows.append([0.0, 0.0, side - 1.0, side - 1.0])
        else:
            rows.append([xs.min() * scale, ys.min() * scale, (xs.max() + 1) * scale - 1, (ys.max() + 1) * scale - 1])
    return torch.tensor(rows, dtype=torch.float32)


def jittered(rng: np.random.Generator, boxes: Tensor, side: int) -> Tensor:
    """Boxes moved by noise of 10 % of their sides, at most 20 px (SAM, appendix A)."""
    extent = torch.cat([boxes[:, 2:] - boxes[:, :2]] * 2, dim=1)
    noise = torch.from_numpy(rng.normal(0, 0.1, boxes.shape).astype(np.float32)) * extent
    return (boxes + noise.clamp(-20, 20)).clamp(0, side - 1)
