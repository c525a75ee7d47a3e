"""SAM's mask decoder for inference, with the same weights in another order of multiplication.

A prompt has about a dozen tokens and an image thousands of cells, so whatever can be multiplied into the tokens first,
is:

- the projections of image cells to keys, queries, values and outputs are absorbed into the tokens of each head, so that
  no projected copy of the image is ever made;
- a softmax over the few tokens runs with the cells as the fast axis;
- an attention's output is added to the image by the product that makes it;
- transposed convolutions whose stride is their kernel are products, with channels last;
- whatever treats each cell alone takes a strip of cells at a time on a CPU, so that it stays in the cache.

Only the order of additions differs from ``decoder.decode``: low-resolution logits agree within 1e-4, and a mask can
differ only where its logit is as good as zero. With bfloat16 the cells and all products over them are in that type;
tokens, the fed-back mask and the predicted IoU stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional

from cascade.backbones.sam.decoder import Decoded

_STRIP = 1024
"""Cells in one strip on a CPU: half a megabyte to one of 256 channels."""


class AbsorbedDecoder:
    """The decoder of one ``Sam``, which is on its device and has its weights; called like ``decoder.decode``.

    With ``compiled`` a pass runs as ``torch.compile`` makes it. That is for GPUs: strips do not gain from it.

    Attributes:
        sam: the model; only the prompt encoder and the mask decoder are used.
        positions: [N, C] SAM's positional encoding of the cells, float32 or bfloat16 as the cells shall be.
    """

    def __init__(self, sam: Sam, *, bf16: bool = False, compiled: bool = False) -> None:
        self.sam = sam
        self._decode = torch.compile(self._pass, dynamic=True) if compiled else self._pass
        self.positions = _cells(sam.prompt_encoder.get_dense_pe().detach(), torch.bfloat16 if bf16 else torch.float32)[
            0
        ]

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
        return Decoded(*self._decode(embeddings, points, labels, boxes, mask_input, multimask))

    def _pass(
        self,
        embeddings: Tensor,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        mask_input: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        decoder = self.sam.mask_decoder
        grid = embeddings.shape[-2:]
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        sparse = self._sparse(points, labels, boxes)
        tokens = torch.cat([output_tokens.expand(len(embeddings), -1, -1), sparse], dim=1)
        cells = self._fed(embeddings, mask_input)
        tokens, cells = _two_way(decoder.transformer, tokens, cells, self.positions)

        kept = range(1, decoder.num_mask_tokens) if multimask else range(1)
        networks = decoder.output_hypernetworks_mlps
        weights = torch.stack([networks[index](tokens[:, 1 + index]) for index in kept], dim=1)
        logits = _draw(decoder.output_upscaling, cells, weights, grid)
        predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, kept.start : kept.stop]
        return logits.float(), predicted_iou.float()

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

    def _fed(self, embeddings: Tensor, mask_input: Tensor | None) -> Tensor:
        """Cells [B, N, C] that a pass may overwrite: the embeddings plus the fed-back mask, or its absence."""
        encoder, cells = self.sam.prompt_encoder, _cells(embeddings, self.positions.dtype)
        if mask_input is None:
            return cells.add_(encoder.no_mask_embed.weight.to(cells.dtype))
        *strided, last = encoder.mask_downscaling
        for module in strided:
            mask_input = module(mask_input)
        weight, bias = last.weight.flatten(1).to(cells.dtype), last.bias.to(cells.dtype)
        fed = _cells(mask_input, cells.dtype)
        for strip in _strips(cells):
            cells[strip] += functional.linear(fed[strip], weight, bias)
        return cells


def _cells(image: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy [B, h·w, C] of [B, C, h, w], channels last."""
    return image.flatten(2).transpose(1, 2).to(dtype, copy=True, memory_format=torch.contiguous_format)


def _strips(cells: Tensor) -> list[tuple[int | slice, slice]]:
    """What to index [B, N] with, to get parts that fit in the cache of a CPU; or all at once, on a GPU."""
    if cells.is_cuda:
        return [(slice(None), slice(None))]
    rows, starts = range(len(cells)), range(0, cells.shape[1], _STRIP)
    return [(row, slice(start, start + _STRIP)) for row in rows for start in starts]


def _normalise(norm: Any, values: Tensor) -> Tensor:
    """Layer norm over the last axis; the sums are in float32 whatever the type of the values."""
    weight, bias = norm.weight.to(values.dtype), norm.bias.to(values.dtype)
    return functional.layer_norm(values, values.shape[-1:], weight, bias, norm.eps)


