"""What the small CLIP learns: patch tokens that tell damaged from intact, next to captions."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.losses import segmentation_loss
from cascade.tasks.training.initialisation import compare_with_neighbours, wave_positions, whiten_patches

STAGES = (2, 4, 6, 8)
"""1-based vision blocks whose patch tokens are scored."""

SCALE = 100.0
"""Factor on the cosine before the softmax, as in APRIL-GAN."""


class DenseClip(nn.Module):
    """A CLIP with one linear layer per stage, as APRIL-GAN attaches them.

    Attributes:
        clip: the open_clip network.
        fc: four linear layers from tokens to the shared embedding.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**config)
        self.fc = nn.ModuleList(nn.Linear(config["vision_cfg"]["width"], config["embed_dim"]) for _ in STAGES)

        visual = self.clip.visual
        whiten_patches(visual.conv1)
        with torch.no_grad():
            visual.positional_embedding[1:] = wave_positions(
                visual.grid_size[0], visual.grid_size[1], visual.conv1.out_channels
            )
        for block in visual.transformer.resblocks:
            compare_with_neighbours(block.attn.in_proj_weight, block.attn.out_proj)

    def forward(self, images: Tensor, corner: tuple[int, int] = (0, 0)) -> tuple[Tensor, list[Tensor]]:
        """Unit image embeddings ``[B, D]`` and, per stage, unit patch embeddings ``[B, N, D]``.

        Images may be smaller than the network's own size. They then take the positions of the window of the
        grid that starts at ``corner`` (row, column).
        """
        visual = self.clip.visual
        cells = images.shape[-1] // visual.patch_size[0]
        row, column = corner
        window = visual.positional_embedding[1:].unflatten(0, visual.grid_size)
        window = window[row : row + cells, column : column + cells].flatten(0, 1)
        tokens = visual.conv1(images).flatten(2).transpose(1, 2) + window
        first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
        tokens = visual.ln_pre(torch.cat([first.to(tokens.dtype), tokens], dim=1))
        patches = []
        for index, block in enumerate(visual.transformer.resblocks, start=1):
            tokens = block(tokens)
            if index in STAGES:
                layer = self.fc[STAGES.index(index)]
                patches.append(F.normalize(layer(tokens[:, 1:]).float(), dim=-1))
        whole = visual.ln_post(tokens)[:, 0] @ visual.proj
        return F.normalize(whole.float(), dim=-1), patches


def state_features(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
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


def patch_logits(patches: Tensor, states: Tensor) -> Tensor:
    """Logits ``[B, 2, g, g]`` of patches ``[B, g*g, D]`` against states ``[B, 2, D]``."""
    grid = round(patches.shape[1] ** 0.5)
    logits = SCALE * torch.einsum("bnd,bsd->bsn", patches, states)
    return logits.reshape(len(patches), 2, grid, grid)


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
