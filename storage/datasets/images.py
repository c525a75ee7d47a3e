"""Decode images and masks, strictly: a damaged file is an error, never a plausible array.

Rules, the same for images and masks:

- Formats: PNG, JPEG, BMP, TIFF and WebP, told by content and not by extension. One picture per file.
- ``MAX_PIXELS`` is checked from the header, before anything is decoded.
- A picture whose EXIF orientation is not "upright" is turned, as every viewer turns it; sizes are those after turning.
- Alpha is dropped, not composited.
- More than 8 bits: see :mod:`cascade.storage.datasets.deep`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from cascade.storage.datasets.deep import DEEP_GREY, WHITE_OF_16_BITS, in_8_bits, is_deep, samples
from cascade.storage.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 100_000_000

_Sample = TypeVar("_Sample", bound=np.generic)

_ORIENTATION = 274
_SINGLE_CHANNEL = frozenset({"1", "L", "LA"})
_PAINTED = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"})

# warnings.catch_warnings swaps process-wide state, so threads take turns around the header only.
_warnings_lock = threading.Lock()


class ImageError(DataError):
    """A file that cannot be used as an image or a mask.

    Attributes:
        kind: ``missing``, ``unreadable``, ``truncated`` or ``oversized``.
        reason: the message without the path.
    """

    def __init__(self, kind: str, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before anything is decoded.

    Attributes:
        height: pixels, after turning.
        width: pixels, after turning.
        orientation: EXIF, 1 to 8; 1 is upright.
        deep: samples have more than 8 bits.
        fractions: samples are floating-point numbers.
    """

    height: int
    width: int
    orientation: int
    deep: bool
    fractions: bool


def is_image(name: str) -> bool:
    """Whether a file name is an image's; hidden files (``._x.png`` of macOS) are not."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def read_header(path: Path) -> Header:
    """The header alone; nothing is decoded.

    Raises:
        ImageError: the file is missing, is no picture of ``FORMATS``, or is larger than ``MAX_PIXELS``.
    """
    with _opened(path) as (_, header):
        return header


def image_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` in pixels, as :func:`read_image` will return it. Raises as :func:`read_header`."""
    header = read_header(path)
    return header.height, header.width


def read_image(path: Path, white: float | None = None) -> npt.NDArray[np.uint8]:
    """The picture as uint8 ``[H, W, 3]``, RGB, rows from the top, upright.

    Grey becomes three equal channels; palettes are looked up; see the module for alpha.

    Args:
        path: of the file.
        white: the value that becomes 255, where there are more than 8 bits; by default the largest of 16 bits.

    Raises:
        ImageError: missing, unreadable, truncated or oversized, or of fractions without a white; the message names the
            file and what to do.
    """
    with _decoded(path) as (image, header):
        if header.fractions and white is None:
            raise ImageError("unreadable", path, "holds fractions; say which value is white")
        if header.deep:
            eight = in_8_bits(_samples(path, image), WHITE_OF_16_BITS if white is None else white)
        else:
            eight = _rgb(path, image)
        upright = _upright(eight, image, header)
    return np.repeat(upright[:, :, None], 3, axis=2) if upright.ndim == 2 else upright


def largest_value(path: Path) -> float:
    """The largest sample of a picture with more than 8 bits. Raises as :func:`read_image`."""
    with _decoded(path) as (image, _):
        return float(_samples(path, image).max())


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """The mask as bool ``[H, W]``, upright: True where the stored value is above 0, in any colour channel.

    A folder of masks is the union of the images in it (MVTec LOCO).

    Raises:
        ImageError: as :func:`read_image`, or the masks of a folder have different sizes.
    """
    parts: list[npt.NDArray[np.bool_]] = [read_mask_codes(each) > 0 for each in mask_files(path)]
    if len({part.shape for part in parts}) > 1:
        raise ImageError("unreadable", path, "holds masks of different sizes for one image; correct them")
    return united(parts)


