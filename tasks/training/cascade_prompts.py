"""Point prompts as the pipeline gives them to SAM: PPG on anomaly maps that err as those of photographs do.

A click drawn from a mask always lies on its target. PPG's points often lie beside the damage, and their negatives on
it. A SAM that has never seen such points trusts them all: its predicted IoU is far too high, and later passes keep
what the first one drew. So a part of the training takes its points from here, with all damage as the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade.configs.loader import load_experiment
from cascade.configs.schema import PromptConfig
from cascade.frames import InputFrame
from cascade.prompts.ppg import PromptOptions, generate_prompts
from cascade.tasks.prompt import prompt_options

CELL = 8
"""Pixels per side of a cell of a simulated map."""


@dataclass(frozen=True)
class DrawnMap:
    """The anomaly map ``[S, S]`` in [0, 1] and the margin ``[S, S]`` that breaks its ties, of one image, float32."""

    values: NDArray[np.float32]
    margin: NDArray[np.float32]


def simulated_map(rng: np.random.Generator, damage: NDArray[np.bool_]) -> DrawnMap:
    """What a localiser may draw of an image with this damage ``[S, S]``.

    Each connected part of the damage is found with a strength of its own, or missed, and its peak is blurred and a
    little off. Smooth noise lies over all of it, and false peaks lie elsewhere.
    """
    grid = damage.shape[0] // CELL
    count, parts = cv2.connectedComponents(damage.astype(np.uint8), connectivity=8)
    found = np.zeros((grid, grid), np.float32)
    for part in range(1, count):
        if count > 2 and rng.random() < 0.2:
            continue
        shape = cv2.resize((parts == part).astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA)
        shift = np.array([[1, 0, rng.normal(0, 0.7)], [0, 1, rng.normal(0, 0.7)]], np.float32)
        shape = cv2.warpAffine(shape, shift, (grid, grid), borderMode=cv2.BORDER_REPLICATE)
        shape = cv2.GaussianBlur(shape, (0, 0), float(np.exp(rng.uniform(np.log(0.5), np.log(3.0)))))
        shape *= (1 + rng.uniform(0, 0.8) * _clouds(rng, grid)).clip(0)  # it is stronger in one place than another
        found = np.maximum(found, shape / max(1e-3, float(shape.max())) * np.float32(rng.uniform(0.4, 1.0)))
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        rows, columns = np.mgrid[:grid, :grid] - rng.uniform(0, grid, 2)[:, None, None]
        spread = rng.uniform(1, grid / 8)
        peak = np.exp(-(rows**2 + columns**2) / (2 * spread**2)) * rng.uniform(0.2, 0.9)
        found = np.maximum(found, peak.astype(np.float32))
    found += np.float32(abs(rng.normal(0, 0.15))) * _clouds(rng, grid)
    margin = cv2.resize(found, damage.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return DrawnMap(np.clip(margin, 0, 1), margin)


def _clouds(rng: np.random.Generator, grid: int) -> NDArray[np.float32]:
    """Smooth noise ``[grid, grid]`` of about unit spread and a random coarseness."""
    coarse = int(rng.integers(3, grid // 2 + 1))
    noise = rng.standard_normal((coarse, coarse)).astype(np.float32)
    return np.asarray(cv2.resize(noise, (grid, grid), interpolation=cv2.INTER_CUBIC), np.float32)


def draw_options(rng: np.random.Generator) -> PromptOptions:
    """PPG with its defaults or near them: what is extreme, how far apart points are, how wide the ring is."""
    config = _preset()
    threshold = {"rule": "relative", "relative": float(rng.uniform(0.6, 0.95)), "min_area": 1}
    config = config.model_copy(
        update={
            "threshold": config.threshold.model_copy(update=threshold),
            "spacing": config.spacing.model_copy(update={"rank": int(rng.choice([100, 400, 400]))}),
            "dilation": config.dilation.model_copy(update={"size": int(rng.choice([15, 25, 25, 35]))}),
        }
    )
    if rng.random() < 0.3:
        counts = {"positives": int(rng.integers(1, 6)), "negatives": int(rng.integers(0, 6))}
        config = config.model_copy(update=counts)
    return prompt_options(config)


@lru_cache(maxsize=1)
def _preset() -> PromptConfig:
    return load_experiment("mini", []).prompt


def ppg_points(
    rng: np.random.Generator, drawn: Sequence[DrawnMap], embeddings: Tensor, options: PromptOptions
) -> tuple[Tensor, Tensor]:
    """Points ``[B, K, 2]`` in pixels (x, y) of the square input, and labels ``[B, K]``.

    PPG may find fewer points than wanted. A row then repeats its own, so that all rows have the same K.

    Args:
        rng: draws the points that are repeated.
        drawn: B maps in the frame of SAM's input.
        embeddings: ``[B, C, g, g]``.
        options: of PPG, the same for all rows.
    """
    side = drawn[0].values.shape[0]
    rows, labels = [], []
    for own, embedding in zip(drawn, embeddings, strict=True):
        (found,) = generate_prompts(
            own.values, own.margin, embedding.float().cpu(), InputFrame(side, (side, side)), options
        ).sets
        good, bad = (np.flatnonzero(found.labels == kind) for kind in (1, 0))
        picked = np.concatenate([_filled(rng, good, options.positives), _filled(rng, bad, options.negatives, good)])
        rows.append(found.points[picked])
        labels.append(found.labels[picked])
    return torch.from_numpy(np.stack(rows)).float(), torch.from_numpy(np.stack(labels)).float()


def _filled(
    rng: np.random.Generator, found: NDArray[np.int64], count: int, instead: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """``count`` indices: those found, then repetitions of them, or of ``instead`` if none was found."""
    source = found if found.size or instead is None else instead
    return np.concatenate([found, rng.choice(source, count - len(found))]) if len(found) < count else found[:count]
