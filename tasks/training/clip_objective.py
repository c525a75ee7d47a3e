"""What the small CLIP learns: patch tokens and a feature of the whole image that tell damaged from intact."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.backbones.clip.mini import MiniClip
from cascade.losses import segmentation_loss

SCALE = 100.0
"""Factor on the cosine before the softmax, as in APRIL-GAN."""


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


def dense_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Focal + dice of APRIL-GAN at the mask's size, plus a balanced cross entropy.

    The two published terms alone let a network that starts from nothing settle on "all normal"; the third one
    weighs abnormal pixels four times.

    Args:
        logits: ``[B, 2, g, g]``.
        mask: ``[B, h, h]`` in {0, 1}.
    """
    logits = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=True)
    margin = logits[:, 1] - logits[:, 0]
    balanced = F.binary_cross_entropy_with_logits(margin, mask, pos_weight=margin.new_tensor(4.0))
    return segmentation_loss(margin.sigmoid()[:, None], mask) + balanced


def image_loss(pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of pooled features ``[B, D]`` against states ``[B, 2, D]``: is there damage in ``[B, h, h]``?"""
    logits = SCALE * torch.einsum("bd,bsd->bs", F.normalize(pooled.float(), dim=-1), states)
    return F.cross_entropy(logits, mask.flatten(1).any(dim=1).long())
