"""Pictures with more than 8 bits a sample: their values, and how these become 8 bits.

A picture is never stretched by its own minimum and maximum. One value, the white, is 255 for all pictures of a
dataset: ``dataset.full_scale`` where it is given, else the smallest of ``WHITES`` that holds every integer picture of
the dataset (12 bits in files of 16 are read from 0 to 4095). Pictures of fractions have a white of their own: 1 if the
largest of them is between 1/8 and 1, else the smallest power of two that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

DEEP_GREY = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
WHITES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16, 20, 24, 31))
"""The largest values of the depths that cameras have, and of files beyond."""
WHITE_OF_16_BITS = 65535
ROUNDING = 1e-3
"""By how much fractions may be beyond their white, as a share of it: what a resize or a colour transform leaves."""


def is_deep(image: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has more than 8 bits; Pillow hides it for colours."""
    return image.mode in DEEP_GREY or any(";16" in str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]


def samples(path: Path, image: Image.Image) -> npt.NDArray[Any]:
    """The samples of a decoded deep picture: ``[H, W]`` or RGB ``[H, W, 3]``, integers or float32, not turned.

    Raises:
        ValueError: with the reason; there is no rule for such samples.
    """
    values = np.asarray(image) if image.mode in DEEP_GREY else _colours(path)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("has negative or infinite values, or some that are no numbers; save it with 8 or 16 bits")
    return values


def white_of(peaks: Iterable[float], *, fractions: bool) -> float:
    """The white for pictures whose largest values are ``peaks``; not empty."""
    peak = max(peaks)
    if fractions:
        rounded = peak / (1 + ROUNDING)
        return 1.0 if rounded <= 0 or 1 / 8 < rounded <= 1 else 2.0 ** math.ceil(math.log2(rounded))
    return float(next((white for white in WHITES if peak <= white), peak))


def in_8_bits(values: npt.NDArray[Any], white: float) -> npt.NDArray[np.uint8]:
    """Samples of 0 to ``white`` as uint8: integers in 256 equal steps, fractions rounded; what is beyond is 255."""
    if np.issubdtype(values.dtype, np.floating):
        return np.clip(np.rint(values.astype(np.float64) * (255 / white)), 0, 255).astype(np.uint8)
    return np.minimum(values.astype(np.int64) * 256 // (int(white) + 1), 255).astype(np.uint8)


def _colours(path: Path) -> npt.NDArray[Any]:
    """Pillow hands out the high bytes of such colours only."""
    import cv2  # here, because few datasets need it

    read = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if read is None or read.ndim != 3 or read.dtype != np.uint16:
        raise ValueError("has colours of 16 bits in a form without a rule; save it with 8 bits")
    return np.ascontiguousarray(read[..., 2::-1])
