"""The layout of Real-IAD: folders of images, and one JSON file a category that says what they are.

    realiad_1024/<category>/OK/S0001/<image>.jpg
    realiad_1024/<category>/NG/<defect>/S0001/<image>.jpg   its mask of the same name beside it, .png
    realiad_jsons/realiad_jsons/<category>.json             or straight in realiad_jsons/

Each file has ``train`` and ``test``, lists of ``image_path``, ``mask_path`` and ``anomaly_class``, and ``meta`` with
the class that is normal (``OK``). Paths are relative to the category's folder. Of several sizes of the images the first
of 1024, 512, 256 and ``raw`` is read. A defective image may have no mask, and a mask marks where it is above 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, get_args

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.listing import Entry, Listing
from cascade.storage.datasets.manifest import Split
from cascade.storage.datasets.meta import present, read_json
from cascade.storage.datasets.problems import Problem
from cascade.storage.errors import DataError

SIZES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
_LISTS = ("realiad_jsons/realiad_jsons/", "realiad_jsons/")


def has_lists(tree: FileTree) -> bool:
    """Whether there are images of a size, and files that list them."""
    return bool(_size(tree) and _files(tree))


def read_real_iad(tree: FileTree) -> Listing:
    """Every image that the lists name in a category that is present in the tree.

    Raises:
        DataError: there are no images or lists, or a list is no JSON.
    """
    size, files = _size(tree), _files(tree)
    if size is None or not files:
        raise DataError(
            f"{tree.root}: no {' or '.join(SIZES)} beside realiad_jsons/ (layout real_iad); name the right root or "
            f"layout"
        )
    by_category: dict[str, list[Entry]] = {}
    problems: list[Problem] = []
    for file in files:
        category = PurePosixPath(file).stem
        for where, split, row, normal in _rows(read_json(tree.root / file, "real_iad")):
            try:
                entry = _entry(f"{size}/{category}", category, split, row, normal)
                by_category.setdefault(category, []).append(entry)
            except DataError as error:
                problems.append(Problem("error", "row", file, f"{where}: {error}", where))
    kept, absent = present(tree.root, by_category)
    named = (path for entry in kept for path in (entry.path, entry.mask_path) if path is not None)
    others = (path for path in tree.files if path.startswith(tuple(f"{each}/" for each in SIZES if each != size)))
    understood = frozenset([*files, *named, *others])
    return Listing(tree.root, "real_iad", kept, (*problems, *absent), understood, masks_hold_ids=True)


def _size(tree: FileTree) -> str | None:
    return next((size for size in SIZES if size in tree.top_folders), None)


def _files(tree: FileTree) -> list[str]:
    for folder in _LISTS:
        found = [
            path for path in tree.files if path.endswith(".json") and path.rpartition("/")[0] == folder.rstrip("/")
        ]
        if found:
            return found
    return []


def _rows(data: Any) -> Iterator[tuple[str, Split, Any, str]]:
    """Where each image stands, its split, what is said of it, and the class that is normal."""
    if not isinstance(data, dict):
        return
    meta = data.get("meta")
    normal = str(meta.get("normal_class", "OK")) if isinstance(meta, dict) else "OK"
    for split in get_args(Split):
        rows = data.get(split)
        for number, row in enumerate(rows if isinstance(rows, list) else (), start=1):
            yield f"{split}, image {number}", split, row, normal


def _entry(folder: str, category: str, split: Split, row: Any, normal: str) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("image_path"), str) or not row["image_path"]:
        raise DataError("must hold image_path, mask_path and anomaly_class")
    kind, mask = row.get("anomaly_class"), row.get("mask_path")
    if not isinstance(kind, str) or not kind or not (mask is None or isinstance(mask, str)):
        raise DataError("must hold image_path, mask_path and anomaly_class")
    label = 0 if kind == normal else 1
    return Entry(
        path=f"{folder}/{row['image_path']}",
        category=category,
        split=split,
        defect=kind if label else "good",
        label=label,
        mask_path=f"{folder}/{mask}" if mask and label else None,
    )
