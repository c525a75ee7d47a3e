"""The image encoder of the small SAM: a frozen trunk of photographs, and a light pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cascade.backbones.features.efficientnet import CHANNELS, STRIDES, Trunk

CELL = 8
"""Pixels per side of a cell of the embedding."""

_SPREADS = (8.0, 8.0, 6.0, 2.5)
"""Standard deviation of the trunk's levels on photographs; each is divided by its own."""


class Block(nn.Module):
    """A depthwise convolution and a perceptron, added to what came in, as in ConvNeXt; channels last."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, cells: Tensor) -> Tensor:
        """``[B, H, W, width]`` of cells of that shape."""
        local = self.local(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        added: Tensor = cells + self.mlp(self.norm(local))
        return added


class PyramidEncoder(nn.Module):
    """From an input in [−1, 1] to an embedding with cells of 8 px.

    The levels of the trunk are projected to one width and summed from coarse to fine, with blocks at strides 16 and 8.
    The four cells of the finest level that share a cell of the embedding lie in its channels, so that a mask can
    follow borders inside it. There are no positions: an input may have any side that is a multiple of 32.

    Args:
        img_size: side of the square input in pixels.
        width: channels of the embedding.
        trunk: the weights of EfficientNet-Lite0; random ones if ``None``.
    """

    def __init__(self, img_size: int, width: int, trunk: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.img_size = img_size
        self.trunk = Trunk(trunk)
        self.laterals = nn.ModuleList(
            nn.Linear(channels * max(1, CELL // stride) ** 2, width)
            for channels, stride in zip(CHANNELS, STRIDES, strict=True)
        )
        self.coarse = nn.Sequential(*(Block(width, 5) for _ in range(2)))
        self.fine = nn.Sequential(*(Block(width, 5) for _ in range(2)))
        self.neck = nn.LayerNorm(width)

    def levels(self, inputs: Tensor) -> list[Tensor]:
        """The frozen levels with channels last, ``[B, h, w, channels]`` at 8, 8, 16 and 32 px, of about unit spread."""
        finest, *others = (level / spread for level, spread in zip(self.trunk(inputs), _SPREADS, strict=True))
        return [each.permute(0, 2, 3, 1) for each in (F.pixel_unshuffle(finest, CELL // STRIDES[0]), *others)]

    def embedded(self, levels: Sequence[Tensor]) -> Tensor:
        """``[B, width, H / 8, W / 8]`` of what :meth:`levels` returns."""
        inner, fine, middle, coarse = (lateral(level) for lateral, level in zip(self.laterals, levels, strict=True))
        cells = self.coarse(middle + _doubled(coarse))
        cells = self.fine(inner + fine + _doubled(cells))
        embedding: Tensor = self.neck(cells).permute(0, 3, 1, 2)
        return embedding

    def forward(self, inputs: Tensor) -> Tensor:
        """The embedding ``[B, width, H / 8, W / 8]`` of inputs ``[B, 3, H, W]`` in [−1, 1]."""
        return self.embedded(self.levels(inputs))


def _doubled(cells: Tensor) -> Tensor:
    """Twice as many cells ``[B, 2 h, 2 w, C]``, interpolated."""
    planes = cells.permute(0, 3, 1, 2)
    return F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
