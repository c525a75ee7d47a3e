"""The small CLIP: a few blocks on a frozen trunk for images, open_clip's text tower for words.

The trunk's features say what a cell looks like. Whether that is normal only the rest of the image can tell, so each
cell also carries how far it is from the image's own mean and from the cells that are most like it, and the blocks let
it ask the image as a whole.
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

CONTEXT = 8
"""Side of the coarse grid of tokens that blocks attend to."""

_SHARPNESS = (8.0, 32.0)
"""Of the soft maximum over similarities; the second must be four times the first."""


class Level(nn.Module):
    """One level of the trunk, with what the image itself says of each cell, projected to a common width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.proj = nn.Conv2d(2 * channels + 1 + len(_SHARPNESS), width, 1)

    def forward(self, unit: Tensor) -> Tensor:
        """``[B, width, h, h]`` of unit features ``[B, channels, h, h]``."""
        mean = unit.mean(dim=(2, 3), keepdim=True)
        deviation = unit - mean
        spread = deviation.square().mean(dim=(2, 3)).sqrt() + 1e-3
        told = torch.cat([3 * self._distance(unit, mean), 2 * _similar(deviation) - 0.5], dim=1)
        sizes = [self.channels, self.channels, told.shape[1]]
        own, deviating, rest = torch.split(self.proj.weight[:, :, 0, 0], sizes, dim=1)
        deviating = deviating * (0.3 / spread)[:, None]
        projected = torch.bmm(4 * own + deviating, unit.flatten(2)) - torch.bmm(deviating, mean.flatten(2))
        return projected.view(*projected.shape[:2], *unit.shape[2:]) + F.conv2d(
            told, rest[..., None, None], self.proj.bias
        )

    @staticmethod
    def _distance(unit: Tensor, mean: Tensor) -> Tensor:
        return 1 - (unit * F.normalize(mean, dim=1)).sum(dim=1, keepdim=True)


def _similar(deviation: Tensor) -> Tensor:
    """Soft maxima ``[B, 2, h, h]`` of each cell's cosine to the coarse cells that do not touch it."""
    height = deviation.shape[2]
    keys = min(KEYS, height)
    asked = F.normalize(deviation, dim=1).flatten(2).transpose(1, 2)
    coarse = F.normalize(F.adaptive_avg_pool2d(deviation, keys), dim=1).flatten(2)
    at = torch.arange(height, device=deviation.device) * keys // height
    near = ((at[:, None] - torch.arange(keys, device=deviation.device)).abs() <= 1).float()
    far = 1 - (near[:, None, :, None] * near[None, :, None, :]).reshape(height * height, keys * keys)
    share = torch.bmm(asked, coarse).mul(_SHARPNESS[0]).exp() * far
    count = far.sum(dim=1)
    # A grid too small to have cells that do not touch says nothing: the logarithm of one.
    soft = [((part.sum(dim=2) + 1e-6) / (count + 1e-6)).log() for part in (share, share.square().square())]
    scaled = torch.stack([own / sharp for own, sharp in zip(soft, _SHARPNESS, strict=True)], dim=1)
    return scaled.view(len(scaled), -1, *deviation.shape[2:])


class Block(nn.Module):
    """A depthwise convolution, attention from each cell to the coarse tokens of the image, and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_local, self.ln_query, self.ln_context, self.ln_mlp = (nn.LayerNorm(width) for _ in range(4))
        self.local = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``[B, h·w, width]`` of a grid of ``size`` (h, w), with the image's coarse tokens ``[B, K, width]``."""
        placed = self.ln_local(tokens).transpose(1, 2).unflatten(2, size)
        tokens = tokens + self.local(placed).flatten(2).transpose(1, 2)
        heads = self.query(self.ln_query(tokens)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys, values = self.key_value(self.ln_context(context)).unflatten(2, (2, self.heads, -1)).unbind(dim=2)
        attended = F.scaled_dot_product_attention(heads, keys.transpose(1, 2), values.transpose(1, 2))
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        added: Tensor = tokens + self.mlp(self.ln_mlp(tokens))
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

    def __init__(self, *, width: int, layers: int, heads: int, neck: int, queries: int, embed_dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(channels, neck) for channels in CHANNELS)
        self.neck = nn.Conv2d(neck, width, 1)
        self.transformer = _Blocks([Block(width, heads) for _ in range(layers)])
        self.ln_post = nn.LayerNorm(width)
        self.ask = nn.Linear(width, queries)
        self.proj = nn.Linear(queries * width, embed_dim)

    def forward(
        self, units: Sequence[Tensor], window: tuple[int, int, int] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Tokens ``[B, g·g, width]`` after each block, and ``[B, embed_dim]``.

        Args:
            units: :func:`unit_levels`; the grid is that of the first.
            window: row, column and side of the part of the grid to look at, which still sees the whole image.
        """
        grid = units[0].shape[2:]
        projected = [level(unit) for level, unit in zip(self.levels, units, strict=True)]
        joined = torch.stack([_resized(own, grid) for own in projected]).sum(dim=0)
        cells = self.neck(F.gelu(joined))
        context = F.adaptive_avg_pool2d(cells, CONTEXT).flatten(2).transpose(1, 2)
        if window is not None:
            row, column, side = window
            cells = cells[:, :, row : row + side, column : column + side]
        tokens, after = cells.flatten(2).transpose(1, 2), []
        for block in self.transformer.resblocks:
            tokens = block(tokens, context, tuple(cells.shape[2:]))
            after.append(tokens)
        normed = self.ln_post(tokens)
        drawn = self.ask(normed).softmax(dim=1).transpose(1, 2) @ normed
        return after, self.proj(drawn.flatten(1))


def _resized(cells: Tensor, grid: Sequence[int]) -> Tensor:
    if cells.shape[2:] == tuple(grid):
        return cells
    return F.interpolate(cells, tuple(grid), mode="bilinear", align_corners=False)


def unit_levels(trunk: Trunk, images: Tensor) -> list[Tensor]:
    """What :class:`MiniTower` looks at: the trunk's levels, smoothed, of unit length in each cell.

    Args:
        trunk: the frozen features.
        images: ``[B, 3, H, W]`` RGB in [−1, 1].
    """
    first, *others = trunk(images)
    first = F.interpolate(first, others[0].shape[2:], mode="area")
    return [F.normalize(F.avg_pool2d(level, 3, 1, 1, count_include_pad=False), dim=1) for level in (first, *others)]


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
        sizes = {name: vision[name] for name in ("width", "layers", "heads", "neck", "queries")}
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
        units = unit_levels(self.trunk, 2 * (image * self.std + self.mean) - 1)
        after, pooled = self.visual(units)
        chosen = [after[index] for index in image_indices]
        return {
            "image_intermediates": chosen,
            "image_intermediates_prefix": [tokens.mean(dim=1, keepdim=True) for tokens in chosen],
            "image_features": pooled,
        }
