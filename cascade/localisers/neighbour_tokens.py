"""Tokens averaged with their neighbours, adapted by one layer of attention, and compared with two learned prompts.

Source: "AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation", 2025, and what its public code was
seen to compute; that code has no licence, and none of it is here. The softmax comes before the upsampling, which has no
aligned corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cascade.backbones.clip.backbone import projected
from cascade.backbones.clip.text_tower import embedded_words, encode_embedded
from cascade.localisers.learned_prompts import cosine_logits, on_grid
from cascade.losses import binary_focal_loss, patch_alignment_loss

SENTENCES = ("without defect.", "with defect.")
"""Normal first; they name no object."""

NEIGHBOURHOODS = (1, 3, 5)
"""Sides in cells."""

LENGTH, HEADS, HEAD_WIDTH = 12, 8, 64
"""Published: learned vectors of a prompt, heads of the adapter, channels of a head."""

_SIGMA = 4.0
"""Of the neighbourhoods' Gaussian, in cells."""


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * HEAD_WIDTH
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        shape = (*tokens.shape[:2], self.heads, HEAD_WIDTH)
        query, key, value = (own(tokens).reshape(shape).transpose(1, 2) for own in (self.to_q, self.to_k, self.to_v))
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        found: torch.Tensor = self.to_out(mixed)
        return found


