"""The checks of one image and its mask: their files, and their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from cascade.storage.datasets.files import LINK_MESSAGE
from cascade.storage.datasets.images import Header, read_header
from cascade.storage.datasets.listing import Entry, Listing
from cascade.storage.datasets.manifest import ImageRecord
from cascade.storage.datasets.pixels import Found, Pixels, look_at_pixels, mask_parts, readable
from cascade.storage.datasets.problems import Problem
from cascade.storage.errors import DataError
from cascade.storage.names import safe_path

_T = TypeVar("_T")


@dataclass(frozen=True)
class Look:
    """How closely to look.

    Attributes:
        decode: whether to look at every pixel of a record.
        known: what an earlier look found, or None.
        depth: whether the largest value of images with more than 8 bits is wanted in any case.
        large_masks: masks may mark nearly all of an image.
        frame: side of the evaluation frame in which defects are looked for again; None to leave that out.
    """

    decode: Callable[[ImageRecord], bool]
    known: Callable[[ImageRecord], Pixels | None] = lambda record: None
    depth: bool = True
    large_masks: bool = False
    frame: int | None = None


@dataclass(frozen=True)
class Checked:
    """What the look at an entry found: no record if there is an error."""

    entry: Entry
    problems: tuple[Problem, ...]
    record: ImageRecord | None = None
    header: Header | None = None
    pixels: Pixels | None = None


@dataclass(frozen=True)
class _File:
    digest: str
    header: Header

    @property
    def size(self) -> tuple[int, int]:
        return self.header.height, self.header.width

    @property
    def id(self) -> str:
        return self.digest if self.header.orientation == 1 else f"{self.digest}-turned"


def check_entry(listing: Listing, entry: Entry, look: Look) -> Checked:
    """Look at the image and mask of one entry, and at their pixels if ``look`` says so."""
    try:
        _check_name(entry)
        image = _check_file(listing, entry.path, "image")
        mask = None if entry.mask_path is None else _check_mask(listing, entry, entry.mask_path, image)
        if mask is None and entry.label == 1 and entry.mask_required:
            raise Found("missing-mask", entry.path, "defective, but no mask was found; add it or the label is wrong")
        record = ImageRecord(
            image_id=image.id,
            path=entry.path,
            category=entry.category,
            split=entry.split,
            defect=entry.defect,
            label=entry.label,
            mask_path=entry.mask_path,
            mask_id=None if mask is None else mask.id,
            width=image.header.width,
            height=image.header.height,
        )
        problems = _turned(entry, image, mask)
        pixels = look.known(record)
        if pixels is None and (look.decode(record) or (look.depth and image.header.deep)):
            pixels = look_at_pixels(listing, entry, image.header, look.frame)
        if pixels is not None:
            _check_marked(entry, pixels, look)
            problems += _vanishing(entry, pixels, look)
    except Found as found:
        image_path = None if found.kind == "link" else entry.path
        return Checked(entry, (Problem("error", found.kind, found.path, found.message, image_path),))
    return Checked(entry, tuple(problems), record, image.header, pixels)


def _check_name(entry: Entry) -> None:
    """Stems become names of an export, and every path stands in a table."""
    try:
        for path in (entry.path, entry.mask_path):
            if path is not None and not path.isprintable():
                safe_path(path, "path", nested=True)
        stem = PurePosixPath(entry.path).stem
        if stem != "..":  # which is outside the dataset
            safe_path(stem, "file name")
    except DataError as error:
        raise Found("name", entry.path, str(error)) from error


def _check_file(listing: Listing, path: str, role: str) -> _File:
    leaves = listing.leaves(path)
    if leaves == "link":
        raise Found("link", path, LINK_MESSAGE)
    if leaves == "escape":
        raise Found("escape", path, f"this {role} is outside the dataset; use a relative path to a file inside")
    header = readable(read_header, listing.root / path, path, role)
    with (listing.root / path).open("rb") as file:
        return _File(hashlib.file_digest(file, "sha256").hexdigest(), header)


def _check_mask(listing: Listing, entry: Entry, path: str, image: _File) -> _File:
    """The mask, or for a folder of masks one that stands for all."""
    if listing.leaves(path) == "escape":
        raise Found("escape", path, "this mask is outside the dataset; use a relative path to a file inside")
    parts = []
    for own in mask_parts(listing, path):
        parts.append(_check_file(listing, own, "mask"))
        if parts[-1].size != image.size:
            sizes = " but its image {} is ".join(f"{width}x{height}," for height, width in (parts[-1].size, image.size))
            turned = " after the turn that its EXIF asks for" if image.header.orientation != 1 else ""
            message = f"{sizes.format(entry.path).rstrip(',')}{turned}; redraw or resize it"
            raise Found("mask-size", own, message)
    if len(parts) == 1:
        return parts[0]
    united = hashlib.sha256("".join(part.id for part in parts).encode()).hexdigest()
    return _File(united, parts[0].header)


def _turned(entry: Entry, image: _File, mask: _File | None) -> list[Problem]:
    if mask is None or image.header.orientation == 1 or mask.header.orientation == image.header.orientation:
        return []
    message = "EXIF turns this photograph; its mask is taken to be drawn on it as viewers show it, turned"
    return [Problem("warning", "turned", entry.path, message)]


def _check_marked(entry: Entry, pixels: Pixels, look: Look) -> None:
    marked = pixels.marked
    if entry.label != 1 or marked is None or look.large_masks or not marked.looks_inverted():
        return
    message = (
        f"marks {marked.share:.0%} of the image and {marked.border:.0%} of its border, as an inverted mask does; "
        "invert it, or --set dataset.large_masks=true if it is right"
    )
    raise Found("inverted-mask", str(entry.mask_path), message)


def _vanishing(entry: Entry, pixels: Pixels, look: Look) -> list[Problem]:
    if not pixels.lost:
        return []
    what = "its only defect vanishes" if pixels.parts == 1 else f"{pixels.lost} of its {pixels.parts} defects vanish"
    then = "all its pixels count" if pixels.lost == pixels.parts else "their pixels count"
    message = f"{what} in the frame of {look.frame} pixels (score.frame), and {then} as good there"
    return [Problem("warning", "vanishing", entry.path, message)]
