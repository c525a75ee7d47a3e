"""Which layout a folder has, and the reader for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from cascade.storage.datasets.beside import read_beside
from cascade.storage.datasets.files import FileTree, list_files
from cascade.storage.datasets.folder import mask_folders, read_folder
from cascade.storage.datasets.listing import Listing
from cascade.storage.datasets.masks import beside
from cascade.storage.datasets.meta import META_FILE, read_meta
from cascade.storage.datasets.mvtec import has_categories, read_mvtec
from cascade.storage.datasets.real_iad import has_lists, read_real_iad
from cascade.storage.datasets.skipped import skipped
from cascade.storage.datasets.table import FILE_NAMES, find_table, read_table
from cascade.storage.datasets.visa import SPLIT_FILE, read_visa
from cascade.storage.errors import ConfigError, DataError, nearest

TABLE = "manifest"
READERS: Mapping[str, Callable[[FileTree], Listing]] = MappingProxyType(
    {
        "beside": read_beside,
        "folder": read_folder,
        "meta": read_meta,
        "mvtec": read_mvtec,
        "real_iad": read_real_iad,
        "visa": read_visa,
    }
)
LAYOUTS = (*READERS, TABLE)
_SHOWN = 3


def detect_layout(root: Path, *, follow_links: bool = False) -> str:
    """``visa``, ``real_iad``, ``mvtec``, ``manifest``, ``meta``, ``beside`` or ``folder``: the first that ``root`` has.

    Raises:
        DataError: the root does not exist or has none of them; the message names what was looked for.
    """
    if root.is_file():
        return _of_file(root)
    return _of_tree(list_files(_existing(root), follow_links=follow_links))


def list_dataset(root: Path, layout: str, *, follow_links: bool = False) -> Listing:
    """What the reader of ``layout`` finds below ``root``; ``auto`` detects the layout first.

    Raises:
        ConfigError: there is no such layout.
        DataError: ``root`` does not have that layout.
    """
    if layout not in ("auto", *LAYOUTS):
        raise ConfigError(f"no layout '{layout}'; {nearest(layout, ['auto', *LAYOUTS])}")
    folder = _existing(root)
    if root.is_file() or layout == TABLE:
        _of_file(root)
        return replace(read_table(root.absolute()), follow_links=follow_links)
    tree = list_files(folder, follow_links=follow_links)
    name = _of_tree(tree) if layout == "auto" else layout
    if name == TABLE:
        return replace(read_table(root.absolute()), follow_links=follow_links)
    listing = READERS[name](tree)
    problems = (*tree.problems, *listing.problems, *skipped(tree, listing))
    return replace(listing, problems=problems, follow_links=follow_links)


def _existing(root: Path) -> Path:
    if not root.exists():
        raise DataError(f"{root}: no such folder; check the dataset's root")
    return root.resolve()


def _of_file(root: Path) -> str:
    if root.is_file() and find_table(root) is None:
        raise DataError(f"{root}: neither a folder nor a table; give a folder, or a .csv or .parquet file")
    return TABLE


def _of_tree(tree: FileTree) -> str:
    if SPLIT_FILE in tree.files:
        return "visa"
    if has_lists(tree):
        return "real_iad"
    if has_categories(tree):
        return "mvtec"
    if any(name in tree.files for name in FILE_NAMES):
        return TABLE
    if META_FILE in tree.files and tree.images:
        return "meta"
    if tree.images:
        return "beside" if not mask_folders(tree) and beside(tree.images) else "folder"
    faults = [problem for problem in tree.problems if problem.severity == "error"]
    if faults:
        first, more = faults[0], len(faults) - 1
        rest = f" (and {more} more)" if more else ""
        raise DataError(f"{tree.root}: no images; {first.path}: {first.message}{rest}")
    tables = " or ".join(FILE_NAMES)
    found = [each for each in skipped(tree, Listing(tree.root, "", ())) if each.severity != "note"]
    lines = [f"{problem.path}: {problem.message}" for problem in found[:_SHOWN]]
    raise DataError(
        f"{tree.root}: no known layout; looked for {SPLIT_FILE} (visa), realiad_jsons/ (real_iad), "
        f"<category>/test/<defect>/ (mvtec), {tables} (manifest), {META_FILE} (meta), masks beside images (beside) "
        f"and any image (folder)" + "".join(f"; {each}" for each in lines)
    )
