"""The patch embedding of the small SAM: SAM's own projection, plus convolutions that see edges inside a patch."""

from __future__ import annotations

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import PatchEmbed
from torch import nn


class ConvPatchEmbed(PatchEmbed):  # type: ignore[misc]
    """Patches of 16 px as ``PatchEmbed`` embeds them, with the output of a small convolutional stem added.

    Early convolutions let a vision transformer learn from far fewer images (Xiao et al., "Early Convolutions Help
    Transformers See Better", 2021). ``proj`` keeps the name that it has in SAM.

    Attributes:
        stem: four strided convolutions, 16 px to one cell.
    """

    def __init__(self, width: int) -> None:
        super().__init__(kernel_size=(16, 16), stride=(16, 16), in_chans=3, embed_dim=width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 4, stride=4),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            LayerNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, grid, grid, width] of normalised inputs [B, 3, 16 * grid, 16 * grid]."""
        tokens: torch.Tensor = (self.proj(x) + self.stem(x)).permute(0, 2, 3, 1)
        return tokens
