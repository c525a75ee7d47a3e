"""One image's scores: the map and each step of the refiner as one score per pixel, and what they say of the image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cascade.frames import InputFrame, Size, logits_in_frame
from cascade.fusion import FusionOptions, fuse, smooth
from cascade.refiners.merging import ImageMasks

ImageScoreRule = Literal["clip", "max", "top", "clip+top"]


def pixel_scores(
    anomaly_map: NDArray[np.float32],
    threshold: float,
    masks: ImageMasks | None,
    steps: int,
    frame: InputFrame,
    options: FusionOptions,
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Scores and segmented pixels, [1 + steps, H, W] each: of the map, and of each step.

    Args:
        anomaly_map: [H, W] in [0, 1], in the evaluation frame.
        threshold: from which on a pixel of the map counts as segmented.
        masks: of the refiner; ``None`` for an image without prompt.
        steps: of the refiner.
        frame: where the image lies in SAM's input.
        options: the open choices of the fusion.
    """
    size: Size = (anomaly_map.shape[0], anomaly_map.shape[1])
    scores, segments = [anomaly_map], [anomaly_map >= threshold]
    smoothed = smooth(anomaly_map, options) if steps else anomaly_map
    for index in range(steps):
        if masks is None:
            scores.append(fuse(smoothed, None, np.zeros(0, np.float32), 0, options))
            segments.append(np.zeros(size, dtype=bool))
            continue
        predicted_iou = np.array(masks.predicted_iou[index], dtype=np.float32)
        used = [masks.chosen[index]] if options.masks == "chosen" else list(range(len(predicted_iou)))
        low_res = torch.from_numpy(masks.logits[index, used]).float()
        logits = logits_in_frame(low_res[None], frame, size)[0].numpy()
        chosen = used.index(masks.chosen[index])
        scores.append(fuse(smoothed, logits, predicted_iou[used], chosen, options))
        segments.append(logits[chosen] > 0)
    return np.stack(scores).astype(np.float16), np.stack(segments)


def image_scores(
    scores: NDArray[np.float16], localiser_score: float, top_share: float
) -> dict[ImageScoreRule, list[float]]:
    """The image score of each step by each rule (A20), from scores [1 + steps, H, W] and the localiser's own."""
    top = [top_mean(own, top_share) for own in scores]
    return {
        "clip": [localiser_score] * len(scores),
        "max": [float(own.max()) for own in scores],
        "top": top,
        "clip+top": [(localiser_score + own) / 2 for own in top],
    }


def top_mean(scores: NDArray[np.float16], share: float) -> float:
    """Mean of the largest scores [H, W]: of ``share`` of all, one at least."""
    count = max(1, round(share * scores.size))
    largest = np.partition(scores.reshape(-1).astype(np.float32), -count)[-count:]
    return float(largest.mean(dtype=np.float64))
