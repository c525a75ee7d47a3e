"""SAM's image encoder with fused attention: the same weights and sums, without a softmax matrix of its own.

The published ``Attention`` makes the matrix of all pairs three times over: scores, scores with relative positions, and
their softmax. Here one fused call makes none. Relative positions are its bias, or on a GPU more channels of queries and
keys: a query's value for each row, times a code that is one in the key's own row and zero elsewhere; so for columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional


def encode(encoder: nn.Module, inputs: Tensor, *, compiled: bool = False) -> Tensor:
    """What ``encoder(inputs)`` returns, within rounding: [B, C, grid, grid] of [B, 3, side, side].

    With ``compiled`` the blocks run as ``torch.compile`` makes them; there are two, with windows and without, so that
    little is compiled. An encoder that is no transformer has no attention to fuse, and runs as it is.
    """
    if not isinstance(encoder, ImageEncoderViT):
        embedded: Tensor = encoder(inputs)
        return embedded
    block = _compiled_block() if compiled else _block
    tokens = encoder.patch_embed(inputs)
    if encoder.pos_embed is not None:
        tokens = tokens + encoder.pos_embed
    for own in encoder.blocks:
        tokens = block(own, tokens)
    encoded: Tensor = encoder.neck(tokens.permute(0, 3, 1, 2))
    return encoded


@cache
def _compiled_block() -> Callable[[Any, Tensor], Tensor]:
    return torch.compile(_block)


def _block(block: Any, tokens: Tensor) -> Tensor:
    """One transformer block on [B, H, W, C], in windows if it has a window size."""
    size, side = tokens.shape[1:3], block.window_size
    normed = block.norm1(tokens)
    if side == 0:
        attended = _attend(block.attn, normed)
    else:
        windows, padded = window_partition(normed, side)
        attended = window_unpartition(_attend(block.attn, windows), side, padded, size)
    tokens = tokens + attended
    added: Tensor = tokens + block.mlp(block.norm2(tokens))
    return added


def _attend(attention: Any, tokens: Tensor) -> Tensor:
    """Self attention of [B, H, W, C] with decomposed relative positions, if the layer has them."""
    batch, height, width, channels = tokens.shape
    joint = attention.qkv(tokens).reshape(batch, height * width, 3, attention.num_heads, -1)
    query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
    if not attention.use_rel_pos:
        heads = functional.scaled_dot_product_attention(query, key, value)
    else:
        by_row, by_column = _relative_positions(attention, query, (height, width))
        if _without_bias(tokens):
            codes = _position_codes((height, width), key).expand(*key.shape[:2], -1, -1)
            query = _aligned(torch.cat([query * query.shape[-1] ** -0.5, by_row, by_column], dim=-1))
            key = _aligned(torch.cat([key, codes], dim=-1))
            heads = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            bias = by_row[..., :, None] + by_column[..., None, :]  # [B, heads, H·W, H, W]
            heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.flatten(3))
    projected: Tensor = attention.proj(heads.transpose(1, 2).reshape(batch, height, width, channels))
    return projected


def _aligned(channels: Tensor) -> Tensor:
    """With zeros up to a multiple of eight channels, without which no fused kernel for bfloat16 takes them."""
    return functional.pad(channels, (0, -channels.shape[-1] % 8))


def _without_bias(tokens: Tensor) -> bool:
    """Whether relative positions shall be more channels of queries and keys, and not a bias for each pair.

    On a GPU the bias of a global block of ViT-H is half a gigabyte, and reading it takes longer than the products; on a
    CPU the products are what takes time.
    """
    return tokens.is_cuda


def _relative_positions(attention: Any, query: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a query adds to the scores of the keys of each row [B, heads, H·W, H] and column [B, heads, H·W, W]."""
    height, width = size
    placed = query.unflatten(2, size)  # type: ignore[no-untyped-call]
    by_row = torch.einsum("bnhwc,hkc->bnhwk", placed, get_rel_pos(height, height, attention.rel_pos_h).to(query.dtype))
    by_column = torch.einsum("bnhwc,wkc->bnhwk", placed, get_rel_pos(width, width, attention.rel_pos_w).to(query.dtype))
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def _position_codes(size: tuple[int, int], like: Tensor) -> Tensor:
    """[H·W, H + W]: for each key a one in the place of its row and a one in that of its column."""
    rows, columns = (torch.eye(side, dtype=like.dtype, device=like.device) for side in size)
    return torch.cat([rows.repeat_interleave(size[1], dim=0), columns.repeat(size[0], 1)], dim=1)
