"""What every layout reader produces, and the file listing they share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from cascade.storage.datasets.images import IMAGE_SUFFIXES
from cascade.storage.datasets.manifest import Split

UNNAMED_DEFECT = "bad"
"""Kind of a defective image whose layout names none; also what VisA's own preparation script calls it."""

_NORMAL_FOLDERS = frozenset({"good", "ok", "normal"})


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a dataset.

    Attributes:
        severity: an ``error`` would make results wrong and stops a run; a ``warning`` would make them surprising.
        kind: short name of the rule, see :mod:`cascade.storage.datasets.checks`.
        path: of the file, relative to the dataset's root, or a category's name where the rule is about one.
        message: what is wrong and what to do, without the path.
    """

    severity: Literal["error", "warning"]
    kind: str
    path: str
    message: str


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
        entries: one per image.
        problems: those that only the layout can tell.
        masks_hold_ids: masks may hold several positive values, one per kind of defect.
    """

    root: Path
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    masks_hold_ids: bool = False
    _inside: dict[str, bool] = field(default_factory=dict, init=False, compare=False, repr=False)

    def leaves(self, path: str) -> bool:
        """Whether ``path`` is not something below ``root``; a file that is no link is where its folder is."""
        folder, _, name = path.rpartition("/")
        if not folder or name in ("", "..") or "\0" in name or (self.root / path).is_symlink():
            return leaves(self.root, path)
        if folder not in self._inside:
            self._inside[folder] = not leaves(self.root, folder)
        return not self._inside[folder]


def names_normal(folder: str) -> bool:
    """Whether a folder of this name holds normal images: ``good``, ``ok`` (BTAD) or ``normal``, in any case."""
    return folder.casefold() in _NORMAL_FOLDERS


def is_image(name: str) -> bool:
    """Whether a file name is an image's; hidden files (``._x.png`` of macOS) are not."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in ``folder``, sorted, without hidden ones; none when it is not a folder."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted; none when it is not a folder."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if is_image(child.name) and not child.is_dir())


def walk_images(folder: Path) -> Iterator[Path]:
    """Image files at any depth below ``folder``, sorted by folder; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if is_image(name))


def index_masks(folder: Path) -> dict[str, Path]:
    """Mask files below ``folder``, keyed by their POSIX path below it without the extension."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in walk_images(folder)}


def find_mask(masks: Mapping[str, Path], image: PurePosixPath) -> Path | None:
    """The mask of ``image``, a path in the frame of the index: its stem followed by ``_mask``, or its stem."""
    stem = image.with_suffix("").as_posix()
    return masks.get(f"{stem}_mask", masks.get(stem))


def orphan_masks(root: Path, masks: Mapping[str, Path], used: set[Path]) -> list[Problem]:
    """A warning for each mask file that no image uses."""
    return [
        Problem("warning", "orphan-mask", path.relative_to(root).as_posix(), "no image goes with this mask")
        for path in masks.values()
        if path not in used
    ]


def leaves(root: Path, path: str) -> bool:
    """Whether ``path`` is not a plain relative path to something below ``root``, symbolic links followed."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or PureWindowsPath(path).drive or ".." in pure.parts or "\0" in path:
        return True
    try:
        return not (root / pure).resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links that go in a circle
        return True
