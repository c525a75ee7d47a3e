"""Decode images and masks, strictly: a damaged file is an error, never a plausible array.

Rules, the same for images and masks:

- Formats: PNG, JPEG, BMP, TIFF and WebP, told by content and not by extension. One picture per file.
- ``MAX_PIXELS`` is checked from the header, before anything is decoded.
- The EXIF orientation is ignored: arrays are as stored, which is how masks are drawn. Pillow turns a rotated TIFF
  on its own, so a TIFF whose orientation tag is not "upright" is refused.
- Alpha is dropped, not composited.
- 16-bit samples keep their high byte (``value // 256``), which is also what Pillow does to 16-bit colour. The scale
  never depends on the picture's own minimum and maximum; 12-bit data must be stretched before it comes here.
- Floating-point and 32-bit pictures are refused: their range is not known.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from cascade.storage.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 100_000_000

_TIFF_ORIENTATION = 274
_SINGLE_CHANNEL = frozenset({"1", "L", "LA"})
_PAINTED = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"})
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

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


def image_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` in pixels as the header states them; nothing is decoded.

    Raises:
        ImageError: the file is missing, is no picture of ``FORMATS``, or is larger than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        return image.height, image.width


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """The picture as uint8 ``[H, W, 3]``, RGB, rows from the top, as stored (no EXIF rotation).

    Grey becomes three equal channels; palettes are looked up; see the module for alpha and 16 bits.

    Raises:
        ImageError: missing, unreadable, truncated or oversized; the message names the file and what to do.
    """
    with _decoded(path) as image:
        if image.mode in _SIXTEEN_BIT or image.mode == "I":
            grey = (_sixteen_bit(path, image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return _rgb(path, image)


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """The mask as bool ``[H, W]``: True where the stored value is above 0, in any colour channel.

    Raises:
        ImageError: as :func:`read_image`.
    """
    return read_mask_codes(path) > 0


def read_mask_codes(path: Path) -> npt.NDArray[np.int32]:
    """What a mask holds before it is binarised: int32 ``[H, W]``, 0 for the background.

    Grey masks keep their values (VisA stores one id per kind of defect). Coloured ones, palettes included, give
    ``red << 16 | green << 8 | blue`` of the displayed colour, so that black is 0 whatever its palette index.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _decoded(path) as image:
        if image.mode in _SIXTEEN_BIT or image.mode == "I":
            return _sixteen_bit(path, image)
        if image.mode in _SINGLE_CHANNEL:
            return np.asarray(image if image.mode != "LA" else image.getchannel("L")).astype(np.int32)
        channels = _rgb(path, image).astype(np.int32)
        if (channels[..., 0] == channels[..., 1]).all() and (channels[..., 0] == channels[..., 2]).all():
            return channels[..., 0]
        return (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]


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


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    if not path.is_file():
        raise ImageError("missing", path, "no such file; restore it or take it out of the dataset")
    try:
        with _warnings_lock, warnings.catch_warnings():
            # Pillow warns at 89 megapixels; the bound that counts is MAX_PIXELS, checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
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
        _require_one_upright_picture(path, image)
        yield image


@contextmanager
def _decoded(path: Path) -> Iterator[ImageFile.ImageFile]:
    with _opened(path) as image:
        # Any library in the process may have switched this on, and a cut file would come back with a grey tail.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            image.load()
        except Image.DecompressionBombError:
            raise _oversized(path) from None
        except Exception as error:  # as above: decoders raise OSError, SyntaxError, ValueError, struct.error ...
            raise ImageError("truncated", path, f"truncated or damaged ({error}); copy it again") from error
        yield image


def _oversized(path: Path, size: str | None = None) -> ImageError:
    found = f"{size} is" if size else "its header claims"
    megapixels = MAX_PIXELS // 1_000_000
    return ImageError("oversized", path, f"{found} more than {megapixels} megapixels; cut it into tiles")


def _require_one_upright_picture(path: Path, image: ImageFile.ImageFile) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:
        raise ImageError("unreadable", path, f"its header is damaged ({error}); replace it") from error
    # A phone's JPEG may carry previews as further frames (format MPO): the first one is the picture.
    if frames > 1 and image.format != "MPO":
        raise ImageError("unreadable", path, f"holds {frames} pictures; save each as a file of its own")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_TIFF_ORIENTATION, 1) != 1:
        raise ImageError("unreadable", path, "a TIFF that is not stored upright; save it with orientation 1")


def _rgb(path: Path, image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    if image.mode not in _SINGLE_CHANNEL | _PAINTED:
        raise ImageError("unreadable", path, f"pixel type {image.mode} has no rule; save it with 8 bits")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _sixteen_bit(path: Path, image: ImageFile.ImageFile) -> npt.NDArray[np.int32]:
    values = np.asarray(image).astype(np.int32)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise ImageError("unreadable", path, "32-bit values beyond 16 bits; save it with 8 or 16 bits")
    return values