def _two_way(transformer: Any, tokens: Tensor, cells: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """``TwoWayTransformer``: tokens [B, T, C] and cells [B, N, C] attend to each other; ``positions`` [N, C]."""
    prompts = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + prompts
            tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
        tokens = layer.norm1(tokens)
        tokens = tokens + _read(layer.cross_attn_token_to_image, tokens + prompts, cells, positions)
        tokens = layer.norm2(tokens)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        write = _Writer(layer.cross_attn_image_to_token, tokens + prompts, tokens, cells.dtype)
        for rows, part in _strips(cells):
            cells[rows, part] = _normalise(layer.norm4, write(rows, cells[rows, part], positions[part]))
    last = transformer.final_attn_token_to_image
    tokens = transformer.norm_final_attn(tokens + _read(last, tokens + prompts, cells, positions))
    return tokens, cells


def _read(attention: Any, queries: Tensor, cells: Tensor, positions: Tensor) -> Tensor:
    """Tokens attend to cells: [B, T, C]. The keys' bias adds the same to all cells and drops out of the softmax."""
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    asked = attention.q_proj(queries).unflatten(-1, (heads, width))
    keys = attention.k_proj.weight.unflatten(0, (heads, width))
    absorbed = torch.einsum("bthd,hdc->bhtc", asked, keys) / width**0.5
    asking = absorbed.flatten(1, 2).to(cells.dtype)
    scores = asking.new_empty(*asking.shape[:2], cells.shape[1])
    for rows, part in _strips(cells):
        scores[rows, :, part] = asking[rows] @ (cells[rows, part] + positions[part]).mT
    seen = (scores.softmax(dim=-1) @ cells).float().reshape(absorbed.shape)
    values = torch.einsum("bhtc,hdc->bthd", seen, attention.v_proj.weight.unflatten(0, (heads, width)))
    read: Tensor = attention.out_proj(values.flatten(2) + attention.v_proj.bias)
    return read


class _Writer:
    """Cells attend to tokens: [..., n, C], the cells of some rows with the attention's output added.

    A head's chances add up to 1, so the output's bias may be shared among the tokens' values.
    """

    def __init__(self, attention: Any, keys: Tensor, values: Tensor, dtype: torch.dtype) -> None:
        self._heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
        offered = attention.k_proj(keys).unflatten(-1, (self._heads, width)) / width**0.5
        absorbed = torch.einsum("bthd,hdc->bhtc", offered, attention.q_proj.weight.unflatten(0, (self._heads, width)))
        bias = torch.einsum("bthd,hd->bht", offered, attention.q_proj.bias.unflatten(0, (self._heads, width)))
        given = attention.v_proj(values).unflatten(-1, (self._heads, width))
        written = torch.einsum("bthd,chd->bhtc", given, attention.out_proj.weight.unflatten(1, (self._heads, width)))
        written = written + attention.out_proj.bias / self._heads
        self._absorbed, self._written = (each.flatten(1, 2).to(dtype) for each in (absorbed, written))
        self._bias = bias.flatten(1)[..., None].to(dtype)

    def __call__(self, rows: int | slice, cells: Tensor, positions: Tensor) -> Tensor:
        scores = (self._absorbed[rows] @ (cells + positions).mT).add_(self._bias[rows])
        heads = scores.reshape(*scores.shape[:-2], self._heads, -1, scores.shape[-1])
        chance = heads.softmax(dim=-2).flatten(-3, -2)
        added: Tensor = (chance.mT @ self._written[rows]).add_(cells)
        return added


def _draw(upscaling: Any, cells: Tensor, weights: Tensor, grid: torch.Size) -> Tensor:
    """Low-resolution logits [B, M, 4·h, 4·w] of cells [B, h·w, C] and hypernetwork outputs [B, M, C / 8]."""
    first, norm, _, second, _ = upscaling
    weights = weights.to(cells.dtype)
    spread, spread_again = (_spreader(each, cells.dtype) for each in (first, second))
    drawn = weights.new_empty(*weights.shape[:2], cells.shape[1], 2, 2, 2, 2)
    for rows, part in _strips(cells):
        fine = functional.gelu(_normalise(norm, spread(cells[rows, part])))
        finer = functional.gelu(spread_again(fine))
        own = weights[rows] @ finer.flatten(-6, -2).mT
        drawn[rows, :, part] = own.reshape(*own.shape[:-1], *finer.shape[-6:-1])
    height, width = grid
    shaped = drawn.reshape(*weights.shape[:2], height, width, 2, 2, 2, 2)
    logits: Tensor = shaped.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*weights.shape[:2], 4 * height, 4 * width)
    return logits


def _spreader(convolution: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A transposed convolution with kernel and stride 2, channels last: [..., C] to [..., 2, 2, C']."""
    kernel = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).to(dtype)
    bias = convolution.bias.repeat(4).to(dtype)
    return lambda pixels: functional.linear(pixels, kernel, bias).reshape(*pixels.shape[:-1], 2, 2, -1)
