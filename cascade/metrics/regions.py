"""Connected components of a ground-truth mask, as the weights that AUPRO needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def region_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Give every anomalous pixel the share it has of its region.

    Regions are the 8-connected components of the mask, as in the MVTec AD evaluation (Bergmann et al., IJCV 2021)
    and in ``skimage.measure.label``. Counting a region's detected pixels with these weights yields its recall, so one
    weighted sum over all regions is the sum of their recalls.

    Args:
        mask: bool [H, W], True where the pixel is anomalous.

    Returns:
        The weights, float64 [H, W]: 1 / (pixels of the component) inside a component, 0 outside, so that they sum to
        the number of regions up to rounding; and that number.

    Raises:
        TypeError: ``mask`` is not boolean.
        ValueError: ``mask`` is not two-dimensional.
    """
    if mask.dtype != np.bool_:
        raise TypeError(f"a mask has to be bool, not {mask.dtype}; compare it with the value that marks anomalies")
    if mask.ndim != 2:
        raise ValueError(f"a mask has to be [H, W], not of shape {mask.shape}; label images one by one")
    if not mask.any():
        return np.zeros(mask.shape), 0
    import cv2  # here, because a run that finds its histograms in the store labels nothing

    pixels = np.ascontiguousarray(mask).view(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    share = np.zeros(count)
    share[1:] = 1.0 / statistics[1:, cv2.CC_STAT_AREA]
    return share[labels], count - 1
