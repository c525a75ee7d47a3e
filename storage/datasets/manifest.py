"""What a dataset is, once its layout is read: one record per image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import pandas as pd

from cascade.storage.errors import ConfigError, nearest

Split = Literal["train", "test"]

MEAN = "mean"
"""Stands where a category stands, in the rows of every table that are means; no category may be called so."""


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        image_id: sha256 of the file's bytes, hex, and behind it ``-turned`` where EXIF turns the picture, and its
            white where that is not the usual one; it survives moving and renaming, and two copies share it.
        path: of the image, relative to ``Manifest.root``, POSIX.
        category: kind of object or texture, as named by the dataset.
        split: ``train`` or ``test``.
        defect: ``good`` for a normal image, the kind of defect for a defective one (``bad`` where the layout
            names none), empty when the label is not known.
        label: 0 normal, 1 defective, None not known.
        mask_path: of the ground truth, relative to ``Manifest.root``, or None. Above 0 is defective.
        mask_id: sha256 of the mask's bytes, hex, or None; of the digests of a folder of masks.
        width: pixels, of the picture as it is read.
        height: pixels, of the picture as it is read.
        white: the value that is read as 255, for a picture with more than 8 bits; None for others.
    """

    image_id: str
    path: str
    category: str
    split: Split
    defect: str
    label: int | None
    mask_path: str | None
    mask_id: str | None
    width: int
    height: int
    white: float | None = None

    @property
    def digest(self) -> str:
        """The sha256 of the file's bytes alone."""
        return self.image_id[:64]


@dataclass(frozen=True)
class Manifest:
    """A dataset's records, sorted by category, defect and path.

    Attributes:
        name: for reports.
        root: absolute folder that every path is relative to.
        records: one per image.
    """

    name: str
    root: Path
    records: tuple[ImageRecord, ...]

    def __post_init__(self) -> None:
        """Sort, so that the order never depends on the file system."""
        ordered = sorted(self.records, key=lambda record: (record.category, record.defect, record.path))
        object.__setattr__(self, "records", tuple(ordered))

    def __iter__(self) -> Iterator[ImageRecord]:
        """The records, in order."""
        return iter(self.records)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    @property
    def categories(self) -> tuple[str, ...]:
        """Every category, sorted."""
        return tuple(sorted({record.category for record in self.records}))

    def parts(self) -> dict[tuple[str, Split], list[ImageRecord]]:
        """The records by category and split, in order."""
        found: dict[tuple[str, Split], list[ImageRecord]] = {}
        for record in sorted(self.records, key=lambda record: (record.category, record.split)):
            found.setdefault((record.category, record.split), []).append(record)
        return found

    def select(
        self, categories: Iterable[str] | None = None, exclude: Iterable[str] = (), split: Split = "test"
    ) -> Manifest:
        """The part of this manifest in ``split`` that is in ``categories`` (None: all) and not in ``exclude``.

        Raises:
            ConfigError: a category in either list is not in the manifest.
        """
        wanted = set(self.categories if categories is None else categories)
        unwanted = set(exclude)
        for category in sorted((wanted | unwanted).difference(self.categories)):
            raise ConfigError(f"no category '{category}' in {self.name}; {nearest(category, self.categories)}")
        kept = (r for r in self.records if r.split == split and r.category in wanted - unwanted)
        return Manifest(self.name, self.root, tuple(kept))

    def to_frame(self) -> pd.DataFrame:
        """One row per record, one column per field of :class:`ImageRecord`; ``label`` is nullable Int64.

        Written as CSV or parquet next to the images, it can be read back with the ``manifest`` layout.
        """
        columns = [field.name for field in fields(ImageRecord)]
        frame = pd.DataFrame([astuple(record) for record in self.records], columns=columns)
        return frame.astype({"label": "Int64", "width": "int64", "height": "int64", "white": "float64"})
