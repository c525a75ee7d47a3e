"""CLIP Surgery's second path through a vision tower, in which values attend to values and no perceptron stands.

Source: Li et al., "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks", arXiv 2304.05653,
and Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-Shot Anomaly Detection", arXiv 2311.00453,
and the public code of both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cascade.backbones.clip.backbone import image_tokens
from cascade.backbones.clip.dpam import among_values


@dataclass(frozen=True)
class DualPath:
    """Tokens of both paths after each chosen block, class token first, float32.

    Attributes:
        surgery: [B, 1 + grid², D] each: of the second path, with the class token of the ordinary one, after the final
            layer norm and the projection; not normalised.
        ordinary: [B, 1 + grid², width] each: of the ordinary path, neither normed nor projected.
    """

    surgery: tuple[torch.Tensor, ...]
    ordinary: tuple[torch.Tensor, ...]


def stage_starts(depth: int) -> range:
    """The first block, counted from 0, of each of CLIP-AD's four stages of a tower of ``depth`` blocks."""
    return range(0, depth, max(1, depth // 4))


@torch.inference_mode()
def dual_path(
    model: nn.Module,
    images: torch.Tensor,
    layers: Sequence[int],
    *,
    fresh: Collection[int] = (),
    branch: int | None = None,
    aliased: bool = False,
    bf16: bool = False,
) -> DualPath:
    """Tokens of both paths after ``layers``.

    Each block adds to the second path what its attention makes of the ordinary path's tokens with values in place of
    queries and keys.

    Args:
        model: an ``open_clip.CLIP`` whose blocks have plain attention.
        images: [B, 3, side, side], normalised for CLIP.
        layers: blocks counted from 1.
        fresh: blocks, counted from 0, at which the second path begins anew, from nothing. In CLIP-AD those of
            :func:`stage_starts`.
        branch: block, counted from 0, at which it leaves the ordinary path, whose tokens it keeps. In CLIP Surgery the
            sixth from the end.
        aliased: add to ordinary tokens what the attention of the next block adds to them, as CLIP-AD's code does in
            place; those of the last block stay. Class tokens of the second path are of these, too.
        bf16: under autocast to bfloat16.
    """
    visual: Any = model.visual
    blocks = visual.transformer.resblocks
    after = image_tokens(model, images, range(1, len(blocks) + 1), bf16=bf16).blocks
    surgery, ordinary, path = {}, {}, None
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        for number, block in enumerate(blocks[: max(layers)]):
            entering = after[number - 1] if number else visual._embeds(images).float()
            added = among_values(block, entering).float()
            if number in fresh:
                path = added
            elif number == branch or path is None:
                path = entering + added
            else:
                path = path + added
            layer = number + 1
            if layer not in layers:
                continue
            own = after[number]
            if aliased and layer < len(blocks):
                own = own + _attention(blocks[layer], own).float()
            ordinary[layer] = own
            tokens = torch.cat([own[:, :1], path[:, 1:]], dim=1)
            surgery[layer] = (visual.ln_post(tokens) @ visual.proj).float()
    return DualPath(tuple(surgery[each] for each in layers), tuple(ordinary[each] for each in layers))


def _attention(block: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[B, n, width] what a block's attention adds to the tokens that enter it."""
    attention = block.attn
    projected = functional.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    queries, keys, values = (
        each.reshape(*each.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for each in torch.chunk(projected, 3, dim=-1)
    )
    mixed = functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    added: torch.Tensor = block.ls_1(attention.out_proj(mixed))
    return added
