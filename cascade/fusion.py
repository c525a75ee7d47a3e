"""One score per pixel from the anomaly map and SAM's masks.

The paper does not say how its final score is made; that it is continuous and led by SAM follows from its numbers. The
default is a blend in which a mask counts as much as the map agrees with it (A15), so that a confident mask on a normal
image cannot outrank a defect elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit


@dataclass(frozen=True)
class FusionOptions:
    """The open choices A15 to A17.

    Attributes:
        fusion: ``blend`` (1−w)·map + w·gain·sigmoid(logits); ``mask`` the same with the hard mask; ``sum`` map + mask.
        weight: w in [0, 1].
        gain: ``agreement``: mean of the map inside the mask times the predicted IoU in [0, 1]; or ``one``.
        masks: the chosen mask, or the mean term of all masks.
        no_prompt: an image without prompt scores the map itself, so that it is never ranked below the map's own
            order, or (1−w)·map (``damp``), as if SAM had drawn an empty mask.
        smoothing: sigma in pixels of a Gaussian on the map.
    """

    fusion: Literal["blend", "mask", "sum"]
    weight: float
    gain: Literal["agreement", "one"]
    masks: Literal["chosen", "all"]
    no_prompt: Literal["damp", "map"]
    smoothing: float


def smooth(anomaly_map: NDArray[np.float32], options: FusionOptions) -> NDArray[np.float32]:
    """The map [H, W] after the Gaussian of A17."""
    if options.smoothing == 0:
        return anomaly_map
    smoothed: NDArray[np.float32] = gaussian_filter(anomaly_map, sigma=options.smoothing)
    return smoothed


def fuse(
    anomaly_map: NDArray[np.float32],
    logits: NDArray[np.float32] | None,
    predicted_iou: NDArray[np.float32],
    chosen: int,
    options: FusionOptions,
) -> NDArray[np.float32]:
    """Scores [H, W]: in [0, 1], or in [0, 2] for ``sum``.

    Args:
        anomaly_map: [H, W] in [0, 1], smoothed if it is to be.
        logits: [M, H, W] of one cascade step in the same frame; ``None`` for an image without prompt.
        predicted_iou: [M].
        chosen: the mask that the step chose.
        options: the open choices.
    """
    if logits is None:
        kept = options.no_prompt == "map" or options.fusion == "sum"
        return anomaly_map if kept else (1 - np.float32(options.weight)) * anomaly_map
    indices = [chosen] if options.masks == "chosen" else list(range(len(logits)))
    terms = [_sam_term(anomaly_map, logits[index], float(predicted_iou[index]), options) for index in indices]
    sam = np.mean(terms, axis=0, dtype=np.float32)
    if options.fusion == "sum":
        return anomaly_map + sam
    weight = np.float32(options.weight)
    return (1 - weight) * anomaly_map + weight * sam


def _sam_term(
    anomaly_map: NDArray[np.float32], logits: NDArray[np.float32], predicted_iou: float, options: FusionOptions
) -> NDArray[np.float32]:
    mask = logits > 0
    shape = expit(logits) if options.fusion == "blend" else mask.astype(np.float32)
    if options.gain == "one" or options.fusion == "sum":
        return shape
    inside = float(anomaly_map[mask].mean()) if mask.any() else 0.0
    return np.float32(inside * min(max(predicted_iou, 0.0), 1.0)) * shape
