"""The small CLIP: each cell of a frozen trunk beside the rest of its image, and open_clip's text tower for words.

The trunk's features say what a cell looks like. Whether that is normal only the rest of the image can tell. So each
cell also carries how far it is from the image's own mean, and how far from the cells elsewhere that are most like it.
Nothing that is learned sees more than one cell: blocks of attention and of wider kernels learned the generator of the
training images, and found less on anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip import OPENAI_DATASET_MEAN as MEAN
from open_clip import OPENAI_DATASET_STD as STD
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.backbones.features.efficientnet import CHANNELS, Trunk

PATCH = 8
"""Pixels per side of a cell of the grid."""

KEYS = 16
"""Side of the coarse grid whose cells a cell is compared with."""

SHARES = (0.0, 0.02, 0.1, 0.25)
"""Of the coarse cells, the most similar ones whose mean similarity is told; 0 is the most similar one alone."""

TOLD = 1 + len(SHARES)
"""Numbers that tell of a cell how unlike the rest of its image it is."""

_DROPPED = 0.2
"""Share of the inputs and of the hidden values that a training step leaves out."""


class Level(nn.Module):
    """One level of the trunk, with what the image itself says of each cell, projected to a common width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.proj = nn.Conv2d(2 * channels + TOLD, width, 1)

    def forward(self, level: Tensor) -> Tensor:
        """``[B, width, h, h]`` of one of :func:`seen_levels`, ``[B, channels + TOLD, h, h]``."""
        unit, told = torch.split(level, [self.channels, TOLD], dim=1)
        deviation = unit - unit.mean(dim=(2, 3), keepdim=True)
        spread = deviation.std(dim=(2, 3), keepdim=True) + 1e-3
        seen = torch.cat([4 * unit, 0.3 * deviation / spread, told], dim=1)
        projected: Tensor = self.proj(F.dropout(seen, _DROPPED, self.training))
        return projected


def _unlike(unit: Tensor) -> Tensor:
    """``[B, TOLD, h, h]`` of unit features: distance to the image's mean, and similarities to its far coarse cells."""
    mean = unit.mean(dim=(2, 3), keepdim=True)
    distance = 1 - (unit * F.normalize(mean, dim=1)).sum(dim=1, keepdim=True)
    deviation, height = unit - mean, unit.shape[2]
    keys = min(KEYS, height)
    asked = F.normalize(deviation, dim=1).flatten(2).transpose(1, 2)
    coarse = F.normalize(F.adaptive_avg_pool2d(deviation, keys), dim=1).flatten(2)
    at = torch.arange(height, device=unit.device) * keys // height
    near = (at[:, None] - torch.arange(keys, device=unit.device)).abs() <= 1
    touching = (near[:, None, :, None] & near[None, :, None, :]).reshape(height * height, keys * keys)
    similarity = torch.bmm(asked, coarse).masked_fill(touching, -1)
    counts = [max(1, int(share * keys * keys)) for share in SHARES]
    nearest = similarity.topk(max(counts), dim=2).values
    means = torch.stack([nearest[..., :count].mean(dim=2) for count in counts], dim=1)
    return torch.cat([3 * distance, 2 * means.view(*means.shape[:2], *unit.shape[2:]) - 0.5], dim=1)


class Block(nn.Module):
    """A perceptron on each token, beside what it was."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(_DROPPED), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, n, width]``."""
        added: Tensor = tokens + self.mlp(self.ln(tokens))
        return added


