"""Which layout a folder has, and the reader for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from cascade.storage.datasets.folder import read_folder
from cascade.storage.datasets.listing import Listing, walk_images
from cascade.storage.datasets.mvtec import find_categories, read_mvtec
from cascade.storage.datasets.table import FILE_NAMES, find_table, read_table
from cascade.storage.datasets.visa import SPLIT_FILE, read_visa
from cascade.storage.errors import ConfigError, DataError, nearest

READERS: Mapping[str, Callable[[Path], Listing]] = MappingProxyType(
    {"folder": read_folder, "manifest": read_table, "mvtec": read_mvtec, "visa": read_visa}
)


def detect_layout(root: Path) -> str:
    """``visa``, ``mvtec``, ``manifest`` or ``folder``: the first, in this order, that ``root`` has the files of.

    Raises:
        DataError: the root does not exist or has none of them; the message names what was looked for.
    """
    root = root.resolve()
    if (root / SPLIT_FILE).is_file():
        return "visa"
    if root.is_dir() and find_categories(root):
        return "mvtec"
    if find_table(root) is not None:
        return "manifest"
    if root.is_dir() and next(walk_images(root), None) is not None:
        return "folder"
    if not root.exists():
        raise DataError(f"{root}: no such folder; check the dataset's root")
    tables = " or ".join(FILE_NAMES)
    raise DataError(
        f"{root}: no known layout; looked for {SPLIT_FILE} (visa), <category>/test/<defect>/ (mvtec), "
        f"{tables} (manifest) and any image (folder)"
    )


def list_dataset(root: Path, layout: str) -> Listing:
    """What the reader of ``layout`` finds below ``root``; ``auto`` detects the layout first.

    Raises:
        ConfigError: there is no such layout.
        DataError: ``root`` does not have that layout.
    """
    name = detect_layout(root) if layout == "auto" else layout
    if name not in READERS:
        raise ConfigError(f"no layout '{layout}'; {nearest(layout, ['auto', *READERS])}")
    if not root.exists():
        raise DataError(f"{root}: no such folder; check the dataset's root")
    return READERS[name](root.resolve())
