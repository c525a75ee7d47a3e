"""The report on a dataset, made before anything expensive runs on it.

The fast level opens every file, reads headers and hashes the bytes; every run does it. The full level also decodes
images and masks; ``cascade check`` does it to all, a run to those that its store has never seen. Kinds of problem, with
the severity:

    empty               error     the dataset has no images
    row                 error     a row of a split file or table that cannot be used
    columns             warning   columns of a table that are ignored
    escape              error     an absolute path, a ``..``, or a link that leaves the root
    repeated-path       error     the same path listed twice
    missing-image       error     a listed image that is not on disk
    unreadable-image    error     not a picture of a known format, or of a pixel type without a rule
    truncated-image     error     cut short or damaged inside (full level)
    oversized-image     error     more pixels than ``images.MAX_PIXELS``
    missing-mask        error     a defective image whose mask is not there (a warning per category where the
                                  layout knows labels without masks)
    unreadable-mask, truncated-mask, oversized-mask   error   as for images
    mask-size           error     a mask that has not its image's size
    mask-values         error     more than two different values, where masks do not hold ids (full level)
    empty-mask          error     the mask of a defective image marks nothing (full level)
    marked-normal       error     the mask of a normal image marks something (full level)
    orphan-mask         warning   a mask file that belongs to no image
    nested-masks        warning   a mask folder where it is not read (layout ``folder``)
    duplicate           warning   two images with the same bytes; an error when labels or masks differ
    case-collision      warning   paths that differ in upper and lower case only
    absent-category     warning   a listed category without a single file (layout ``visa``)
    no-defective        warning   a category without defective test images
    no-normal           warning   a category without normal test images
    unlabelled          warning   a category whose test images all have no label
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cascade.storage.datasets.checks import check_duplicates, check_entry, check_listing
from cascade.storage.datasets.layouts import list_dataset
from cascade.storage.datasets.listing import Problem
from cascade.storage.datasets.manifest import ImageRecord, Manifest
from cascade.storage.errors import DataError

Decode = Callable[[ImageRecord], bool]
_SHOWN = 3


@dataclass(frozen=True)
class Report:
    """What an inspection found.

    Attributes:
        manifest: the records of every image without an error of its own.
        problems: errors first, then by kind and path.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]

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


def inspect_dataset(
    root: Path, layout: str = "auto", *, name: str | None = None, decode: bool | Decode = False
) -> Report:
    """Read the dataset at ``root`` and check it; every problem is collected, with its path.

    Args:
        root: folder, or the table itself for the layout ``manifest``.
        layout: ``mvtec``, ``visa``, ``folder``, ``manifest``, or ``auto`` to detect it.
        name: of the dataset; default the folder's.
        decode: the full level, see the module; for all records, or for those that a function chooses.

    Raises:
        ConfigError: there is no such layout.
        DataError: the files cannot even be listed: no such folder, not this layout, an unreadable split file.
    """
    listing = list_dataset(root, layout)
    problems = [*listing.problems, *check_listing(listing.entries)]
    records: list[ImageRecord] = []
    chosen = decode if callable(decode) else lambda record: decode
    # Hashing and decoding release the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for record, found in pool.map(partial(check_entry, listing, decode=chosen), listing.entries):
            problems += found
            if record is not None:
                records.append(record)
    problems += check_duplicates(records)
    manifest = Manifest(name or listing.root.name, listing.root, tuple(records))
    return Report(manifest, tuple(sorted(problems, key=lambda p: (p.severity, p.kind, p.path, p.message))))


def load_manifest(
    root: Path, layout: str = "auto", *, name: str | None = None, decode: bool | Decode = False
) -> Manifest:
    """The dataset's manifest, after :func:`inspect_dataset` (same arguments).

    Raises:
        ConfigError: there is no such layout.
        DataError: any error in the report; the message has the first ones and says how to see all.
    """
    report = inspect_dataset(root, layout, name=name, decode=decode)
    if report.ok:
        return report.manifest
    shown = "; ".join(f"{problem.path}: {problem.message}" for problem in report.errors[:_SHOWN])
    rest = len(report.errors) - _SHOWN
    more = f" (and {rest} more)" if rest > 0 else ""
    raise DataError(f"{root} cannot be used: {shown}{more}; run `cascade check {root}` to see everything")
