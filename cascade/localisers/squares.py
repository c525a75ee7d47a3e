"""A photograph as the square that a localiser is shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def squared(photograph: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A photograph [H, W, 3] in RGB as [side, side, 3]: bicubic, aspect not kept.

    The same as APRIL-GAN's transform, whose ``Resize`` takes the square size.
    """
    return np.array(Image.fromarray(photograph).resize((side, side), Image.Resampling.BICUBIC))
