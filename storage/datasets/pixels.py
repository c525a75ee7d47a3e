"""A look at every pixel of an image and its mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cascade.storage.datasets.images import (
    Header,
    ImageError,
    largest_value,
    mask_files,
    read_image,
    read_mask_codes,
    united,
)
from cascade.storage.datasets.listing import Entry, Listing
from cascade.storage.datasets.masks import Marked, vanished

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pixels:
    """What the pixels of a sound image and its mask are like; of all options, only the frame matters.

    Attributes:
        peak: the largest sample of an image with more than 8 bits; None for others.
        marked: how much the mask marks; None without one.
        colours: how many colours the image has, if 1 or 2; None for more.
        parts: connected parts of the mask, if the image is defective and a frame is given.
        lost: how many of them leave no pixel in the frame.
    """

    peak: float | None = None
    marked: Marked | None = None
    colours: int | None = None
    parts: int = 0
    lost: int = 0


class Found(Exception):
    """Ends the look at an entry: its other checks would only repeat this error."""

    def __init__(self, kind: str, path: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.path, self.message = kind, path, message


def look_at_pixels(listing: Listing, entry: Entry, header: Header, frame: int | None) -> Pixels:
    """What an image and its mask are like. Raises ``Found`` for what is wrong with them."""
    image = listing.root / entry.path
    peak, colours = None, None
    if header.deep:
        peak = readable(largest_value, image, entry.path, "image")
        colours = 1 if peak == 0 else None
    else:
        colours = _colours(readable(read_image, image, entry.path, "image"))
    if entry.mask_path is None:
        return Pixels(peak, None, colours)
    mask = united([_mask_pixels(listing, own) for own in mask_parts(listing, entry.mask_path)])
    if entry.label == 1 and not mask.any():
        raise Found("empty-mask", entry.mask_path, f"marks nothing, but {entry.path} is defective; redraw it")
    if entry.label == 0 and mask.any():
        message = f"marks a defect, but {entry.path} is normal; correct the label"
        raise Found("marked-normal", entry.mask_path, message)
    lost, parts = (0, 0) if frame is None or entry.label != 1 else vanished(mask, (frame, frame))
    return Pixels(peak, Marked.of(mask), colours, parts, lost)


def readable(read: Callable[[Path], _T], file: Path, path: str, role: str) -> _T:
    """What ``read`` makes of an image or mask, its ``role``. Raises ``Found`` if it cannot be read."""
    try:
        return read(file)
    except ImageError as error:
        raise Found(f"{error.kind}-{role}", path, error.reason) from error


def mask_parts(listing: Listing, path: str) -> list[str]:
    """The mask's file, or those of its folder, relative to the root."""
    whole = listing.root / path
    return [path if each == whole else f"{path}/{each.name}" for each in readable(mask_files, whole, path, "mask")]


def _colours(image: npt.NDArray[np.uint8]) -> int | None:
    """1 or 2 if an image [H, W, 3] has no more colours."""
    for step in (16, 1):  # most images show at once that they have more
        part = image[::step, ::step].astype(np.int32)
        found = np.unique(part[..., 0] << 16 | part[..., 1] << 8 | part[..., 2]).size
        if found > 2:
            return None
    return found


def _mask_pixels(listing: Listing, path: str) -> npt.NDArray[np.bool_]:
    codes = readable(read_mask_codes, listing.root / path, path, "mask")
    values = np.unique(codes)
    if values.size > 2 and not listing.masks_hold_ids:
        message = f"{values.size} different values; threshold it so that it holds 0 and one other value"
        raise Found("mask-values", path, message)
    if values.size > 1 and values[0] > 0:
        raise Found("mask-background", path, "no pixel is 0 (black), so all would count as defect; make good ones 0")
    return codes > 0
