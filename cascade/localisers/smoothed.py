"""A map on a grid of cells, upsampled to the square that the network saw, and smoothed there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from cascade.frames import Size


def smoothed(cells: torch.Tensor, side: int, sigma: float, size: Size) -> NDArray[np.float32]:
    """[height, width] float32 of [grid, grid].

    Args:
        cells: one value a cell.
        side: of the square in pixels, to which cells are upsampled bilinearly without aligned corners.
        sigma: of the Gaussian, in pixels of the square; none if 0.
        size: (height, width) of the frame, to which the square is resized bilinearly unless it is its size.
    """
    square = _resized(cells, (side, side))
    if sigma:
        square = torch.from_numpy(gaussian_filter(square.numpy(), sigma=sigma))
    found: NDArray[np.float32] = _resized(square, size).numpy()
    return found


def _resized(values: torch.Tensor, size: Size) -> torch.Tensor:
    if tuple(values.shape) == tuple(size):
        return values
    return functional.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]
