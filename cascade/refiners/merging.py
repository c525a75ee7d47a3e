"""One image's masks, from those of its sets of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.refiners.protocol import Refined


@dataclass(frozen=True)
class ImageMasks:
    """What is kept of one image; the lists go by step.

    Attributes:
        logits: [steps, masks, 4·grid, 4·grid] float16; a step with fewer masks fills the first.
        predicted_iou: of each mask that the step has.
        chosen: index of the mask that goes on.
        boxes: those given as prompts, (x0, y0, x1, y1) in the prompt frame.
        box_fallback: whether a mask was empty whose box was needed (A13), in any set of prompts.
    """

    logits: NDArray[np.float16]
    predicted_iou: list[list[float]]
    chosen: list[int]
    boxes: list[list[list[float]]]
    box_fallback: bool


def merge_sets(sets: Sequence[Refined], masks: int) -> ImageMasks:
    """Several sets of prompts are merged by the maximum of their chosen masks and the mean predicted IoU (A14).

    ``masks`` is the most that a step may have.
    """
    logits, predicted, chosen, boxes = [], [], [], []
    for own in zip(*(each.steps for each in sets), strict=True):
        if len(own) == 1:
            every, iou, best = own[0].logits, own[0].predicted_iou, own[0].chosen
        else:
            every = np.max([step.logits[step.chosen] for step in own], axis=0)[None]
            iou = np.mean([step.predicted_iou[[step.chosen]] for step in own], axis=0)
            best = 0
        logits.append(every)
        predicted.append([float(value) for value in iou])
        chosen.append(best)
        boxes.append([box.tolist() for step in own for box in step.boxes])
    stored = np.zeros((len(logits), masks, *logits[0].shape[1:]), dtype=np.float16)
    for index, every in enumerate(logits):
        stored[index, : len(every)] = every
    return ImageMasks(stored, predicted, chosen, boxes, any(each.box_fallback for each in sets))
