"""The layout ``manifest``: a table with one row per image, for datasets of any other shape.

Columns of the CSV or parquet file; all but ``path`` may be missing or have empty cells:

    path        of the image, relative to the table's folder, POSIX
    category    default: the folder's name
    split       train or test; default test
    defect      good for normal images, else the kind of defect
    label       0 or 1; default: by defect, else by whether the mask marks anything, else not known
    mask_path   relative to the table's folder, POSIX

``Manifest.to_frame`` writes such a table. Other columns are ignored, with a warning that names them.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import cast, get_args

import pandas as pd

from cascade.storage.datasets.folder import label_from_mask
from cascade.storage.datasets.listing import UNNAMED_DEFECT, Entry, Listing, Problem, names_normal
from cascade.storage.datasets.manifest import ImageRecord, Split
from cascade.storage.errors import DataError

FILE_NAMES = ("manifest.csv", "manifest.parquet")
SUFFIXES = (".csv", ".parquet")

_COLUMNS = ("path", "category", "split", "defect", "label", "mask_path")


def find_table(root: Path) -> Path | None:
    """``root`` itself when it is a CSV or parquet file, or the file of ``FILE_NAMES`` in it, or None."""
    if root.is_file():
        return root if root.suffix.lower() in SUFFIXES else None
    return next((root / name for name in FILE_NAMES if (root / name).is_file()), None)


def read_table(root: Path) -> Listing:
    """Every row of the table at ``root`` (absolute): the file, or a folder that holds one of ``FILE_NAMES``.

    Raises:
        DataError: there is no table, it cannot be read, or it has no column ``path``.
    """
    path = find_table(root)
    if path is None:
        raise DataError(f"{root}: no {' or '.join(FILE_NAMES)} (layout manifest); name the right root or layout")
    frame = _cells(path)
    folder = path.parent
    entries: list[Entry] = []
    problems: list[Problem] = []
    written_by_us = {field.name for field in fields(ImageRecord)}
    ignored = [column for column in frame.columns if column not in written_by_us]
    if ignored:
        message = f"columns ignored: {', '.join(ignored)}; read are {', '.join(_COLUMNS)}"
        problems.append(Problem("warning", "columns", path.name, message))
    for number, row in enumerate(frame.to_dict("records"), start=1):
        try:
            entries.append(_entry(folder, {str(column): str(cell) for column, cell in row.items()}))
        except DataError as error:
            problems.append(Problem("error", "row", path.name, f"row {number}: {error}"))
    return Listing(folder, tuple(entries), tuple(problems))


def _cells(path: Path) -> pd.DataFrame:
    """The table with every cell a string and every column of ``_COLUMNS`` present, empty where nothing is."""
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as error:  # pandas and its engines share no base class for a file they cannot parse
        raise DataError(f"{path}: not a readable table ({error}); write it as CSV or parquet") from error
    if "path" not in frame.columns:
        raise DataError(f"{path}: no column 'path'; name the image files there, relative to {path.parent.name}/")
    frame = frame.astype(object).where(frame.notna(), "")
    return frame.reindex(columns=[*frame.columns, *(c for c in _COLUMNS if c not in frame.columns)], fill_value="")


def _entry(root: Path, row: dict[str, str]) -> Entry:
    if not row["path"]:
        raise DataError("path is empty")
    split = row["split"] or "test"
    if split not in get_args(Split):
        raise DataError(f"split is '{split}'; write train or test")
    mask_path = str(PurePosixPath(row["mask_path"])) if row["mask_path"] else None
    label = _label(root, row["label"], row["defect"], mask_path)
    kind = row["defect"] or UNNAMED_DEFECT
    return Entry(
        path=str(PurePosixPath(row["path"])),
        category=row["category"] or root.name,
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
    # A column of integers with gaps reaches us as floats.
    if label.removesuffix(".0") not in ("0", "1"):
        raise DataError(f"label is '{label}'; write 0 for normal, 1 for defective, nothing when not known")
    given = int(label.removesuffix(".0"))
    if by_defect is not None and by_defect != given:
        raise DataError(f"label {given} contradicts defect '{defect}'; correct one of them")
    return given
