"""The path of values beside a vision tower's own: what each token would be if attention compared values alone.

In a trained CLIP, queries and keys gather what an image shows into few tokens. Where both are replaced by values, a
token attends to tokens like itself, and its feature says what is at its place.

Source: Zhou et al., "AnomalyCLIP: Object-Agnostic Prompt Learning for Zero-Shot Anomaly Detection", ICLR 2024, arXiv
2310.18961 (DPAM), and its public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cascade.backbones.clip.backbone import ImageTokens, image_tokens, projected

PARALLEL = 19
"""Blocks, counted from the last, beside which the path runs: AnomalyCLIP's ``DPAM_layer=20``."""

_OTHER_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


def without_plain_attention(config: Mapping[str, Any]) -> str | None:
    """Why the path cannot run beside a tower of this open_clip configuration; ``None`` if it can."""
    vision = config["vision_cfg"]
    if "trunk" in vision:
        return "its blocks have no attention"
    if "timm_model_name" in vision:
        return "its image tower is one of timm's"
    if vision.get("block_type") == "custom" or any(vision.get(name) for name in _OTHER_BLOCKS):
        return "its blocks have an attention of their own form"
    if vision.get("attentional_pool"):
        return "its tokens are pooled by attention, and have no projection of their own"
    return None


@torch.inference_mode()
def value_features(model: nn.Module, images: torch.Tensor, layers: Sequence[int], *, bf16: bool = False) -> ImageTokens:
    """Tokens of the path of values, and of the ordinary class token, in the space of text.

    The path begins with the tokens that enter the first of the last ``PARALLEL`` blocks (of all blocks but the first in
    a tower of fewer), and adds to them, block for block, the attention among values of the *ordinary* path's tokens;
    it has no perceptron.

    Args:
        model: an ``open_clip.CLIP`` whose blocks have plain attention.
        images: [B, 3, side, side], normalised for CLIP.
        layers: blocks counted from 1; before the path begins, the ordinary tokens are taken.
        bf16: autocast to bfloat16.

    Returns:
        ``blocks``: [B, 1 + grid², D] float32 for each layer, after the final layer norm and the projection, not
        normalised. ``pooled``: [B, D], the last ordinary class token through the projection *without* the layer norm,
        as the authors' code has it.
    """
    visual: Any = model.visual
    depth = len(visual.transformer.resblocks)
    first = max(1, depth - PARALLEL)
    numbers = sorted({*layers, *range(first, depth + 1)})
    ordinary = dict(zip(numbers, image_tokens(model, images, numbers, bf16=bf16).blocks, strict=True))
    path, found = {layer: ordinary[layer] for layer in layers}, None
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        for number in range(first, depth):
            entering = ordinary[number]
            found = (entering if found is None else found) + among_values(
                visual.transformer.resblocks[number], entering
            )
            if number + 1 in path:
                path[number + 1] = found
        blocks = tuple(projected(model, path[layer]).float() for layer in layers)
        pooled = (ordinary[depth][:, 0] @ visual.proj).float()
    return ImageTokens(blocks, pooled)


def among_values(block: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[B, n, width] softmax(v vᵀ / √d) v of each head through the output projection, by a block's own weights."""
    width, attention = tokens.shape[-1], block.attn
    values = functional.linear(
        block.ln_1(tokens), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    )
    heads = values.reshape(*values.shape[:2], attention.num_heads, -1).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
    added: torch.Tensor = block.ls_1(attention.out_proj(mixed))
    return added
