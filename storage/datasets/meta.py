"""``meta.json``, the listing that much of this literature puts at a dataset's root.

    {"train": {"<category>": [{"img_path": "...", "mask_path": "", "cls_name": "...", "specie_name": "...",
     "anomaly": 0}, ...]}, "test": {...}}

Paths are relative to the root; ``mask_path`` is empty for a normal image; ``specie_name`` is the kind of defect, empty
where there is none (VisA). APRIL-GAN's scripts write it (``ByChelsea/VAND-APRIL-GAN``, ``data/``), and AnomalyCLIP's
for more datasets, of which DAGM has ``Train`` and ``Test``. Other keys of an image are passed over. A category none of
whose images are on disk is left out with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.listing import UNNAMED_DEFECT, Entry, Listing, names_normal
from cascade.storage.datasets.manifest import Split
from cascade.storage.datasets.problems import Problem
from cascade.storage.datasets.spelling import Spelling
from cascade.storage.errors import DataError

META_FILE = "meta.json"


def read_meta(tree: FileTree) -> Listing:
    """Every image that ``meta.json`` names in a category that is present in the tree.

    Raises:
        DataError: the file is missing, is no JSON, or holds neither ``train`` nor ``test``.
    """
    spelling = Spelling(tree.root)
    by_category: dict[str, list[Entry]] = {}
    problems: list[Problem] = []
    for split, category, number, row in _rows(read_json(tree.root / META_FILE, "meta"), tree.root / META_FILE):
        where = f"{split}, {category}, image {number}"
        try:
            by_category.setdefault(category, []).append(_entry(spelling, split, category, row))
        except DataError as error:
            problems.append(Problem("error", "row", META_FILE, f"{where}: {error}", where))
    kept, absent = present(tree.root, by_category)
    named = (path for entry in kept for path in (entry.path, entry.mask_path) if path is not None)
    return Listing(tree.root, "meta", kept, (*problems, *absent), frozenset([META_FILE, *named]), masks_hold_ids=True)


def read_json(path: Path, layout: str) -> Any:
    """What a JSON file holds. Raises ``DataError`` if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (layout {layout}); name the right root or layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({error}); take the file of the original dataset") from error


def present(root: Path, by_category: Mapping[str, list[Entry]]) -> tuple[tuple[Entry, ...], list[Problem]]:
    """The entries of those categories of which any image is on disk, and a warning for each other one."""
    kept: list[Entry] = []
    problems = []
    for category, entries in by_category.items():
        if any((root / entry.path).is_file() for entry in entries if "\0" not in entry.path):
            kept += entries
        else:
            message = f"none of its {len(entries)} images are here; the category is left out"
            problems.append(Problem("warning", "absent-category", category, message))
    return tuple(kept), problems


def _rows(data: Any, path: Path) -> list[tuple[str, str, int, Any]]:
    """Split, category, number from 1, and what is said of each image."""
    splits = {str(name).casefold(): own for name, own in data.items()} if isinstance(data, dict) else {}
    found = []
    for split in get_args(Split):
        own = splits.get(split, {})
        if not isinstance(own, dict) or not all(isinstance(rows, list) for rows in own.values()):
            raise DataError(f"{path}: '{split}' must hold a list of images for each category")
        found += [(split, name, number, row) for name, rows in own.items() for number, row in enumerate(rows, 1)]
    if not found:
        raise DataError(f"{path}: no images under 'train' or 'test' (layout meta); name the right root or layout")
    return found


def _entry(spelling: Spelling, split: str, category: str, row: Any) -> Entry:
    names = ("img_path", "mask_path", "specie_name")
    texts = {name: row.get(name) or "" for name in names} if isinstance(row, dict) else {}
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise DataError("must hold img_path, mask_path, cls_name, specie_name and anomaly")
    if not texts["img_path"]:
        raise DataError("img_path is empty")
    if row.get("anomaly") not in (0, 1):
        raise DataError(f"anomaly is {row.get('anomaly')!r}; write 0 for normal, 1 for defective")
    label = int(row["anomaly"])
    kind = texts["specie_name"]
    return Entry(
        path=spelling.path(texts["img_path"]),
        category=category,
        split=cast(Split, split),
        defect=("good" if not label else UNNAMED_DEFECT if not kind or names_normal(kind) else kind),
        label=label,
        mask_path=spelling.path(texts["mask_path"]) if texts["mask_path"] else None,
        mask_required=split == "test",
    )