class _Normed(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = _SelfAttention(width, heads)


class _Adaptor(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Normed(width, heads)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.attention.attn(self.attention.norm(tokens))
        return found


class AfAdapter(nn.Module):
    """The learned vectors of both prompts, and the layer of attention that adapts the tokens of every layer.

    State-dict names are the authors': ``state_prompt_embedding`` [1, n, text width], and
    ``adaptor.attention.<norm|attn>...``.
    """

    def __init__(self, width: int, text_width: int, length: int = LENGTH, heads: int = HEADS) -> None:
        super().__init__()
        self.state_prompt_embedding = nn.Parameter(0.01 * torch.randn(1, length, text_width))
        self.adaptor = _Adaptor(width, heads)

    def text_features(self, clip: nn.Module) -> torch.Tensor:
        """[2, D] text features, normal first, not normalised.

        The learned vectors stand before the start token; what no longer fits at the end, padding, is cut off.
        """
        words, ends = embedded_words(clip, SENTENCES)
        learned = self.state_prompt_embedding.expand(len(words), -1, -1)
        embedded = torch.cat([learned, words], dim=1)[:, : words.shape[1]]
        return encode_embedded(clip, embedded, ends + learned.shape[1])

    def token_sets(self, clip: nn.Module, blocks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """[B, 1 + grid², D] unit vectors in the space of text, for each layer and, within it, each neighbourhood.

        Args:
            clip: frozen.
            blocks: [B, 1 + grid², width] for each layer, class token first.
        """
        return [
            functional.normalize(projected(clip, self.adaptor(averaged(tokens, side))).float(), dim=-1)
            for tokens in blocks
            for side in NEIGHBOURHOODS
        ]


def build_af_adapter(state: Mapping[str, torch.Tensor]) -> AfAdapter:
    """The weights that a state dict describes. Raises ``ValueError`` if it describes none."""
    wanted = set(AfAdapter(1, 1, 1, 1).state_dict())
    if set(state) != wanted:
        odd = [*sorted(set(state) - wanted), *(f"{name} missing" for name in sorted(wanted - set(state)))]
        raise ValueError(
            f"not AF-CLIP's weights: expected state_prompt_embedding and adaptor.attention.<...> in one file; found "
            f"{', '.join(odd[:3])}{' and more' if len(odd) > 3 else ''} (preset af_clip joins the authors' two files)"
        )
    prompt, query = state["state_prompt_embedding"], state["adaptor.attention.attn.to_q.weight"]
    if prompt.ndim != 3 or query.ndim != 2 or not query.shape[0] or query.shape[0] % HEAD_WIDTH:
        raise ValueError(
            f"AF-CLIP's weights of shapes {tuple(prompt.shape)} and {tuple(query.shape)}; expected [1, n, text width] "
            f"and [heads x {HEAD_WIDTH}, width]"
        )
    adapter = AfAdapter(query.shape[1], prompt.shape[2], prompt.shape[1], query.shape[0] // HEAD_WIDTH)
    try:
        adapter.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"AF-CLIP's weights do not fit each other ({' '.join(str(error).split())[:200]})") from error
    return adapter.eval()


def misfit(adapter: AfAdapter, clip_config: Mapping[str, Any]) -> str:
    """Why weights cannot work on a CLIP model; empty if they can."""
    text, vision = clip_config["text_cfg"], clip_config["vision_cfg"]
    own = (adapter.adaptor.attention.norm.weight.shape[0], adapter.state_prompt_embedding.shape[2])
    if own != (vision["width"], text["width"]):
        return (
            f"for towers of widths {own[0]} (image) and {own[1]} (text), and this CLIP model has {vision['width']} and "
            f"{text['width']}; use the backbone that the weights were trained with"
        )
    context = text.get("context_length", 77)
    if adapter.state_prompt_embedding.shape[1] + 5 > context:
        return (
            f"prompts of {adapter.state_prompt_embedding.shape[1]} vectors, and this CLIP model takes {context} tokens"
        )
    return ""


def averaged(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """[B, 1 + grid², width] with each cell averaged over its neighbourhood of ``side`` cells by a Gaussian.

    Beyond the edge are zeros that count, so that cells at the edge shrink. The class token stays as it is.
    """
    if side == 1:
        return tokens
    grid = round((tokens.shape[1] - 1) ** 0.5)
    away = torch.arange(side, device=tokens.device) - side // 2
    line = torch.exp(-(away.to(tokens.dtype) ** 2) / (2 * _SIGMA**2))
    kernel = line[:, None] * line
    cells = tokens[:, 1:].transpose(1, 2).reshape(-1, 1, grid, grid)
    mixed = functional.conv2d(cells, (kernel / kernel.sum())[None, None], padding=side // 2)
    return torch.cat([tokens[:, :1], mixed.reshape(len(tokens), -1, grid**2).transpose(1, 2)], dim=1)


@lru_cache(maxsize=2)
def known_texts(adapter: AfAdapter, clip: nn.Module) -> torch.Tensor:
    """[D, 2] unit columns, normal and abnormal, of weights that no longer change."""
    with torch.inference_mode():
        return functional.normalize(adapter.text_features(clip), dim=-1).T


def summed_logits(sets: Sequence[torch.Tensor], texts: torch.Tensor) -> torch.Tensor:
    """[B, 1 + grid², 2]: cosine / 0.07, summed over the token sets."""
    return torch.stack([cosine_logits(each, texts) for each in sets]).sum(dim=0)


def grid_target(masks: torch.Tensor, grid: int) -> torch.Tensor:
    """[B, grid, grid] of masks [B, H, W] in [0, 1]: 1 where more than half of the bilinear sample is defective, 0 where
    less is, and 0.5 where it is just half."""
    sampled = functional.interpolate(masks[:, None].float(), (grid, grid), mode="bilinear", align_corners=False)[:, 0]
    return (1 + (sampled - 0.5).sign()) / 2


def af_loss(adapter: AfAdapter, clip: nn.Module, blocks: Sequence[torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    """AF-CLIP's loss: focal losses of the image and of the cells, the cells' mean error, and the alignment of cells.

    Where the authors' code overwrites the cells' target before it takes gradients, this leaves it as it is.

    Args:
        adapter: with gradients.
        clip: frozen.
        blocks: [B, 1 + grid², width] for each layer.
        masks: [B, H, W], 1 where defective; an image is, if any pixel of it is.
    """
    sets = adapter.token_sets(clip, blocks)
    texts = functional.normalize(adapter.text_features(clip), dim=-1).T
    logits = summed_logits(sets, texts)
    label = (masks > 0.5).flatten(1).any(dim=1)
    cells = on_grid(logits[:, 1:]).softmax(dim=1)[:, 1]
    target = grid_target(masks, cells.shape[-1])
    alignment = torch.stack([patch_alignment_loss(each[:, 1:], target.flatten(1)) for each in sets]).mean()
    image = binary_focal_loss(logits[:, 0].softmax(dim=-1)[:, 1], label)
    return image + binary_focal_loss(cells, target) + (cells - target).abs().mean() + alignment
