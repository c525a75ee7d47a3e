"""Which mask belongs to which image, and what a mask may look like."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade.storage.datasets.images import mask_in_frame
from cascade.storage.datasets.problems import Problem, Severity

MASK_FOLDERS = frozenset({"masks", "mask", "ground_truth", "groundtruth", "gt", "label", "labels"})
MASK_ENDINGS = ("_mask", "_gt", "_label")
LARGE = 0.9
"""Share of the image beyond which a mask is held to be inverted."""
_FRAMED = 0.95
"""Share of the image's border beyond which a mask is held to be inverted."""


def spelled(path: str) -> str:
    """``path`` for comparison: case and the two forms of accents in Unicode (NFC, NFD) do not matter."""
    return unicodedata.normalize("NFC", path).casefold()


def is_mask_folder(name: str) -> bool:
    """Whether a folder of this name holds masks, in any case."""
    return name.casefold() in MASK_FOLDERS


def stem_of(path: str) -> str:
    """``path`` without its extension, for comparison."""
    folder, slash, name = path.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return spelled(f"{folder}{slash}{stem if dot and stem else name}")


def image_stem(mask: str) -> str:
    """The stem of the image that a mask with one of ``MASK_ENDINGS`` is for; of any other file its own stem."""
    stem = stem_of(mask)
    return next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)


class MaskIndex:
    """The masks of a dataset or category, and who took them.

    A mask has the image's path below the mask folder, with any extension, and one of ``MASK_ENDINGS`` or not; or it is
    a folder of that name, whose masks are united.
    """

    def __init__(self, masks: Mapping[str, str]) -> None:
        """``masks`` are paths of mask files by their paths in the frame that images are looked up in."""
        self._files: defaultdict[str, list[str]] = defaultdict(list)
        self._folders: defaultdict[str, set[str]] = defaultdict(set)
        self._all = tuple(masks.values())
        self._takers: defaultdict[str, list[str]] = defaultdict(list)
        self._problems: list[Problem] = []
        for inner, path in masks.items():
            self._files[stem_of(inner)].append(path)
            folder, _, _ = inner.rpartition("/")
            if folder:
                self._folders[spelled(folder)].add(path.rpartition("/")[0])

    def take(self, inner: str, image: str) -> str | None:
        """The mask of ``image``, whose path in the frame of the masks is ``inner``; None where there is none."""
        stem = stem_of(inner)
        files = [path for ending in ("", *MASK_ENDINGS) for path in self._files.get(stem + ending, ())]
        found = [*files, *sorted(self._folders.get(stem, ()))]
        for path in found:
            self._takers[path].append(image)
        if len(found) > 1:
            message = f"has {len(found)} masks, {' and '.join(found)}; keep the right one"
            self._problems.append(Problem("error", "two-masks", image, message, image))
        return found[0] if found else None

    def problems(self, *, orphan: Severity) -> list[Problem]:
        """What is not clear once every image has asked; ``orphan`` is the severity of a mask that nobody took."""
        shared = [
            Problem("error", "shared-mask", mask, f"is the mask of {' and of '.join(takers)}; keep one of these images")
            for mask, takers in self._takers.items()
            if len(takers) > 1
        ]
        orphans = [
            Problem(orphan, "orphan-mask", path, "no image goes with this mask; restore the image, or remove the mask")
            for path in self._all
            if path not in self._takers and path.rpartition("/")[0] not in self._takers
        ]
        return [*self._problems, *shared, *orphans]


@dataclass(frozen=True)
class Marked:
    """How much a mask marks, as shares of the image and of the image's border."""

    share: float
    border: float

    @classmethod
    def of(cls, mask: npt.NDArray[np.bool_]) -> Marked:
        """Of a mask [H, W]."""
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        return cls(float(mask.mean()), float(border.mean()))

    def looks_inverted(self) -> bool:
        """Whether nearly all of the image, or nearly all of its border, is marked."""
        return self.share > LARGE or self.border > _FRAMED


def vanished(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> tuple[int, int]:
    """How many connected parts of ``mask`` leave no pixel in a frame of ``size`` (height, width), and of how many."""
    from scipy import ndimage

    parts, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    if mask.shape == size or not count:
        return 0, count
    rows, columns = (np.arange(full) * own // full for full, own in zip(mask.shape, size, strict=True))
    kept = mask_in_frame(mask, size)[np.ix_(rows, columns)]  # on the grid of the mask again
    return count - np.unique(parts[kept & mask]).size, count


def beside(images: Iterable[str]) -> dict[str, str]:
    """Masks beside their images, as DAGM and KolektorSDD have them: the image's path without extension by mask.

    A mask has one of ``MASK_ENDINGS`` and lies in the folder of an image of that name, or in a mask folder below it.
    """
    paths = tuple(images)
    stems = {stem_of(path) for path in paths}
    found = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        above, _, last = folder.rpartition("/")
        own = image_stem(name)
        if is_mask_folder(last):
            folder = above
        elif own == stem_of(name):
            continue
        stem = f"{spelled(folder)}/{own}" if folder else own
        if stem in stems:
            found[path] = stem
    return found
