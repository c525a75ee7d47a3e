"""What lies in a dataset's folder and is not read, and why: nothing is passed over without a word."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.images import is_image
from cascade.storage.datasets.listing import Listing
from cascade.storage.datasets.problems import Problem
from cascade.storage.datasets.table import FILE_NAMES

_OTHER_PICTURES = frozenset(
    [
        *(".gif", ".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jxl", ".jxr", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".tga", ".pcx", ".psd", ".exr", ".hdr", ".dds", ".ico", ".svg", ".dcm", ".npy", ".npz"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
    ]
)
_ASIDE = frozenset({"train", "validation", "val", "test_private", "test_private_mixed"})
"""Folders that public datasets have and that no evaluation reads."""
_READS = {
    "mvtec": "read are <category>/test/<defect>/ and <category>/train/<defect>/ with their masks",
    "visa": "its split file does not name them",
    "meta": "meta.json does not name them",
    "real_iad": "its lists do not name them",
    "folder": "read are images/ and the mask folder beside it",
}


def skipped(tree: FileTree, listing: Listing) -> list[Problem]:
    """A problem for each folder of images, and for each kind of other file, that the reader did not use."""
    images: defaultdict[str, list[str]] = defaultdict(list)
    pictures: defaultdict[str, list[str]] = defaultdict(list)
    others: defaultdict[str, list[str]] = defaultdict(list)
    for path in tree.files:
        suffix = PurePosixPath(path).suffix.lower()
        if path in listing.understood:
            continue
        if is_image(PurePosixPath(path).name):
            images[path.rpartition("/")[0] or "."].append(path)
        elif suffix in _OTHER_PICTURES:
            pictures[suffix].append(path)
        elif path in FILE_NAMES:
            images[path].append(path)
        else:
            others[suffix].append(path)
    return [
        *(_unread(folder, paths, listing.layout) for folder, paths in images.items()),
        *(
            Problem("warning", "skipped", paths[0], f"{_count(paths, suffix)} not read; save as PNG, JPEG or TIFF")
            for suffix, paths in pictures.items()
        ),
        *(
            Problem("note", "no-pictures", paths[0], f"{_count(paths, suffix)} left aside; no pictures")
            for suffix, paths in others.items()
        ),
    ]


def _unread(folder: str, paths: list[str], layout: str) -> Problem:
    if folder in FILE_NAMES:
        message = f"this table is not read, as the folders have layout {layout}; give its path to read it"
        return Problem("warning", "unread-table", folder, message)
    number = "1 image" if len(paths) == 1 else f"{len(paths)} images"
    if any(part.casefold() in _ASIDE for part in folder.split("/")):
        return Problem("note", "aside", folder, f"{number} left aside; no part of the evaluation")
    return Problem("warning", "unread", folder, f"{number} not read in layout {layout}: {_READS[layout]}")


def _count(paths: list[str], suffix: str) -> str:
    kind = f"{suffix} file" if suffix else "file without an extension"
    return f"1 {kind}" if len(paths) == 1 else f"{len(paths)} {kind.replace('file', 'files', 1)}"
