"""What the small CLIP learns: patch tokens and a feature of the whole image that tell damaged from intact."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.backbones.clip.mini import MiniClip

SCALE = 100.0
"""Factor on the cosine before the softmax, as in APRIL-GAN."""

RANDOM, DRAWN = 260.0, 160.0
"""Cells drawn of an image, of all and of the damaged ones."""


def state_features(clip: MiniClip, tokens: Tensor) -> Tensor:
    """Unit means ``[G, 2, D]`` of tokenised sentences ``[G, 2, S, 77]`` (normal first)."""
    groups, _, sentences, context = tokens.shape
    embedded = F.normalize(clip.encode_text(tokens.reshape(-1, context)).float(), dim=-1)
    return F.normalize(embedded.reshape(groups, 2, sentences, -1).mean(dim=2), dim=-1)


def state_gap_loss(states: Tensor) -> Tensor:
    """How much closer than a cosine of 0.95 normal and abnormal states ``[G, 2, D]`` are.

    Sentences that differ in one word start out almost equal; the margin between the states then cannot exceed
    a few units whatever the patches do, and neither side learns. 0.95 leaves it a range of about +-30.
    """
    return F.relu((states[:, 0] * states[:, 1]).sum(dim=-1) - 0.95).mean() / 0.05


def dense_loss(margin: Tensor, share: Tensor) -> Tensor:
    """Cross entropy of cells ``[B, g, g]`` with a damaged ``share`` of each in [0, 1].

    A cell is damaged from two fifths on. The weights are those of drawing ``RANDOM`` cells of each image and up to
    ``DRAWN`` of its damaged ones besides, so that small damage has a say beside large; damaged cells then weigh three
    times.
    """
    damaged = (share > 0.4).float()
    count = damaged.sum(dim=(1, 2), keepdim=True)
    weight = RANDOM / damaged[0].numel() + damaged * (count.clamp(max=DRAWN) / count.clamp(min=1))
    entropy = F.binary_cross_entropy_with_logits(
        margin, damaged, weight=weight, pos_weight=margin.new_tensor(3.0), reduction="sum"
    )
    return entropy / weight.sum()


def image_loss(pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of pooled features ``[B, D]`` against states ``[B, 2, D]``: is there damage in ``[B, h, h]``?"""
    logits = SCALE * torch.einsum("bd,bsd->bs", F.normalize(pooled.float(), dim=-1), states)
    return F.cross_entropy(logits, mask.flatten(1).any(dim=1).long())
