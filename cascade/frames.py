"""Coordinate frames, and the one affine map between each two of them.

Four frames occur. All coordinates are (x, y); all sizes are (height, width).

- *image*: pixels of the photograph as it is on disk. Point prompts are stored in it.
- *prompt frame*: the frame in which the anomaly map is thresholded and the box is taken (A1), by default 518 x 518.
- *input*: SAM's square input of ``side`` pixels. The image fills ``size`` of it from the top left; the rest is padding.
- *grid*: SAM's feature grid over the input, 64 x 64 for the published models.

A point is scaled by the ratio of the two sizes, as SAM itself does (``ResizeLongestSide.apply_coords``); the half pixel
to the pixel's centre is added by SAM's prompt encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Size = tuple[int, int]
Box = NDArray[np.float64]


@dataclass(frozen=True)
class InputFrame:
    """Where an image lies in SAM's input: the top left ``size`` (height, width) of a square of ``side`` pixels."""

    side: int
    size: Size


def scale_points(points: NDArray[np.float64], source: Size, target: Size) -> NDArray[np.float64]:
    """Points [n, 2] (x, y) of a frame of ``source`` (height, width), in a frame of ``target``; float64."""
    ratio = np.array([target[1] / source[1], target[0] / source[0]])
    scaled: NDArray[np.float64] = np.asarray(points, dtype=np.float64).reshape(-1, 2) * ratio
    return scaled


def logits_in_frame(logits: torch.Tensor, frame: InputFrame, size: Size) -> torch.Tensor:
    """SAM's low-resolution logits, bilinearly in a frame of ``size`` that spans the image.

    The same steps as ``Sam.postprocess_masks``: to the input's square, padding cut off, to ``size``;
    ``align_corners=False`` throughout.

    Args:
        logits: [B, M, h, w], float.
        frame: where the image lies in the input.
        size: (height, width) wanted.

    Returns:
        [B, M, height, width], the dtype of ``logits``.
    """
    square = functional.interpolate(logits, (frame.side, frame.side), mode="bilinear", align_corners=False)
    inside = square[..., : frame.size[0], : frame.size[1]]
    if frame.size == size:  # every weight would be one
        return inside
    return functional.interpolate(inside, size, mode="bilinear", align_corners=False)


def grid_coverage(values: NDArray[Any], frame: InputFrame, grid: int) -> NDArray[np.float64]:
    """Mean of a mask or map over each grid cell, by exact area; padding counts as zero.

    Args:
        values: [H, W] in a frame that spans the image; a mask, or weights in [0, 1].
        frame: where the image lies in the input.
        grid: cells along a side of the feature grid.

    Returns:
        [grid, grid] in [0, 1].
    """
    rows = _overlap(values.shape[0], frame.size[0], frame.side, grid)
    columns = _overlap(values.shape[1], frame.size[1], frame.side, grid)
    coverage: NDArray[np.float64] = rows @ values.astype(np.float64) @ columns.T
    return coverage


def sample_grid(values: torch.Tensor, mask: NDArray[np.bool_], frame: InputFrame) -> torch.Tensor:
    """Grid values interpolated bilinearly at the pixel centres of a mask.

    Equal to upsampling the grid with ``align_corners=False`` and reading the pixels, without making the large array.

    Args:
        values: [C, grid, grid], float.
        mask: [H, W] in a frame that spans the image.
        frame: where the image lies in the input.

    Returns:
        [C, n], the mask's pixels in row-major order.
    """
    rows, columns = np.nonzero(mask)
    x = (columns + 0.5) / mask.shape[1] * frame.size[1] / frame.side * 2 - 1
    y = (rows + 0.5) / mask.shape[0] * frame.size[0] / frame.side * 2 - 1
    where = torch.from_numpy(np.stack([x, y], axis=-1)).to(values.device, values.dtype)[None, None]
    sampled = functional.grid_sample(values[None], where, padding_mode="border", align_corners=False)
    return sampled[0, :, 0]


def mask_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box [4] (x0, y0, x1, y1) around a mask's pixels, inclusive pixel indices (PerSAM's reading)."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)


def boxes_above_zero(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`mask_box` of every mask ``logits > 0`` of a batch, on its device and without waiting for it.

    Args:
        logits: [..., H, W], float without NaN.

    Returns:
        Boxes [..., 4] float64, and [...] bool: whether the mask has a pixel at all. The box of an empty mask means
        nothing.
    """
    ends = []
    for largest in (logits.amax(dim=-2), logits.amax(dim=-1)):
        occupied = (largest > 0).to(torch.uint8)
        ends.append((occupied.argmax(dim=-1), occupied.shape[-1] - 1 - occupied.flip(-1).argmax(dim=-1)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], dim=-1).double(), (largest > 0).any(dim=-1)


def _overlap(pixels: int, filled: int, side: int, grid: int) -> NDArray[np.float64]:
    """[grid, pixels]: the share of each grid cell that each pixel covers along one axis."""
    cell = side / grid
    pixel = filled / pixels
    starts = np.arange(grid)[:, None] * cell
    edges = np.arange(pixels)[None] * pixel
    shared = np.minimum(starts + cell, edges + pixel) - np.maximum(starts, edges)
    overlap: NDArray[np.float64] = np.clip(shared, 0.0, None) / cell
    return overlap
