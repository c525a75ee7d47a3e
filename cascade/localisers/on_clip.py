"""What localisers share that show a CLIP tower squares of a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.protocol import Localiser, Networks

if TYPE_CHECKING:
    import torch


class OnClip(Localiser):
    """The input, and the grid of the first side."""

    def inputs(self, squares: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """CLIP's normalisation, [3, side, side] float32 for each side."""
        from cascade.backbones.clip.backbone import image_tensor

        return [image_tensor(square) for square in squares]

    def grid(self, networks: Networks) -> int:
        """Cells along a side of the first square."""
        return int(self.sides[0] // networks.clip_config["vision_cfg"]["patch_size"])
