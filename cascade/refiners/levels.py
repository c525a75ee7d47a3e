"""The arithmetic of MMR: one decoder pass with points and a box, and its three masks merged into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cascade.backbones.sam.decoder import Decoded, Decoder
from cascade.frames import scale_points
from cascade.refiners.protocol import Refined, Row, Step

_EDGE = 1e-6
"""How near to 0 and 1 a merged probability comes; its logit is within 14."""


def refine_levels(
    decode: Decoder, embeddings: torch.Tensor, points: torch.Tensor, labels: torch.Tensor, rows: Sequence[Row]
) -> list[Refined]:
    """The masks of one pass, and the one that they merge into, for B rows that have equally many points.

    Args:
        decode: SAM's decoder.
        embeddings: [B, C, grid, grid] float32.
        points: [B, n, 2] float32 (x, y) in pixels of SAM's input.
        labels: [B, n], 1 positive, 0 negative.
        rows: B descriptions; the box of each is a prompt.
    """
    corners = [scale_points(row.region_box.reshape(2, 2), row.size, row.frame.size).reshape(4) for row in rows]
    boxes = torch.from_numpy(np.stack(corners)).float().to(embeddings.device)
    decoded = decode(
        embeddings.contiguous(memory_format=torch.channels_last), points, labels, boxes=boxes, multimask=True
    )
    merged = merged_levels(decoded)
    return [
        Refined(
            (
                Step(logits, predicted_iou, int(predicted_iou.argmax()), (row.region_box,)),
                Step(own_logits, own_iou, 0, (row.region_box,)),
            ),
            box_fallback=False,
        )
        for row, logits, predicted_iou, own_logits, own_iou in zip(
            rows,
            decoded.low_res_logits.cpu().numpy(),
            decoded.predicted_iou.cpu().numpy(),
            merged.low_res_logits.cpu().numpy(),
            merged.predicted_iou.cpu().numpy(),
            strict=True,
        )
    ]


def merged_levels(decoded: Decoded) -> Decoded:
    """The masks of each row as one, [B, 1, ...]: p = Σ s·sigmoid(logits) / Σ s, s the predicted IoU within [0, 1].

    Its logits are those of p, and its predicted IoU is the mean. Where every s is 0 the masks count alike.
    """
    scores = decoded.predicted_iou.clamp(0, 1)
    scores = torch.where(scores.sum(dim=1, keepdim=True) > 0, scores, 1.0)
    weights = (scores / scores.sum(dim=1, keepdim=True))[:, :, None, None]
    share = (weights * decoded.low_res_logits.sigmoid()).sum(dim=1, keepdim=True)
    return Decoded(torch.logit(share, eps=_EDGE), decoded.predicted_iou.mean(dim=1, keepdim=True))
