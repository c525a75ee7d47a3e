"""Prompts of learned vectors in place of words for objects, and cells compared with them: AnomalyCLIP's arithmetic.

Source: Zhou et al., "AnomalyCLIP: Object-Agnostic Prompt Learning for Zero-Shot Anomaly Detection", ICLR 2024, arXiv
2310.18961, and its public code. The softmax comes *before* the upsampling here, which has no aligned corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cascade.backbones.clip.text_tower import embedded_words, encode_embedded
from cascade.frames import Size
from cascade.losses import glocal_loss

TEMPERATURE = 0.07
SENTENCES = ("object.", "damaged object.")
"""What follows the learned vectors, normal first."""

LENGTH, DEPTH, DEEP_LENGTH = 12, 9, 4
"""Published: learned vectors of a prompt, blocks of the text tower that see any, vectors of a deeper block."""

_PLACEHOLDER = "X"
_UNUSED = ("compound_prompt_projections.", "token_prefix_", "token_suffix_", "tokenized_prompts_")
"""How names begin that the authors' files have and their forward pass does not read."""


class LearnedPrompts(nn.Module):
    """The learned vectors of both prompts, and those of the deeper blocks, which both share.

    State-dict names are the authors': ``ctx_pos`` (normal) and ``ctx_neg`` (abnormal) [1, 1, n, width],
    ``compound_prompts_text.<i>`` [k, width].
    """

    def __init__(self, width: int, length: int = LENGTH, depth: int = DEPTH, deep_length: int = DEEP_LENGTH) -> None:
        super().__init__()
        self.ctx_pos = nn.Parameter(0.02 * torch.randn(1, 1, length, width))
        self.ctx_neg = nn.Parameter(0.02 * torch.randn(1, 1, length, width))
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(deep_length, width)) for _ in range(depth - 1)
        )

    def embedded(self, clip: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """[2, T, width] prompts without positions, and [2] the places of their end tokens."""
        length = self.ctx_pos.shape[2]
        words, ends = embedded_words(clip, [" ".join([_PLACEHOLDER] * length + [each]) for each in SENTENCES])
        learned = torch.cat([self.ctx_pos[0], self.ctx_neg[0]])
        return torch.cat([words[:, :1], learned, words[:, 1 + length :]], dim=1), ends

    def features(self, clip: nn.Module) -> torch.Tensor:
        """[2, D] text features, normal first, not normalised.

        The deeper vectors are rounded to half precision, as in the authors' code, and so is their gradient.
        """
        embedded, ends = self.embedded(clip)
        deep = [vectors.expand(2, -1, -1).half().to(embedded.dtype) for vectors in self.compound_prompts_text]
        return encode_embedded(clip, embedded, ends, deep)


def build_prompts(state: Mapping[str, torch.Tensor]) -> LearnedPrompts:
    """The prompts that a state dict describes, ours or the authors'. Raises ``ValueError`` if it describes none."""
    read = {name: value.float() for name, value in state.items() if not name.startswith(_UNUSED)}
    deep = sum(name.startswith("compound_prompts_text.") for name in read)
    wanted = {"ctx_pos", "ctx_neg", *(f"compound_prompts_text.{index}" for index in range(deep))}
    if set(read) != wanted or not deep:
        odd = [*sorted(set(read) - wanted), *(f"{name} missing" for name in sorted(wanted - set(read)))]
        raise ValueError(
            f"not AnomalyCLIP's prompts: expected ctx_pos, ctx_neg and compound_prompts_text.<i>; "
            f"found {', '.join(odd[:4]) or 'no compound_prompts_text'}{' and more' if len(odd) > 4 else ''}"
        )
    shapes = [tuple(read[name].shape) for name in ("ctx_pos", "ctx_neg", "compound_prompts_text.0")]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][:2] != (1, 1) or len(shapes[2]) != 2:
        raise ValueError(
            f"prompts of shapes {', '.join(map(str, shapes))}; expected [1, 1, n, width] twice and [k, width]"
        )
    prompts = LearnedPrompts(shapes[0][3], shapes[0][2], deep + 1, shapes[2][0])
    try:
        prompts.load_state_dict(read)
    except RuntimeError as error:
        raise ValueError(f"prompts that do not fit each other ({' '.join(str(error).split())[:200]})") from error
    return prompts.eval()


def misfit(prompts: LearnedPrompts, clip_config: Mapping[str, Any]) -> str:
    """Why prompts cannot be read by the text tower of a CLIP model; empty if they can."""
    text, (length, width) = clip_config["text_cfg"], prompts.ctx_pos.shape[2:]
    if width != text["width"]:
        return (
            f"prompts of width {width}, and the text tower of this CLIP model has width {text['width']}; use the "
            f"backbone that they were trained with"
        )
    depth, context = 1 + len(prompts.compound_prompts_text), text.get("context_length", 77)
    if depth > text["layers"]:
        return f"prompts for {depth} blocks, and the text tower of this CLIP model has {text['layers']}"
    if length + 8 > context or len(prompts.compound_prompts_text[0]) >= context:
        return f"prompts of {length} vectors, and the text tower of this CLIP model takes {context} tokens"
    return ""


@lru_cache(maxsize=2)
def known_features(prompts: LearnedPrompts, clip: nn.Module) -> torch.Tensor:
    """[D, 2] unit columns, normal and abnormal, of prompts that no longer change."""
    with torch.inference_mode():
        return functional.normalize(prompts.features(clip), dim=-1).T


def cosine_logits(features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """[..., 2] float32 cosine / 0.07 of features [..., D] and unit columns [D, 2], whatever is cast around it."""
    with torch.autocast(features.device.type, enabled=False):
        return functional.normalize(features.float(), dim=-1) @ texts.float() / TEMPERATURE


def on_grid(logits: torch.Tensor) -> torch.Tensor:
    """[..., 2, grid, grid] of cells in rows, [..., grid², 2]."""
    grid = round(logits.shape[-2] ** 0.5)
    return logits.transpose(-1, -2).reshape(*logits.shape[:-2], 2, grid, grid)


def layer_probabilities(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """[B, L, 2, height, width] from [B, L, 2, grid, grid]: softmax, then bilinear upsampling."""
    flat = functional.interpolate(logits.softmax(dim=2).flatten(0, 1), size, mode="bilinear", align_corners=False)
    return flat.reshape(*logits.shape[:3], *size)


def prompts_loss(
    prompts: LearnedPrompts,
    clip: nn.Module,
    cells: torch.Tensor,
    pooled: torch.Tensor,
    masks: torch.Tensor,
) -> torch.Tensor:
    """AnomalyCLIP's loss, a scalar.

    Args:
        prompts: with gradients.
        clip: frozen.
        cells: [B, L, grid², D], see :func:`cascade.backbones.clip.dpam.value_features`.
        pooled: [B, D].
        masks: [B, H, W] bool, true where defective.
    """
    texts = functional.normalize(prompts.features(clip), dim=-1).T
    probabilities = layer_probabilities(on_grid(cosine_logits(cells, texts)), (masks.shape[1], masks.shape[2]))
    return glocal_loss(cosine_logits(pooled, texts), probabilities, masks)


def map_parts(logits: torch.Tensor) -> Sequence[torch.Tensor]:
    """The mean probability of "abnormal" over layers, and the mean difference of the logits, both [grid, grid].

    Args:
        logits: [L, 2, grid, grid]. AnomalyCLIP sums its maps; the mean ranks alike and is in [0, 1].
    """
    return logits.softmax(dim=1)[:, 1].mean(dim=0), (logits[:, 1] - logits[:, 0]).mean(dim=0)
