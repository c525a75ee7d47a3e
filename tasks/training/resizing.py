"""Crops of any shape, scaled to the square that a network takes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def resized(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A uint8 picture ``[H, W]`` or ``[H, W, 3]`` as ``[side, side]``.

    Pixels are averaged where the picture shrinks. OpenCV's area mode repeats pixels where it grows, hence linear there.
    """
    shrinks = min(picture.shape[:2]) >= side
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (side, side), interpolation=mode), np.uint8)
