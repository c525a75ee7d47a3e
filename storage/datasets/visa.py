"""The original layout of VisA, with the authors' split file.

    split_csv/1cls.csv                                object,split,label,image,mask
    <category>/Data/Images/{Normal,Anomaly}/*.JPG
    <category>/Data/Masks/Anomaly/*.png               values are ids of the kind of defect, above 0 is defective

A category none of whose images are on disk is left out with a warning, since people keep some categories only.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import cast, get_args

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.listing import UNNAMED_DEFECT, Entry, Listing
from cascade.storage.datasets.manifest import Split
from cascade.storage.datasets.meta import present
from cascade.storage.datasets.problems import Problem
from cascade.storage.datasets.spelling import Spelling
from cascade.storage.errors import DataError

SPLIT_FILE = "split_csv/1cls.csv"

_COLUMNS = ("object", "split", "label", "image", "mask")
_LABELS = {"normal": 0, "anomaly": 1}


def read_visa(tree: FileTree) -> Listing:
    """Every image that ``split_csv/1cls.csv`` names in a category that is present in the tree.

    Raises:
        DataError: the split file is missing, is no CSV, or lacks a column.
    """
    root, spelling = tree.root, Spelling(tree.root)
    by_category: defaultdict[str, list[Entry]] = defaultdict(list)
    problems: list[Problem] = []
    for line, row in enumerate(_rows(root / SPLIT_FILE), start=2):
        if row["label"] not in _LABELS or row["split"] not in get_args(Split) or not row["image"]:
            message = f"line {line}: label must be normal or anomaly, split train or test, and image not empty"
            problems.append(Problem("error", "row", SPLIT_FILE, message, f"line {line}"))
            continue
        label = _LABELS[row["label"]]
        by_category[row["object"]].append(
            Entry(
                path=spelling.path(row["image"]),
                category=row["object"],
                split=cast(Split, row["split"]),
                defect=UNNAMED_DEFECT if label else "good",
                label=label,
                mask_path=spelling.path(row["mask"]) if row["mask"] else None,
                mask_required=True,
            )
        )
    kept, absent = present(root, by_category)
    named = (path for entry in kept for path in (entry.path, entry.mask_path) if path is not None)
    return Listing(root, "visa", kept, (*problems, *absent), frozenset([SPLIT_FILE, *named]), masks_hold_ids=True)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)}; take the file of the original dataset")
            return list(reader)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (layout visa); name the right root or layout") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV ({error}); take the file of the original dataset") from error
