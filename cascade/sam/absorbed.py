"""SAM's mask decoder for inference, with the same weights in another order of multiplication.

A prompt has about a dozen tokens and an image thousands of cells, so whatever can be multiplied into the tokens first,
is:

- the projections of image cells to keys, queries, values and outputs are absorbed into the tokens of each head, so that
  no projected copy of the image is ever made;
- a softmax over the few tokens runs with the cells as the fast axis;
- an attention's output is added to the image by the product that makes it;
- transposed convolutions whose stride is their kernel are products, with channels last.

Only the order of additions differs from ``decoder.decode``: low-resolution logits agree within 1e-4, and a mask can
differ only where its logit is as good as zero.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional

from cascade.sam.decoder import Decoded


class AbsorbedDecoder:
    """The decoder of one ``Sam``, which is on its device and has its weights; called like ``decoder.decode``.

    Attributes:
        sam: the model; only the prompt encoder and the mask decoder are used.
        positions: [1, N, C] SAM's positional encoding of the cells.
    """

    def __init__(self, sam: Sam) -> None:
        self.sam = sam
        self.positions = _cells(sam.prompt_encoder.get_dense_pe().detach())

    @torch.inference_mode()
    def __call__(
        self,
        embeddings: Tensor,
        points: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask: bool = True,
    ) -> Decoded:
        """One pass for B images at once; arguments and result as of ``decoder.decode``."""
        decoder = self.sam.mask_decoder
        grid = embeddings.shape[-2:]
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        sparse = self._sparse(points, labels, boxes)
        tokens = torch.cat([output_tokens.expand(len(embeddings), -1, -1), sparse], dim=1)
        cells = _cells(embeddings).add_(self._dense(mask_input))
        tokens, cells = _two_way(decoder.transformer, tokens, cells, self.positions)

        kept = range(1, decoder.num_mask_tokens) if multimask else range(1)
        networks = decoder.output_hypernetworks_mlps
        weights = torch.stack([networks[index](tokens[:, 1 + index]) for index in kept], dim=1)
        logits = _draw(decoder.output_upscaling, cells, weights, grid)
        predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, kept.start : kept.stop]
        return Decoded(logits.float(), predicted_iou.float())

    def _sparse(self, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
        """[B, T, C] tokens of points and boxes, with ``torch.where`` in place of indexing by a mask."""
        encoder = self.sam.prompt_encoder
        points, labels = points + 0.5, labels.float()
        if boxes is None:
            points = functional.pad(points, (0, 0, 0, 1))
            labels = functional.pad(labels, (0, 1), value=-1.0)
        placed = encoder.pe_layer.forward_with_coords(points, encoder.input_image_size)
        kind = labels[..., None]
        outside, inside = (encoder.point_embeddings[index].weight for index in range(2))
        tokens = torch.where(
            kind == -1, encoder.not_a_point_embed.weight, placed + torch.where(kind > 0, inside, outside)
        )
        return tokens if boxes is None else torch.cat([tokens, encoder._embed_boxes(boxes)], dim=1)

    def _dense(self, mask_input: Tensor | None) -> Tensor:
        """[B, N, C] embedding of a fed-back mask, or [1, C] of its absence."""
        encoder = self.sam.prompt_encoder
        if mask_input is None:
            absent: Tensor = encoder.no_mask_embed.weight
            return absent
        *strided, last = encoder.mask_downscaling
        for module in strided:
            mask_input = module(mask_input)
        return functional.linear(_cells(mask_input), last.weight.flatten(1), last.bias)


def _cells(image: Tensor) -> Tensor:
    """A copy [B, h·w, C] of [B, C, h, w], channels last."""
    return image.flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _two_way(transformer: Any, tokens: Tensor, cells: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """``TwoWayTransformer``: tokens [B, T, C] and cells [B, N, C] attend to each other; ``positions`` [1, N, C]."""
    prompts = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + prompts
            tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
        tokens = layer.norm1(tokens)
        placed_cells = cells + positions
        tokens = tokens + _read(layer.cross_attn_token_to_image, tokens + prompts, placed_cells, cells)
        tokens = layer.norm2(tokens)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        cells = layer.norm4(_write(layer.cross_attn_image_to_token, tokens + prompts, tokens, placed_cells, cells))
    last = transformer.final_attn_token_to_image
    tokens = transformer.norm_final_attn(tokens + _read(last, tokens + prompts, cells + positions, cells))
    return tokens, cells


def _read(attention: Any, queries: Tensor, placed_cells: Tensor, cells: Tensor) -> Tensor:
    """Tokens attend to cells: [B, T, C]. The keys' bias adds the same to all cells and drops out of the softmax."""
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    asked = attention.q_proj(queries).unflatten(-1, (heads, width))
    keys = attention.k_proj.weight.unflatten(0, (heads, width))
    absorbed = torch.einsum("bthd,hdc->bhtc", asked, keys) / width**0.5
    chance = (absorbed.flatten(1, 2) @ placed_cells.transpose(1, 2)).softmax(dim=-1)
    seen = (chance @ cells).reshape(absorbed.shape)
    values = torch.einsum("bhtc,hdc->bthd", seen, attention.v_proj.weight.unflatten(0, (heads, width)))
    read: Tensor = attention.out_proj(values.flatten(2) + attention.v_proj.bias)
    return read


