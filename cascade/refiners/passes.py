"""The three decoder passes of CPS, each correcting the last (equations 9 to 12).

    M1, logit1 = Dec(F, P)                    points
    M2, logit2 = Dec(F, P + logit1)           points + logits
    box        = location(M2)
    M3         = Dec(F, P + box + logit2)     points + box + logits

Source: Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts", section 3.2.
What the paper leaves open is an option (A10 to A13); PerSAM's public cascade agrees with the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cascade.backbones.sam.decoder import Decoded, Decoder
from cascade.frames import Box, boxes_above_zero, logits_in_frame, mask_box
from cascade.refiners.protocol import Refined, Row, Step

if TYPE_CHECKING:
    from cascade.refiners.cps import Cps


def run_cascade(
    decode: Decoder,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    rows: Sequence[Row],
    options: Cps,
) -> list[Refined]:
    """The three passes for B rows that have equally many points.

    Nothing is copied to the host between the passes, unless the options need the connected parts of a mask or may skip
    a pass.

    Args:
        decode: SAM's decoder.
        embeddings: [B, C, grid, grid] float32.
        points: [B, n, 2] float32 (x, y) in pixels of SAM's input.
        labels: [B, n], 1 positive, 0 negative.
        rows: B descriptions.
        options: the open choices.
    """
    # each pass reads the cells of an image one after another
    embeddings = embeddings.contiguous(memory_format=torch.channels_last)
    first = decode(embeddings, points, labels, multimask=options.multimask[0])
    best_first = _best(first, rows, options)
    fed_first = _feedback(first, best_first, options)
    second = decode(embeddings, points, labels, mask_input=fed_first, multimask=options.multimask[1])
    best_second = _best(second, rows, options)
    fed = _feedback(second, best_second, options)

    boxes, drawn = _boxes(second, best_second, rows, options)
    if drawn.is_cuda or not drawn.all():  # to ask a GPU takes longer than to compute what is rarely needed
        boxes_first, drawn_first = _boxes(first, best_first, rows, options)
        rings = _numbers([row.region_box for row in rows], drawn)
        boxes = torch.where(drawn[:, None], boxes, torch.where(drawn_first[:, None], boxes_first, rings))
        fed = torch.where((drawn | ~drawn_first)[:, None, None, None], fed, fed_first)

    owners = list(range(len(rows)))
    if options.box != "mask" or options.empty == "skip":
        owners, boxes = _own_boxes(second, best_second, rows, boxes, drawn, options)
        embeddings, points, labels, fed = (each[owners] for each in (embeddings, points, labels, fed))
    third = {}
    if owners:
        ratios = [np.divide(rows[owner].frame.size[::-1], rows[owner].size[::-1]) for owner in owners]
        scaled = (boxes * _numbers(ratios, boxes).repeat(1, 2)).float()
        last = decode(embeddings, points, labels, boxes=scaled, mask_input=fed, multimask=options.multimask[2])
        last, last_rows = _merged(last, owners), sorted(set(owners))
        third = dict(zip(last_rows, _steps(last, _best(last, [rows[row] for row in last_rows], options)), strict=True))
    for owner, box in zip(owners, boxes.cpu().numpy(), strict=True):
        third[owner] = replace(third[owner], boxes=(*third[owner].boxes, box))
    return [
        Refined((step_one, step_two, third.get(index, step_two)), box_fallback=empty)
        for index, (step_one, step_two, empty) in enumerate(
            zip(_steps(first, best_first), _steps(second, best_second), (~drawn).tolist(), strict=True)
        )
    ]


def _numbers(values: Sequence[NDArray[np.float64]], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack(values)).to(like.device)


def _best(decoded: Decoded, rows: Sequence[Row], options: Cps) -> torch.Tensor:
    """[B] index of the mask that goes on."""
    if options.choice == "iou":
        return decoded.predicted_iou.argmax(dim=1)
    given = [row.map for row in rows if row.map is not None]
    if len(given) < len(rows):
        raise ValueError("choice 'agreement' needs the anomaly map of every row")
    maps, masks = _numbers(given, decoded.low_res_logits)[:, None], decoded.low_res_logits > 0
    shared = (maps * masks).sum(dim=(2, 3))
    return (shared / (masks.sum(dim=(2, 3)) + maps.sum(dim=(2, 3)) - shared + 1e-12)).argmax(dim=1)


def _chosen(decoded: Decoded, best: torch.Tensor) -> torch.Tensor:
    """[B, 1, 4·grid, 4·grid] logits of the best mask."""
    return decoded.low_res_logits.take_along_dim(best[:, None, None, None], dim=1)


def _feedback(decoded: Decoded, best: torch.Tensor, options: Cps) -> torch.Tensor:
    """[B, 1, 4·grid, 4·grid] logits for the next pass (A11)."""
    if options.feedback == "mean":
        return decoded.low_res_logits.mean(dim=1, keepdim=True)
    return _chosen(decoded, best)


def _boxes(
    decoded: Decoded, best: torch.Tensor, rows: Sequence[Row], options: Cps
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [B, 4] float64 of the best masks in the prompt frame, and [B] whether the mask has a pixel at all."""
    boxes, drawn = zip(
        *(
            boxes_above_zero(logits_in_frame(logits[None], row.frame, row.size)[0, 0])
            for logits, row in zip(_chosen(decoded, best), rows, strict=True)
        ),
        strict=True,
    )
    return _padded(torch.stack(boxes), rows, options), torch.stack(drawn)


