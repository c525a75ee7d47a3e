"""The point prompts of one image, in its own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cascade.frames import InputFrame, Size, scale_points
from cascade.localisers.protocol import AnomalyMap
from cascade.prompts.ppg import PromptOptions, generate_prompts


@dataclass(frozen=True)
class PromptSet:
    """One set of point prompts, as plain data.

    Attributes:
        points: (x, y) in pixels of the image, positives first.
        labels: 1 positive, 0 negative.
        values: the map's score at a positive point, the cosine similarity at a negative one.
        box: (x0, y0, x1, y1) of S_a in the prompt frame, dilated or not.
        area: pixels of S_a in the prompt frame.
        empty_ring: no pixel was left for negative points.
    """

    points: list[list[float]]
    labels: list[int]
    values: list[float]
    box: list[float]
    area: int
    empty_ring: bool


@dataclass(frozen=True)
class ImagePrompts:
    """All prompts of one image, as plain data.

    Attributes:
        threshold: the value that S_a had to reach.
        frame: (height, width) of the prompt frame.
        sets: none if S_a was too small.
    """

    threshold: float
    frame: list[int]
    sets: list[PromptSet]


def image_prompts(
    anomaly_map: AnomalyMap, embedding: torch.Tensor, image_size: Size, frame: InputFrame, options: PromptOptions
) -> ImagePrompts:
    """PPG for one image.

    Args:
        anomaly_map: in the prompt frame.
        embedding: [C, grid, grid] float32, SAM's features of the image.
        image_size: (height, width) of the image.
        frame: where the image lies in SAM's input.
        options: the open choices.
    """
    height, width = anomaly_map.values.shape
    prompts = generate_prompts(anomaly_map.values, anomaly_map.ranking, embedding, frame, options)
    sets = [
        PromptSet(
            points=scale_points(each.points, (height, width), image_size).tolist(),
            labels=each.labels.tolist(),
            values=np.round(each.values, 7).tolist(),
            box=each.box.tolist(),
            area=each.area,
            empty_ring=each.empty_ring,
        )
        for each in prompts.sets
    ]
    return ImagePrompts(prompts.threshold, [height, width], sets)
