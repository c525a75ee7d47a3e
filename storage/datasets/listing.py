"""What every layout reader produces, and the words of folders that they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from cascade.storage.datasets.images import ImageError, read_mask
from cascade.storage.datasets.manifest import Split
from cascade.storage.datasets.problems import Problem

UNNAMED_DEFECT = "bad"
"""Kind of a defective image whose layout names none; also what VisA's own preparation script calls it."""

_NORMAL_FOLDERS = frozenset({"good", "ok", "normal"})


@dataclass(frozen=True)
class Entry:
    """An image as its layout describes it, before any file is opened.

    The fields are those of :class:`~cascade.storage.datasets.manifest.ImageRecord`. ``mask_required`` says that a
    defective image of this layout without a mask is an error.
    """

    path: str
    category: str
    split: Split
    defect: str
    label: int | None
    mask_path: str | None = None
    mask_required: bool = False


@dataclass(frozen=True)
class Listing:
    """What a layout reader found.

    Attributes:
        root: absolute folder that the paths are relative to.
        layout: name of the reader.
        entries: one per image.
        problems: those that only the layout can tell.
        understood: files that the reader knows to be images or masks, whether it uses them or not.
        masks_hold_ids: masks may hold several positive values, one per kind of defect.
        follow_links: links may lead out of the root.
    """

    root: Path
    layout: str
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    understood: frozenset[str] = frozenset()
    masks_hold_ids: bool = False
    follow_links: bool = False
    _inside: dict[str, bool] = field(default_factory=dict, init=False, compare=False, repr=False)

    def leaves(self, path: str) -> Literal["escape", "link"] | None:
        """How ``path`` leaves the root: as it is written, or by a link that may not be followed; None if it does not.

        A file that is no link is where its folder is.
        """
        if not is_plain(path):
            return "escape"
        if self.follow_links:
            return None
        folder, _, name = path.rpartition("/")
        if not folder or not name or (self.root / path).is_symlink():
            return None if _is_inside(self.root, path) else "link"
        if folder not in self._inside:
            self._inside[folder] = _is_inside(self.root, folder)
        return None if self._inside[folder] else "link"


def names_normal(folder: str) -> bool:
    """Whether a folder of this name holds normal images: ``good``, ``ok`` (BTAD) or ``normal``, in any case."""
    return folder.casefold() in _NORMAL_FOLDERS


def label_from_mask(root: Path, mask_path: str) -> int | None:
    """1 when the mask marks any pixel, 0 when none, None when it cannot be read (which the checks report)."""
    if not is_plain(mask_path):
        return None
    try:
        return int(read_mask(root / mask_path).any())
    except ImageError:
        return None


def named_or_marked(
    root: Path, kind: str | None, mask_path: str | None, *, named: bool, masked: bool
) -> tuple[int | None, str]:
    """Label and defect of an image of one's own.

    Args:
        root: of the dataset.
        kind: the first sub-folder that the image lies in, or None.
        mask_path: of its mask, or None.
        named: sub-folders name the kind of defect, as one of them is called ``good``, ``ok`` or ``normal``.
        masked: there are masks, so that an image without one is normal.
    """
    label: int | None = None
    if named and kind is not None:
        label = 0 if names_normal(kind) else 1
    elif masked:
        label = 0 if mask_path is None else label_from_mask(root, mask_path)
    if label is None:
        return None, ""
    return label, (kind or UNNAMED_DEFECT) if label else "good"


def any_normal(inner: Iterable[str]) -> bool:
    """Whether any of these paths begins with a folder of normal images."""
    return any("/" in path and names_normal(path.partition("/")[0]) for path in inner)


def is_plain(path: str) -> bool:
    """Whether ``path`` is written as a relative path to something below."""
    pure = PurePosixPath(path)
    return not (pure.is_absolute() or PureWindowsPath(path).drive or ".." in pure.parts or "\0" in path)


def _is_inside(root: Path, path: str) -> bool:
    try:
        return (root / path).resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links that go in a circle
        return False
