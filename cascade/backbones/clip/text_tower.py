"""A text tower from the embeddings of its words on, so that learned vectors can stand among them.

``open_clip.CLIP`` has its text tower's parts as attributes of its own, :class:`MiniClip` has the tower whole; both are
read alike here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cascade.backbones.clip.backbone import tokenised
from cascade.backbones.clip.mini import MiniClip


def embedded_words(model: nn.Module, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences as the tower takes them in, before a position is added.

    Returns:
        [n, T, width] embeddings of the start token, the words, the end token and padding, T being the model's context
        length; and [n] int64, the place of the end token.
    """
    tower = _tower(model)
    tokens = tokenised(model, sentences)
    return tower.token_embedding(tokens), tokens.argmax(dim=-1)


def encode_embedded(
    model: nn.Module, embedded: torch.Tensor, ends: torch.Tensor, deep: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """Text features [n, D] of embedded sentences, not normalised; gradients reach ``embedded`` and ``deep``.

    Args:
        model: an ``open_clip.CLIP`` or :class:`MiniClip`.
        embedded: [n, T, width], without positions.
        ends: [n], the place of the token at which the feature is read.
        deep: [n, k, width] each; those of index i take the places 1 to k at the input of block i + 1, counted from 0.
    """
    tower = _tower(model)
    stream, mask = embedded + tower.positional_embedding, tower.attn_mask
    for number, block in enumerate(tower.transformer.resblocks):
        if 1 <= number <= len(deep):
            own = deep[number - 1]
            stream = torch.cat([stream[:, :1], own, stream[:, 1 + own.shape[1] :]], dim=1)
        stream = block(stream, attn_mask=mask)
    read = tower.ln_final(stream)[torch.arange(len(stream), device=stream.device), ends]
    projection = tower.text_projection
    features: torch.Tensor = projection(read) if isinstance(projection, nn.Module) else read @ projection
    return features


def _tower(model: nn.Module) -> Any:
    return model.text if isinstance(model, MiniClip) else model
