"""The checks themselves: of one entry's files, of the listing as a whole, and between records.

:mod:`cascade.storage.datasets.inspection` lists every kind of problem.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cascade.storage.datasets.images import ImageError, image_size, read_image, read_mask_codes
from cascade.storage.datasets.listing import Entry, Listing, Problem
from cascade.storage.datasets.manifest import ImageRecord

_T = TypeVar("_T")


def check_entry(
    listing: Listing, entry: Entry, *, decode: Callable[[ImageRecord], bool]
) -> tuple[ImageRecord | None, tuple[Problem, ...]]:
    """Look at the image and mask of one entry, and at every pixel if ``decode`` says so of its record.

    Returns:
        The record, or None when there is an error, and the problems found.
    """
    try:
        image = _check_file(listing, entry.path, "image")
        mask = None
        if entry.mask_path is not None:
            mask = _check_file(listing, entry.mask_path, "mask")
            _check_mask_size(entry, image, mask)
        elif entry.label == 1 and entry.mask_required:
            raise _Found("missing-mask", entry.path, "defective, but no mask was found; add it or the label is wrong")
        height, width = image.size
        record = ImageRecord(
            image_id=image.digest,
            path=entry.path,
            category=entry.category,
            split=entry.split,
            defect=entry.defect,
            label=entry.label,
            mask_path=entry.mask_path,
            mask_id=None if mask is None else mask.digest,
            width=width,
            height=height,
        )
        if decode(record):
            _check_pixels(listing, entry)
    except _Found as found:
        return None, (found.problem,)
    return record, ()


def check_listing(entries: Sequence[Entry]) -> list[Problem]:
    """Problems that show without opening a file."""
    if not entries:
        return [Problem("error", "empty", ".", "no images; check the root and the layout")]
    return [*_check_paths(entries), *_check_categories(entries)]


def check_duplicates(records: Iterable[ImageRecord]) -> list[Problem]:
    """A problem for each image with the bytes of an earlier one, in order of path."""
    by_bytes: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.path):
        by_bytes[record.image_id].append(record)
    problems = []
    for first, *copies in by_bytes.values():
        for copy in copies:
            if copy.path == first.path:
                continue
            if _truth(copy) != _truth(first):
                message = f"same bytes as {first.path}, but another label or mask; remove the wrong one"
                problems.append(Problem("error", "duplicate", copy.path, message))
            else:
                where = "" if copy.split == first.split else ", which is in the other split"
                message = f"same bytes as {first.path}{where}; it counts twice"
                problems.append(Problem("warning", "duplicate", copy.path, message))
    return problems


@dataclass(frozen=True)
class _File:
    digest: str
    size: tuple[int, int]


class _Found(Exception):
    """Ends the look at an entry: its other checks would only repeat this error."""

    def __init__(self, kind: str, path: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem("error", kind, path, message)


def _check_file(listing: Listing, path: str, role: str) -> _File:
    root = listing.root
    if listing.leaves(path):
        raise _Found("escape", path, f"this {role} is outside the dataset; use a relative path to a file inside")
    size = _read(image_size, root, path, role)
    with (root / path).open("rb") as file:
        return _File(hashlib.file_digest(file, "sha256").hexdigest(), size)


def _read(read: Callable[[Path], _T], root: Path, path: str, role: str) -> _T:
    try:
        return read(root / path)
    except ImageError as error:
        raise _Found(f"{error.kind}-{role}", path, error.reason) from error


def _check_mask_size(entry: Entry, image: _File, mask: _File) -> None:
    if mask.size != image.size:
        sizes = [f"{width}x{height}" for height, width in (mask.size, image.size)]
        message = f"{sizes[0]}, but its image {entry.path} is {sizes[1]} as stored (EXIF rotation is ignored)"
        raise _Found("mask-size", str(entry.mask_path), f"{message}; redraw or resize it")


def _check_pixels(listing: Listing, entry: Entry) -> None:
    _read(read_image, listing.root, entry.path, "image")
    if entry.mask_path is None:
        return
    path = entry.mask_path
    values = np.unique(_read(read_mask_codes, listing.root, path, "mask"))
    if values.size > 2 and not listing.masks_hold_ids:
        message = f"{values.size} different values; threshold it so that it holds 0 and one other value"
        raise _Found("mask-values", path, message)
    if entry.label == 1 and not values.any():
        raise _Found("empty-mask", path, f"marks nothing, but {entry.path} is defective; redraw it")
    if entry.label == 0 and values.any():
        raise _Found("marked-normal", path, f"marks a defect, but {entry.path} is normal; correct the label")


def _check_paths(entries: Iterable[Entry]) -> list[Problem]:
    problems = []
    seen: set[str] = set()
    by_folded: dict[str, str] = {}
    for entry in entries:
        if entry.path in seen:
            problems.append(Problem("error", "repeated-path", entry.path, "listed twice; remove one"))
        seen.add(entry.path)
        for path in filter(None, (entry.path, entry.mask_path)):
            other = by_folded.setdefault(path.casefold(), path)
            if other != path:
                message = f"differs from {other} in case only; other systems cannot hold both"
                problems.append(Problem("warning", "case-collision", path, message))
    return problems


def _check_categories(entries: Iterable[Entry]) -> list[Problem]:
    by_category: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_category[entry.category].append(entry)
    problems = []
    for category, members in by_category.items():
        test = [entry for entry in members if entry.split == "test"]
        labels = {entry.label for entry in test}
        if labels == {None}:
            message = "no test image has a label; there is nothing to evaluate against"
            problems.append(Problem("warning", "unlabelled", category, message))
            continue
        if 1 not in labels:
            message = "no defective test images; its pixel metrics will be empty"
            problems.append(Problem("warning", "no-defective", category, message))
        if 0 not in labels:
            message = "no normal test images; its image metrics will be empty"
            problems.append(Problem("warning", "no-normal", category, message))
        defective = [entry for entry in test if entry.label == 1 and not entry.mask_required]
        bare = sum(entry.mask_path is None for entry in defective)
        if bare:
            message = f"{bare} of {len(defective)} defective test images have no mask; pixel metrics need one"
            problems.append(Problem("warning", "missing-mask", category, message))
    return problems


def _truth(record: ImageRecord) -> tuple[int | None, str | None]:
    return record.label, record.mask_id if record.label == 1 else None
