"""The layout of MVTec AD, which BTAD, MPDD, DTD-Synthetic and the prepared VisA share.

    <category>/train/good/<image>
    <category>/test/<defect>/<image>                   good, ok (BTAD) and normal are normal
    <category>/ground_truth/<defect>/<stem>_mask.png   or <stem>.png; any image format

The root is one category, a folder of categories, or a folder of sources that hold categories.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import get_args

from cascade.storage.datasets.listing import (
    Entry,
    Listing,
    Problem,
    find_mask,
    images_in,
    index_masks,
    names_normal,
    orphan_masks,
    subfolders,
)
from cascade.storage.datasets.manifest import Split
from cascade.storage.errors import DataError


def find_categories(root: Path) -> dict[str, Path]:
    """Category folders by name: the folder's name, or its path below the root where two have the same name."""
    folders = [root] if _is_category(root) else []
    if not folders:
        for child in subfolders(root):
            folders += [child] if _is_category(child) else filter(_is_category, subfolders(child))
    times = Counter(folder.name for folder in folders)
    return {
        folder.name if times[folder.name] == 1 else folder.relative_to(root).as_posix(): folder for folder in folders
    }


def read_mvtec(root: Path) -> Listing:
    """Every image of every category below ``root`` (absolute).

    Raises:
        DataError: no category is there.
    """
    categories = find_categories(root)
    if not categories:
        raise DataError(f"{root}: no <category>/test/<defect>/ folder (layout mvtec); name the right root or layout")
    entries: list[Entry] = []
    problems: list[Problem] = []
    for category, folder in categories.items():
        masks = index_masks(folder / "ground_truth")
        used: set[Path] = set()
        for split in get_args(Split):
            for defect_folder in subfolders(folder / split):
                normal = names_normal(defect_folder.name)
                for image in images_in(defect_folder):
                    mask = None
                    if split == "test":
                        mask = find_mask(masks, PurePosixPath(defect_folder.name, image.name))
                    if mask is not None:
                        used.add(mask)
                    entries.append(
                        Entry(
                            path=image.relative_to(root).as_posix(),
                            category=category,
                            split=split,
                            defect="good" if normal else defect_folder.name,
                            label=0 if normal else 1,
                            mask_path=None if mask is None else mask.relative_to(root).as_posix(),
                            mask_required=split == "test",
                        )
                    )
        problems += orphan_masks(root, masks, used)
    return Listing(root, tuple(entries), tuple(problems))


def _is_category(folder: Path) -> bool:
    return bool(subfolders(folder / "test"))