def _padded(boxes: torch.Tensor, rows: Sequence[Row], options: Cps) -> torch.Tensor:
    """Boxes [B, 4] grown on each side, within the rows' prompt frames (A12)."""
    if options.box_padding == 0:
        return boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    grown = boxes + options.box_padding * torch.cat([-sides, sides], dim=1)
    limits = [np.array([row.size[1] - 1.0, row.size[0] - 1.0] * 2) for row in rows]
    return torch.minimum(grown.clamp(min=0), _numbers(limits, boxes))


def _own_boxes(
    second: Decoded,
    best: torch.Tensor,
    rows: Sequence[Row],
    boxes: torch.Tensor,
    drawn: torch.Tensor,
    options: Cps,
) -> tuple[list[int], torch.Tensor]:
    """The options that need the host: the row of each pass, and its box; from the ``boxes`` of whole masks."""
    owners: list[int] = []
    own: list[torch.Tensor] = []
    for index, (logits, row) in enumerate(zip(_chosen(second, best), rows, strict=True)):
        found = boxes[index : index + 1]
        if not drawn[index]:
            found = found[:0] if options.empty == "skip" else found
        elif options.box != "mask":
            mask = (logits_in_frame(logits[None], row.frame, row.size)[0, 0] > 0).cpu().numpy()
            parts = _parts(mask, options)
            found = _padded(_numbers(parts, boxes), [row] * len(parts), options)
        owners += [index] * len(found)
        own.append(found)
    return owners, torch.cat(own)


def _parts(mask: NDArray[np.bool_], options: Cps) -> list[Box]:
    """The box of the largest connected part of a mask, or of each."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    kept = [largest] if options.box == "largest" else list(range(1, count))
    return [mask_box(parts == part) for part in kept]


def _merged(decoded: Decoded, owners: Sequence[int]) -> Decoded:
    """The passes of each row merged into one: the largest logits, the mean predicted IoU (A12)."""
    rows = sorted(set(owners))
    if len(rows) == len(owners):
        return decoded
    own = [[number for number, owner in enumerate(owners) if owner == row] for row in rows]
    return Decoded(
        torch.stack([decoded.low_res_logits[passes].amax(dim=0) for passes in own]),
        torch.stack([decoded.predicted_iou[passes].mean(dim=0) for passes in own]),
    )


def _steps(decoded: Decoded, best: torch.Tensor) -> list[Step]:
    columns = decoded.low_res_logits.cpu().numpy(), decoded.predicted_iou.cpu().numpy(), best.tolist()
    return [Step(logits, predicted_iou, chosen) for logits, predicted_iou, chosen in zip(*columns, strict=True)]
