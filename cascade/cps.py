"""CPS, cascaded prompts for SAM: three decoder passes, each correcting the last (equations 9 to 12).

    M1, logit1 = Dec(F, P)                    points
    M2, logit2 = Dec(F, P + logit1)           points + logits
    box        = location(M2)
    M3         = Dec(F, P + box + logit2)     points + box + logits

Source: Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts", section 3.2.
What the paper leaves open is an option (A10 to A13); PerSAM's public cascade agrees with the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cascade.frames import Box, InputFrame, Size, logits_in_frame, mask_box, scale_box
from cascade.sam.decoder import Decoded, Decoder


@dataclass(frozen=True)
class CascadeOptions:
    """The open choices.

    Attributes:
        multimask: three masks or one, for each step (A10).
        choice: the mask with the largest predicted IoU, or with the best agreement with the anomaly map (A10).
        feedback: logits of the chosen mask, or the mean of all (A11).
        box: one box of the whole second mask, of its largest part, or one box and pass for each part, merged by
            maximum (A12).
        box_padding: growth of a box on each side, as a fraction of its sides (A12).
        empty: an empty second mask falls back on the first mask and its logits, or if that is empty too on the box
            of the dilated S_a; or the third step is skipped (A13).
    """

    multimask: tuple[bool, bool, bool]
    choice: Literal["iou", "agreement"]
    feedback: Literal["chosen", "mean"]
    box: Literal["mask", "largest", "components"]
    box_padding: float
    empty: Literal["previous", "skip"]


@dataclass(frozen=True)
class Row:
    """What the cascade knows of one set of prompts beside its points.

    Attributes:
        frame: where the image lies in SAM's input.
        size: (height, width) of the prompt frame, in which the second mask's box is taken.
        ring_box: [4] box of the dilated S_a in the prompt frame.
        map: [4·grid, 4·grid] anomaly map over the input, in [0, 1]; only for ``choice="agreement"``.
    """

    frame: InputFrame
    size: Size
    ring_box: Box
    map: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Step:
    """One pass for one row.

    Attributes:
        logits: [M, 4·grid, 4·grid] float32 low-resolution logits of all masks.
        predicted_iou: [M] float32.
        chosen: index of the mask that goes on.
        boxes: the boxes given as prompts, in the prompt frame; empty for the first two steps.
    """

    logits: NDArray[np.float32]
    predicted_iou: NDArray[np.float32]
    chosen: int
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Cascade:
    """The three steps of one row; ``box_fallback`` says that the second mask was empty (A13)."""

    steps: tuple[Step, Step, Step]
    box_fallback: bool


@dataclass(frozen=True)
class _Pass:
    row: int
    box: Box
    mask_input: torch.Tensor


def run_cascade(
    decode: Decoder,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    rows: Sequence[Row],
    options: CascadeOptions,
) -> list[Cascade]:
    """The three passes for B rows that have equally many points.

    Args:
        decode: SAM's decoder.
        embeddings: [B, C, grid, grid] float32.
        points: [B, n, 2] float32 (x, y) in pixels of SAM's input.
        labels: [B, n], 1 positive, 0 negative.
        rows: B descriptions.
        options: the open choices.
    """
    first = decode(embeddings, points, labels, multimask=options.multimask[0])
    chosen_first = _choose(first, rows, options)
    fed_first = _feedback(first, chosen_first, options)
    second = decode(embeddings, points, labels, mask_input=fed_first, multimask=options.multimask[1])
    chosen_second = _choose(second, rows, options)
    fed_second = _feedback(second, chosen_second, options)

    masks_second = _masks(second, chosen_second, rows)
    passes: list[_Pass] = []
    for index, row in enumerate(rows):
        mask, mask_input = masks_second[index], fed_second[index]
        if mask.any():
            boxes = _boxes(mask, options)
        elif options.empty == "skip":
            boxes = []
        else:
            mask = _masks(first, chosen_first, rows, only=index)[0]
            boxes = [_pad(mask_box(mask), row.size, options.box_padding)] if mask.any() else [row.ring_box]
            mask_input = fed_first[index] if mask.any() else mask_input
        passes += [_Pass(index, box, mask_input) for box in boxes]

    third = _third_step(decode, embeddings, points, labels, rows, passes, options)
    results = []
    for index in range(len(rows)):
        step_two = _step(second, index, chosen_second[index])
        results.append(
            Cascade(
                (_step(first, index, chosen_first[index]), step_two, third.get(index, step_two)),
                box_fallback=not masks_second[index].any(),
            )
        )
    return results


def _third_step(
    decode: Decoder,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    rows: Sequence[Row],
    passes: Sequence[_Pass],
    options: CascadeOptions,
) -> dict[int, Step]:
    if not passes:
        return {}
    index = torch.tensor([each.row for each in passes], device=embeddings.device)
    boxes = [scale_box(each.box, rows[each.row].size, rows[each.row].frame.size) for each in passes]
    decoded = decode(
        embeddings[index],
        points[index],
        labels[index],
        boxes=torch.from_numpy(np.stack(boxes)).float().to(points.device),
        mask_input=torch.stack([each.mask_input for each in passes]),
        multimask=options.multimask[2],
    )
    steps = {}
    for row in sorted({each.row for each in passes}):
        own = [number for number, each in enumerate(passes) if each.row == row]
        merged = Decoded(
            decoded.low_res_logits[own].amax(dim=0, keepdim=True),
            decoded.predicted_iou[own].mean(dim=0, keepdim=True),
        )
        chosen = _choose(merged, [rows[row]], options)[0]
        steps[row] = _step(merged, 0, chosen, tuple(passes[number].box for number in own))
    return steps


def _choose(decoded: Decoded, rows: Sequence[Row], options: CascadeOptions) -> list[int]:
    if options.choice == "iou":
        quality = decoded.predicted_iou.cpu().numpy()
    else:
        masks = (decoded.low_res_logits > 0).cpu().numpy()
        quality = np.array([[_agreement(mask, row.map) for mask in own] for own, row in zip(masks, rows, strict=True)])
    return [int(index) for index in quality.argmax(axis=1)]


def _agreement(mask: NDArray[np.bool_], anomaly_map: NDArray[np.float64] | None) -> float:
    """Soft Jaccard index of a mask and the anomaly map."""
    if anomaly_map is None:
        raise ValueError("choice 'agreement' needs the anomaly map of every row")
    shared = float(anomaly_map[mask].sum())
    return shared / (float(mask.sum()) + float(anomaly_map.sum()) - shared + 1e-12)


def _feedback(decoded: Decoded, chosen: Sequence[int], options: CascadeOptions) -> torch.Tensor:
    """[B, 1, 4·grid, 4·grid] logits for the next pass (A11)."""
    logits = decoded.low_res_logits
    if options.feedback == "mean":
        return logits.mean(dim=1, keepdim=True)
    return logits[torch.arange(len(chosen)), list(chosen)][:, None]


def _masks(
    decoded: Decoded, chosen: Sequence[int], rows: Sequence[Row], only: int | None = None
) -> list[NDArray[np.bool_]]:
    """The chosen masks in their prompt frames; of one row if ``only`` is given."""
    indices = range(len(rows)) if only is None else [only]
    masks = []
    for index in indices:
        logits = decoded.low_res_logits[index, chosen[index]][None, None]
        masks.append((logits_in_frame(logits, rows[index].frame, rows[index].size)[0, 0] > 0).cpu().numpy())
    return masks


def _boxes(mask: NDArray[np.bool_], options: CascadeOptions) -> list[Box]:
    if options.box == "mask":
        return [_pad(mask_box(mask), mask.shape, options.box_padding)]
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    kept = [largest] if options.box == "largest" else list(range(1, count))
    return [_pad(mask_box(parts == part), mask.shape, options.box_padding) for part in kept]


def _pad(box: Box, size: Size, padding: float) -> Box:
    if padding == 0:
        return box
    width, height = box[2] - box[0], box[3] - box[1]
    grown = box + padding * np.array([-width, -height, width, height])
    return np.clip(grown, 0, [size[1] - 1, size[0] - 1, size[1] - 1, size[0] - 1])


def _step(decoded: Decoded, index: int, chosen: int, boxes: tuple[Box, ...] = ()) -> Step:
    return Step(decoded.low_res_logits[index].cpu().numpy(), decoded.predicted_iou[index].cpu().numpy(), chosen, boxes)