class _Blocks(nn.Module):
    """The blocks by the name that open_clip's towers give them."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


class MiniTower(nn.Module):
    """From the trunk's levels to tokens after each block and one feature of the whole image.

    The whole image's feature is drawn from the cells that each of ``queries`` learned questions looks for.
    """

    def __init__(self, *, width: int, layers: int, neck: int, queries: int, embed_dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(channels, neck) for channels in CHANNELS)
        self.neck = nn.Linear(neck, width)
        self.transformer = _Blocks([Block(width) for _ in range(layers)])
        self.ln_post = nn.LayerNorm(width)
        self.ask = nn.Linear(width, queries)
        self.proj = nn.Linear(queries * width, embed_dim)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Tokens ``[B, g·g, width]`` after each block, and ``[B, embed_dim]``, of :func:`seen_levels`.

        The grid is that of the first level.
        """
        grid = levels[0].shape[2:]
        projected = [own(level) for own, level in zip(self.levels, levels, strict=True)]
        cells = F.gelu(torch.stack([_resized(own, grid) for own in projected]).sum(dim=0))
        cells = F.dropout(cells, _DROPPED, self.training).flatten(2).transpose(1, 2)
        tokens, after = self.neck(cells), []
        for block in self.transformer.resblocks:
            tokens = block(tokens)
            after.append(tokens)
        return after, self.pooled(self.ln_post(tokens))

    def pooled(self, cells: Tensor) -> Tensor:
        """The feature ``[B, embed_dim]`` of any set of cells ``[B, n, width]``, after ``ln_post``."""
        drawn = self.ask(cells).softmax(dim=1).transpose(1, 2) @ cells
        feature: Tensor = self.proj(drawn.flatten(1))
        return feature

    def projected(self, tokens: Tensor) -> Tensor:
        """``[..., embed_dim]`` of tokens ``[..., width]``: each as if every question had drawn it alone."""
        found: Tensor = self.proj(torch.cat([self.ln_post(tokens)] * self.ask.out_features, dim=-1))
        return found


def _resized(cells: Tensor, grid: Sequence[int]) -> Tensor:
    if cells.shape[2:] == tuple(grid):
        return cells
    return F.interpolate(cells, tuple(grid), mode="bilinear", align_corners=False)


def seen_levels(trunk: Trunk, images: Tensor) -> list[Tensor]:
    """What :class:`MiniTower` looks at, ``[B, CHANNELS[i] + TOLD, h, h]`` for each of the trunk's levels.

    Features, smoothed and of unit length in each cell, and how unlike the rest of the image the cell is. The first
    level has the grid of the second.

    Args:
        trunk: the frozen features.
        images: ``[B, 3, H, W]`` RGB in [−1, 1].
    """
    first, *others = trunk(images)
    first = F.interpolate(first, others[0].shape[2:], mode="area")
    smooth = (F.avg_pool2d(level, 3, 1, 1, count_include_pad=False) for level in (first, *others))
    return [torch.cat([unit, _unlike(unit)], dim=1) for unit in (F.normalize(level, dim=1) for level in smooth)]


class MiniClip(nn.Module):
    """The small CLIP, with the methods of an ``open_clip.CLIP`` that are used here.

    Attributes:
        trunk: frozen.
        visual: see :class:`MiniTower`.
        text: open_clip's text tower.
        context_length: tokens of a sentence.
    """

    def __init__(self, config: Mapping[str, Any], trunk: Trunk) -> None:
        super().__init__()
        vision, text = dict(config["vision_cfg"]), config["text_cfg"]
        sizes = {name: vision[name] for name in ("width", "layers", "neck", "queries")}
        self.trunk = trunk
        self.visual = MiniTower(embed_dim=config["embed_dim"], **sizes)
        self.text = TextTransformer(output_dim=config["embed_dim"], **text)
        self.context_length = int(text["context_length"])
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """``[B, D]`` of tokenised sentences ``[B, context_length]``."""
        features: Tensor = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def forward_intermediates(
        self, image: Tensor, image_indices: Sequence[int], **_: object
    ) -> dict[str, Tensor | list[Tensor]]:
        """As open_clip's with tokens as rows and the first ones apart, for images that are normalised for CLIP.

        The first token of a block is the mean of the others: this tower has none of its own.
        """
        after, pooled = self.visual(self._levels(image))
        chosen = [after[index] for index in image_indices]
        return {
            "image_intermediates": chosen,
            "image_intermediates_prefix": [tokens.mean(dim=1, keepdim=True) for tokens in chosen],
            "image_features": pooled,
        }

    def cells(self, image: Tensor) -> Tensor:
        """The cells ``[B, g·g, width]`` from which a feature is drawn, for images that are normalised for CLIP."""
        normed: Tensor = self.visual.ln_post(self.visual(self._levels(image))[0][-1])
        return normed

    def _levels(self, image: Tensor) -> list[Tensor]:
        return seen_levels(self.trunk, 2 * (image * self.std + self.mean) - 1)
