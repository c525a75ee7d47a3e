"""The report on a dataset, made before anything expensive runs on it.

The fast level opens every file, reads headers and hashes the bytes; every run does it. The full level also decodes
images and masks; ``cascade check`` does it to all, a run to those that its store has never seen. Kinds of problem, with
the severity:

    empty               error     the dataset has no images
    row                 error     a row of a split file or table that cannot be used
    columns             warning   columns of a table that are ignored
    name                error     a category, defect or file whose name may not become that of a file, or is `mean`
    escape              error     an absolute path or a ``..`` that leaves the root
    link                error     a symbolic link that leaves the root, unless links may be followed
    broken-link         error     a symbolic link to nothing that may have been a folder
    unreadable-folder   error     a folder that may not be listed
    repeated-path       error     the same path listed twice
    missing-image       error     a listed image that is not on disk
    unreadable-image    error     not a picture of a known format, or of a pixel type without a rule
    truncated-image     error     cut short or damaged inside (full level)
    oversized-image     error     more pixels than ``images.MAX_PIXELS``
    depth               warning   more than 8 bits, read with a white that the dataset's largest value gave
    unused-full-scale   warning   a white was given, and no image has more than 8 bits
    beyond-full-scale   error     more than 8 bits, with values beyond the white that was given
    few-colours         warning   an image of one or two colours: empty, or a mask (full level)
    same-name           error     defective images without masks that differ in the extension; others: a warning
    mask-as-image       error     an image that is called like the mask of another, or like it and has two colours
    missing-mask        error     a defective image whose mask is not there, in layouts that have one for each
    no-mask             warning   a category with defective images without masks, in other layouts
    unreadable-mask, truncated-mask, oversized-mask   error   as for images
    two-masks           error     two masks of one image
    shared-mask         error     one mask of two images
    two-mask-folders    error     ``masks`` beside ``ground_truth``
    orphan-mask         error     a mask file that belongs to no image, where no mask means good; else a warning
    nested-masks        warning   a mask folder where it is not read (layout ``folder``)
    nested-labels       warning   a folder called ``good`` where it names no label (layout ``folder``)
    mask-size           error     a mask that has not its image's size
    mask-values         error     more than two different values, where masks do not hold ids (full level)
    mask-background     error     two values, and neither is 0 (full level)
    inverted-mask       error     marks nearly all of the image or of its border, unless large masks are allowed (full)
    empty-mask          error     the mask of a defective image marks nothing (full level)
    marked-normal       error     the mask of a normal image marks something (full level)
    turned              warning   EXIF turns the photograph and not its mask
    vanishing           warning   defects that leave no pixel in the evaluation frame (full level)
    unread, skipped, unread-table   warning   images, pictures of other formats, a table: there, but not read
    aside, no-pictures, hidden   note      other splits, and files that are no pictures
    duplicate           warning   two images with the same bytes; an error when labels or masks differ
    case-collision      warning   paths that differ in upper and lower case only
    absent-category     warning   a listed category without a single file (layouts ``visa``, ``meta``, ``real_iad``)
    no-defective        warning   a category without defective images in the selection
    no-normal           warning   a category without normal images in the selection
    unlabelled          warning   a category whose images in the selection all have no label
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cascade.storage.datasets.checks import check_categories, check_colours, check_duplicates, check_listing
from cascade.storage.datasets.entries import Look, check_entry
from cascade.storage.datasets.layouts import list_dataset
from cascade.storage.datasets.manifest import ImageRecord, Manifest
from cascade.storage.datasets.pixels import Pixels
from cascade.storage.datasets.problems import LeftOut, Problem, summarised
from cascade.storage.datasets.whites import with_whites
from cascade.storage.errors import DataError
from cascade.storage.names import printable

Decode = Callable[[ImageRecord], bool]
_SHOWN = 3
_ORDER = ("error", "warning", "note")


@dataclass(frozen=True)
class Rules:
    """How a dataset is read; ``configs.schema.DatasetConfig`` says what each option means."""

    layout: str = "auto"
    follow_links: bool = False
    full_scale: float | None = None
    large_masks: bool = False


@dataclass(frozen=True)
class Report:
    """What an inspection found.

    Attributes:
        manifest: the records of every image without an error of its own.
        problems: errors first, then by kind and path.
        layout: that the dataset was read in.
        pixels: what is known of the pixels of records, by the record's path.
        left_out: images that cannot be used, if the report was to do without them.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    layout: str = ""
    pixels: Mapping[str, Pixels] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that stop a run."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def adding(self, problems: Iterable[Problem]) -> Report:
        """The same with further problems."""
        return replace(self, problems=_ordered([*self.problems, *problems]))

    def require_ok(self, root: Path) -> None:
        """Raise ``DataError`` with the first of each kind of error, if there is any, and say how to see all."""
        if self.ok:
            return
        lines = [
            printable(f"{problem.path}: {problem.message}") + (f" (and {more} more)" if more else "")
            for problem, more in summarised(self.errors, shown=1)
        ]
        rest = len(lines) - _SHOWN
        more = f"; and {rest} other kinds of error" if rest > 0 else ""
        shown = "; ".join(lines[:_SHOWN])
        alone = all(problem.image is not None for problem in self.errors)
        without = ", or leave these images out with --skip-bad" if alone else ""
        raise DataError(f"{root} cannot be used: {shown}{more}; `cascade check {root}` shows everything{without}")