def united(masks: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """What any of some masks [H, W] marks."""
    whole = masks[0].copy()
    for mask in masks[1:]:
        whole |= mask
    return whole


def mask_files(path: Path) -> list[Path]:
    """The files of a mask: itself, or the images of its folder, sorted. Raises ``ImageError`` if there are none."""
    if not path.is_dir():
        return [path]
    found = sorted(child for child in path.iterdir() if is_image(child.name))
    if not found:
        raise ImageError("missing", path, "a folder without a mask; restore it or take its image out of the dataset")
    return found


def read_mask_codes(path: Path) -> npt.NDArray[np.int32]:
    """What a mask file holds before it is binarised: int32 ``[H, W]``, 0 for the background.

    Grey masks keep their values (VisA stores one id per kind of defect). Coloured ones, palettes included, give
    ``red << 16 | green << 8 | blue`` of the displayed colour, so that black is 0 whatever its palette index.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _decoded(path) as (image, header):
        return _upright(_mask_codes(path, image), image, header)


def mask_in_frame(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The ground truth in another frame: bool ``[height, width]`` for ``size = (height, width)``.

    The rule of APRIL-GAN's evaluation (``ByChelsea/VAND-APRIL-GAN``, ``dataset.py`` and ``test.py``): the mask as 0
    and 255, Pillow's bilinear resize (antialiased when it shrinks), then ``value / 255 > 0.5``. It thins or removes
    defects of one or two pixels; published numbers at 518 x 518 include that. The identity when the size is equal.
    """
    if mask.shape == size:
        return mask
    height, width = size
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127


def _mask_codes(path: Path, image: Image.Image) -> npt.NDArray[np.int32]:
    if image.mode == "F":
        raise ImageError("unreadable", path, "a mask of fractions; threshold it and save it with 8 bits")
    if image.mode in DEEP_GREY:
        return _samples(path, image).astype(np.int32)
    if image.mode in _SINGLE_CHANNEL:
        return np.asarray(image if image.mode != "LA" else image.getchannel("L")).astype(np.int32)
    channels = _rgb(path, image).astype(np.int32)
    if (channels[..., 0] == channels[..., 1]).all() and (channels[..., 0] == channels[..., 2]).all():
        return channels[..., 0]
    return (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[ImageFile.ImageFile, Header]]:
    if not path.is_file():
        raise ImageError("missing", path, "no such file; restore it or take it out of the dataset")
    try:
        with _warnings_lock, warnings.catch_warnings():
            # Pillow warns at 89 megapixels and of damaged EXIF; the bound that counts is MAX_PIXELS, checked below.
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=FORMATS)
            orientation = _orientation(image)
    except Image.DecompressionBombError:
        raise _oversized(path) from None
    except PermissionError:
        raise ImageError("unreadable", path, "may not be read; correct its permissions") from None
    except UnidentifiedImageError:
        expected = ", ".join(FORMATS)
        raise ImageError("unreadable", path, f"not a readable {expected} file; replace or convert it") from None
    except Exception as error:  # hostile headers surface as almost any type from Pillow's plugins
        raise ImageError("unreadable", path, f"its header is damaged ({error}); replace it") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise _oversized(path, f"{image.width}x{image.height}")
        _require_one_picture(path, image)
        yield image, _header(image, orientation)


@contextmanager
def _decoded(path: Path) -> Iterator[tuple[ImageFile.ImageFile, Header]]:
    """The picture, decoded whole, as stored."""
    with _opened(path) as (image, header):
        # Any library in the process may have switched this on, and a cut file would come back with a grey tail.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            image.load()
        except Image.DecompressionBombError:
            raise _oversized(path) from None
        except Exception as error:  # as above: decoders raise OSError, SyntaxError, ValueError, struct.error ...
            raise ImageError("truncated", path, f"truncated or damaged ({error}); copy it again") from error
        yield image, header


def _oversized(path: Path, size: str | None = None) -> ImageError:
    found = f"{size} is" if size else "its header claims"
    megapixels = MAX_PIXELS // 1_000_000
    return ImageError("oversized", path, f"{found} more than {megapixels} megapixels; cut it into tiles")


def _require_one_picture(path: Path, image: ImageFile.ImageFile) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:
        raise ImageError("unreadable", path, f"its header is damaged ({error}); replace it") from error
    # A phone's JPEG may carry previews as further frames (format MPO): the first one is the picture.
    if frames > 1 and image.format != "MPO":
        raise ImageError("unreadable", path, f"holds {frames} pictures; save each as a file of its own")


def _header(image: ImageFile.ImageFile, orientation: int) -> Header:
    height, width = image.height, image.width
    if orientation >= 5 and image.format != "TIFF":  # of a TIFF, Pillow gives the size after turning
        height, width = width, height
    return Header(height, width, orientation, is_deep(image), image.mode == "F")


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read: viewers show it as stored then."""
    try:
        exif = image.getexif() if image.format != "PNG" else Image.Exif()
        if image.format == "PNG":  # of which getexif would decode the pixels
            exif.load(image.info.get("exif", b""))
        stored = exif.get(_ORIENTATION)
    except Exception:  # damaged EXIF surfaces as almost any type
        return 1
    return stored if isinstance(stored, int) and 1 <= stored <= 8 else 1


def _upright(array: npt.NDArray[_Sample], image: ImageFile.ImageFile, header: Header) -> npt.NDArray[_Sample]:
    """``[H, W]`` or ``[H, W, 3]`` as stored, turned; Pillow and OpenCV turn a TIFF on their own."""
    turn = 1 if image.format == "TIFF" else header.orientation
    if turn >= 5:
        array = array.swapaxes(0, 1)
    rows = -1 if turn in (3, 4, 7, 8) else 1
    columns = -1 if turn in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(array[::rows, ::columns])


def _rgb(path: Path, image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode not in _SINGLE_CHANNEL | _PAINTED:
        raise ImageError("unreadable", path, f"pixel type {image.mode} has no rule; save it with 8 bits")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _samples(path: Path, image: Image.Image) -> npt.NDArray[Any]:
    try:
        return samples(path, image)
    except ValueError as error:
        raise ImageError("unreadable", path, str(error)) from error