def _write(attention: Any, keys: Tensor, values: Tensor, placed_cells: Tensor, cells: Tensor) -> Tensor:
    """Cells attend to tokens: [B, N, C], the cells with the attention's output added.

    A head's chances add up to 1, so the output's bias may be shared among the tokens' values.
    """
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    offered = attention.k_proj(keys).unflatten(-1, (heads, width)) / width**0.5
    absorbed = torch.einsum("bthd,hdc->bhtc", offered, attention.q_proj.weight.unflatten(0, (heads, width)))
    bias = torch.einsum("bthd,hd->bht", offered, attention.q_proj.bias.unflatten(0, (heads, width)))
    scores = torch.baddbmm(bias.flatten(1)[..., None], absorbed.flatten(1, 2), placed_cells.transpose(1, 2))
    chance = scores.reshape(len(cells), heads, -1, cells.shape[1]).softmax(dim=2).flatten(1, 2)
    given = attention.v_proj(values).unflatten(-1, (heads, width))
    written = torch.einsum("bthd,chd->bhtc", given, attention.out_proj.weight.unflatten(1, (heads, width)))
    written = written + attention.out_proj.bias / heads
    return torch.baddbmm(cells, chance.transpose(1, 2), written.flatten(1, 2))


def _draw(upscaling: Any, cells: Tensor, weights: Tensor, grid: torch.Size) -> Tensor:
    """Low-resolution logits [B, M, 4·h, 4·w] of cells [B, h·w, C] and hypernetwork outputs [B, M, C / 8]."""
    first, norm, activation, second, _ = upscaling
    fine = _spread(first, cells)
    fine = functional.layer_norm(fine, fine.shape[-1:], norm.weight, norm.bias, norm.eps)
    finer = activation(_spread(second, activation(fine)))
    drawn = weights @ finer.flatten(1, 5).transpose(1, 2)
    height, width = grid
    shaped = drawn.reshape(*drawn.shape[:2], height, width, 2, 2, 2, 2)
    logits: Tensor = shaped.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*drawn.shape[:2], 4 * height, 4 * width)
    return logits


def _spread(convolution: Any, pixels: Tensor) -> Tensor:
    """A transposed convolution with kernel and stride 2, channels last: [..., C] to [..., 2, 2, C']."""
    kernel = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    product = functional.linear(pixels, kernel, convolution.bias.repeat(4))
    spread: Tensor = product.reshape(*pixels.shape[:-1], 2, 2, -1)
    return spread
