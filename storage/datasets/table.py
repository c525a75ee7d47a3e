"""The layout ``manifest``: a table with one row per image, for datasets of any other shape.

Columns of the CSV or parquet file; all but ``path`` may be missing or have empty cells:

    path        of the image, relative to the table's folder
    category    default: the folder's name
    split       train or test; default test
    defect      good for normal images, else the kind of defect
    label       0 or 1; default: by defect, else by whether the mask marks anything, else not known
    mask_path   relative to the table's folder; a folder is the union of the masks in it

``Manifest.to_frame`` writes such a table. A CSV may have commas, semicolons or tabs between its columns. Case of the
headers and spaces around cells do not matter. A header that is close to one of these names but not the same is an
error, as its column would be lost; other columns are ignored, with a warning that names them.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast, get_args

import pandas as pd

from cascade.storage.datasets.listing import UNNAMED_DEFECT, Entry, Listing, label_from_mask, names_normal
from cascade.storage.datasets.manifest import ImageRecord, Split
from cascade.storage.datasets.problems import Problem
from cascade.storage.datasets.spelling import Spelling
from cascade.storage.errors import DataError

FILE_NAMES = ("manifest.csv", "manifest.parquet")
SUFFIXES = (".csv", ".parquet")

_COLUMNS = ("path", "category", "split", "defect", "label", "mask_path")
_SEPARATORS = (",", ";", "\t")
_SWITCHES = {"false": "0", "true": "1"}
_MEANT = {
    "path": ("file", "filename", "file_name", "image", "image_path", "img", "img_path"),
    "category": ("cls_name", "class_name", "object"),
    "defect": ("defect_type", "specie_name"),
    "label": ("anomaly", "is_anomaly", "anomalous", "target", "ground_truth_label", "gt_label"),
    "mask_path": ("mask", "masks", "ground_truth", "gt", "gt_path"),
}
"""Names that other tools give to our columns."""


def find_table(root: Path) -> Path | None:
    """``root`` itself when it is a CSV or parquet file, or the file of ``FILE_NAMES`` in it, or None."""
    if root.is_file():
        return root if root.suffix.lower() in SUFFIXES else None
    return next((root / name for name in FILE_NAMES if (root / name).is_file()), None)


def read_table(root: Path) -> Listing:
    """Every row of the table at ``root`` (absolute): the file, or a folder that holds one of ``FILE_NAMES``.

    Raises:
        DataError: there is no table, it cannot be read, it has no column ``path``, or a header is nearly one of ours.
    """
    path = find_table(root)
    if path is None:
        raise DataError(f"{root}: no {' or '.join(FILE_NAMES)} (layout manifest); name the right root or layout")
    header, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    columns = _columns(path, header)
    spelling = Spelling(path.parent)
    entries: list[Entry] = []
    problems: list[Problem] = []
    written_by_us = {field.name for field in fields(ImageRecord)}
    ignored = [name for name in columns if name not in written_by_us]
    if ignored:
        message = f"columns ignored: {', '.join(ignored)}; read are {', '.join(_COLUMNS)}"
        problems.append(Problem("warning", "columns", path.name, message))
    for number, cells in enumerate(rows, start=1):
        try:
            if len(cells) > len(columns) and any(cells[len(columns) :]):
                raise DataError(f"has {len(cells)} cells for {len(columns)} columns; quote cells that hold a separator")
            row = dict.fromkeys(_COLUMNS, "") | dict(zip(columns, cells, strict=False))
            entries.append(_entry(spelling, row))
        except DataError as error:
            problems.append(Problem("error", "row", path.name, f"row {number}: {error}", f"row {number}"))
    return Listing(spelling.root, "manifest", tuple(entries), (*problems, *_shared_masks(entries)))


def _shared_masks(entries: Sequence[Entry]) -> list[Problem]:
    """Rows that have a mask in common: it stands in the table, so it may be meant."""
    first: dict[str, str] = {}
    problems = []
    for entry in entries:
        if entry.mask_path is not None and first.setdefault(entry.mask_path, entry.path) != entry.path:
            message = f"is the mask of {first[entry.mask_path]} and of {entry.path}; correct the table if it is not"
            problems.append(Problem("warning", "shared-mask", entry.mask_path, message))
    return problems


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows, every cell stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        rows = [[cell.strip() for cell in row] for row in reader]
    except UnicodeDecodeError:
        raise DataError(f"{path}: not in UTF-8; save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: not a readable table ({error}); write it as CSV or parquet") from error
    rows = [row for row in rows if row not in ([], [""])]
    return (rows[0], rows[1:]) if rows else ([], [])


def _parquet(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pandas and its engines share no base class for a file they cannot parse
        raise DataError(f"{path}: not a readable table ({error}); write it as CSV or parquet") from error
    frame = frame.astype(object).where(frame.notna(), "")
    header = [str(column) for column in frame.columns]
    return header, ([str(cell).strip() for cell in row] for row in frame.itertuples(index=False, name=None))


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """The header in our names. Raises ``DataError`` for what is missing, twice there, or nearly one of our names."""
    names = [name.strip().casefold() for name in header]
    for name, given in zip(names, header, strict=True):
        meant = _meant(name)
        if meant is not None and meant not in names:
            raise DataError(f"{path}: column '{given}' would be ignored; call it '{meant}', or remove it")
        if name in _COLUMNS and names.count(name) > 1:
            raise DataError(f"{path}: column '{name}' is there twice; remove one")
    if "path" not in names:
        found = f"; found are {', '.join(header)}" if header else ""
        raise DataError(f"{path}: no column 'path' with the image files, relative to {path.parent.name}/{found}")
    return names


def _meant(name: str) -> str | None:
    """The column of ours that a header means which is not one of ours."""
    if name in {field.name for field in fields(ImageRecord)}:
        return None
    for ours, others in _MEANT.items():
        if name.replace(" ", "_") in others:
            return ours
    close = difflib.get_close_matches(name, _COLUMNS, n=1, cutoff=0.75)
    return close[0] if close else None


def _entry(spelling: Spelling, row: dict[str, str]) -> Entry:
    if not row["path"]:
        raise DataError("path is empty")
    split = row["split"].casefold() or "test"
    if split not in get_args(Split):
        raise DataError(f"split is '{row['split']}'; write train or test")
    mask_path = spelling.path(row["mask_path"]) if row["mask_path"] else None
    label = _label(spelling.root, row["label"], row["defect"], mask_path)
    kind = row["defect"] or UNNAMED_DEFECT
    return Entry(
        path=spelling.path(row["path"]),
        category=row["category"] or spelling.root.name,
        split=cast(Split, split),
        defect="" if label is None else kind if label else "good",
        label=label,
        mask_path=mask_path,
    )


def _label(root: Path, label: str, defect: str, mask_path: str | None) -> int | None:
    by_defect = None if not defect else 0 if names_normal(defect) else 1
    if not label:
        if by_defect is None and mask_path is not None:
            return label_from_mask(root, mask_path)
        return by_defect
    label = _SWITCHES.get(label.casefold(), label)
    # A column of integers with gaps reaches us as floats.
    if label.removesuffix(".0") not in ("0", "1"):
        raise DataError(f"label is '{label}'; write 0 for normal, 1 for defective, nothing when not known")
    given = int(label.removesuffix(".0"))
    if by_defect is not None and by_defect != given:
        raise DataError(f"label {given} contradicts defect '{defect}'; correct one of them")
    return given