def inspect_dataset(
    root: Path,
    rules: Rules | str = "auto",
    *,
    name: str | None = None,
    decode: bool | Decode = False,
    known: Callable[[ImageRecord], Pixels | None] = lambda record: None,
    frame: int | None = None,
    select: Callable[[Manifest], Manifest] = lambda whole: whole.select(),
    skip_bad: bool = False,
) -> Report:
    """Read the dataset at ``root`` and check it; every problem is collected, with its path.

    Args:
        root: folder, or the table itself for the layout ``manifest``.
        rules: how to read it; or the name of the layout alone.
        name: of the dataset; default the folder's.
        decode: the full level, see the module; for all records, or for those that a function chooses.
        known: what an earlier full look at the same bytes found, with the same ``frame``.
        frame: side of the evaluation frame, to look there for defects that vanish.
        select: the part of the manifest whose categories are looked at; all test images by default.
        skip_bad: leave images out that have an error of their own.

    Raises:
        ConfigError: there is no such layout.
        DataError: the files cannot even be listed: no such folder, not this layout, an unreadable split file.
    """
    rules = Rules(rules) if isinstance(rules, str) else rules
    listing = list_dataset(root, rules.layout, follow_links=rules.follow_links)
    look = Look(
        decode if callable(decode) else lambda record: decode,
        known,
        depth=rules.full_scale is None,
        large_masks=rules.large_masks,
        frame=frame,
    )
    # Hashing and decoding release the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        checked = list(pool.map(partial(check_entry, listing, look=look), listing.entries))
    checked, depths = with_whites(checked, rules.full_scale)
    colours = {each.entry.path: each.pixels.colours for each in checked if each.pixels and each.pixels.colours}
    found = [
        *listing.problems,
        *(problem for each in checked for problem in each.problems),
        *check_colours(listing.entries, colours),
    ]
    bad = [problem for problem in found if problem.severity == "error" and problem.image is not None and skip_bad]
    without = {problem.image for problem in bad}
    records = [each.record for each in checked if each.record is not None and each.entry.path not in without]
    manifest = Manifest(name or listing.root.name, listing.root, tuple(records))
    problems = [
        *(problem for problem in found if problem not in bad),
        *check_listing([each.entry for each in checked if each.entry.path not in without]),
        *depths,
        *check_duplicates(records),
        *check_categories(select(manifest)),
    ]
    return Report(
        manifest,
        _ordered(problems),
        listing.layout,
        {each.entry.path: each.pixels for each in checked if each.pixels is not None},
        _left_out(bad, {each.entry.path: each.entry.category for each in checked}),
    )


def _ordered(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(set(problems), key=lambda p: (_ORDER.index(p.severity), p.kind, p.path, p.message)))


def _left_out(bad: Sequence[Problem], categories: Mapping[str, str]) -> tuple[LeftOut, ...]:
    """Each image once, with the first of its problems."""
    first: dict[str, LeftOut] = {}
    for problem in bad:
        image = str(problem.image)
        reason = problem.message if problem.path == image else f"{problem.path}: {problem.message}"
        first.setdefault(image, LeftOut(image, categories.get(image, ""), problem.kind, reason))
    return tuple(sorted(first.values(), key=lambda each: (each.category, each.path)))


def load_manifest(
    root: Path, rules: Rules | str = "auto", *, name: str | None = None, decode: bool | Decode = False
) -> Manifest:
    """The dataset's manifest, after :func:`inspect_dataset` (same arguments).

    Raises:
        ConfigError: there is no such layout.
        DataError: any error in the report; the message has the first ones and says how to see all.
    """
    report = inspect_dataset(root, rules, name=name, decode=decode)
    report.require_ok(root)
    return report.manifest
