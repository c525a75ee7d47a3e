"""SAM's mask decoder over a batch of images, one set of prompts for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from segment_anything.modeling import Sam


@dataclass(frozen=True)
class Decoded:
    """What one decoder pass returns.

    Attributes:
        low_res_logits: [B, M, 4·grid, 4·grid] float32, M = 3 or 1; a pixel belongs to the mask where it is > 0.
        predicted_iou: [B, M] float32, the decoder's own estimate; not confined to [0, 1].
    """

    low_res_logits: torch.Tensor
    predicted_iou: torch.Tensor


class Decoder(Protocol):
    """One decoder pass of one ``Sam``: ``functools.partial(decode, sam)``, or an ``absorbed.AbsorbedDecoder``."""

    def __call__(
        self,
        embeddings: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        *,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask: bool = True,
    ) -> Decoded:
        """See :func:`decode`."""


@torch.inference_mode()
def decode(
    sam: Sam,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    *,
    boxes: torch.Tensor | None = None,
    mask_input: torch.Tensor | None = None,
    multimask: bool = True,
    bf16: bool = False,
) -> Decoded:
    """One pass for B images at once; row b equals ``SamPredictor.predict_torch`` of image b alone.

    The published ``MaskDecoder`` repeats one image's embedding for all its prompts, which is why it takes one image at
    a time. Its transformer does not care: with one embedding for each row nothing is repeated.

    Args:
        sam: the model; only the prompt encoder and the mask decoder are used.
        embeddings: [B, C, grid, grid] float32.
        points: [B, n, 2] float32 (x, y) in pixels of SAM's input.
        labels: [B, n], 1 inside, 0 outside.
        boxes: [B, 4] float32 (x0, y0, x1, y1) in pixels of SAM's input.
        mask_input: [B, 1, 4·grid, 4·grid] float32, logits of an earlier pass.
        multimask: three masks (tokens 1 to 3), or the single mask of token 0.
        bf16: under autocast to bfloat16.
    """
    kept = slice(1, None) if multimask else slice(0, 1)
    with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=bf16):
        return decode_tokens(sam, embeddings, points, labels, boxes=boxes, mask_input=mask_input, kept=kept)


def decode_tokens(
    sam: Sam,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    *,
    boxes: torch.Tensor | None,
    mask_input: torch.Tensor | None,
    kept: slice,
    corner: tuple[int, int] = (0, 0),
) -> Decoded:
    """The pass itself, differentiable, for those of SAM's four mask tokens that ``kept`` selects; see :func:`decode`.

    Token 0 is the single mask, tokens 1 to 3 are the three masks. There may be no point at all if there is a box. The
    embeddings may be those of a window of the input, whose first cell is ``corner`` (row, column); prompts stay in
    pixels of the whole input.
    """
    sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=boxes, masks=mask_input)
    decoder = sam.mask_decoder
    batch, _, height, width = embeddings.shape
    window = np.s_[..., corner[0] : corner[0] + height, corner[1] : corner[1] + width]

    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse], dim=1)
    positions = sam.prompt_encoder.get_dense_pe()[window].expand(batch, -1, -1, -1)
    attended, image = decoder.transformer(embeddings + dense[..., :height, :width], positions, tokens)

    image = decoder.output_upscaling(image.transpose(1, 2).reshape(embeddings.shape))
    weights = torch.stack(
        [
            network(attended[:, 1 + index])
            for index, network in enumerate(decoder.output_hypernetworks_mlps)
            if index in range(decoder.num_mask_tokens)[kept]
        ],
        dim=1,
    )
    logits = torch.einsum("bmc,bchw->bmhw", weights, image)
    predicted_iou = decoder.iou_prediction_head(attended[:, 0])[:, kept]
    return Decoded(logits.float(), predicted_iou.float())
