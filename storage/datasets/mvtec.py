"""The layout of MVTec AD, which many datasets share with small differences.

    <category>/train/good/<image>
    <category>/test/<defect>/<image>                   good, ok (BTAD) and normal are normal
    <category>/ground_truth/<defect>/<stem>_mask.png   or <stem>.png; any image format

BTAD, MPDD, DTD-Synthetic and the prepared VisA have it as it is. MVTec LOCO has a folder of masks for each image,
``ground_truth/<defect>/<stem>/000.png``. MVTec AD 2 calls the test split ``test_public``, with the ground truth in it.
Case does not matter, and folders may have folders: the first one names the defect.

A category may lie at any depth below the root, or be the root.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.listing import Entry, Listing, names_normal
from cascade.storage.datasets.manifest import Split
from cascade.storage.datasets.masks import MaskIndex, image_stem, is_mask_folder, stem_of
from cascade.storage.datasets.problems import Problem
from cascade.storage.errors import DataError

_TEST = ("test", "test_public")


@dataclass
class _Category:
    """The images of a category, each with its split and its path below the split; its masks by their folder."""

    images: list[tuple[Split, str, str]] = field(default_factory=list)
    masks: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def has_categories(tree: FileTree) -> bool:
    """Whether there is any ``<category>/test/<defect>/<image>``, or ``train`` with a folder of normal images."""
    return bool(_categories(tree))


def read_mvtec(tree: FileTree) -> Listing:
    """Every image of every category of the tree.

    Raises:
        DataError: no category is there.
    """
    categories = _categories(tree)
    if not categories:
        raise DataError(
            f"{tree.root}: no <category>/test/<defect>/ folder (layout mvtec); name the right root or layout"
        )
    times = Counter(PurePosixPath(folder).name for folder in categories)
    entries: list[Entry] = []
    problems: list[Problem] = []
    understood: set[str] = set()
    for folder, own in sorted(categories.items()):
        last = PurePosixPath(folder).name
        name = (last if times[last] == 1 else folder) or tree.name
        if len(own.masks) > 1:
            message = f"has its masks in {' and in '.join(sorted(own.masks))}; keep one of these folders"
            problems.append(Problem("error", "two-mask-folders", name, message))
        index = MaskIndex(
            {path[len(place) + 1 :]: path for place, paths in own.masks.items() for path in paths}
            if len(own.masks) == 1
            else {}
        )
        for split, inner, path in own.images:
            entries.append(_entry(name, split, inner, path, index.take(inner, path) if split == "test" else None))
        problems += index.problems(orphan="warning")
        understood.update(path for _, _, path in own.images)
        understood.update(path for paths in own.masks.values() for path in paths)
    return Listing(tree.root, "mvtec", tuple(entries), tuple(problems), frozenset(understood))


def _entry(category: str, split: Split, inner: str, path: str, mask: str | None) -> Entry:
    defect = inner.partition("/")[0]
    normal = names_normal(defect)
    return Entry(
        path=path,
        category=category,
        split=split,
        defect="good" if normal else defect,
        label=0 if normal else 1,
        mask_path=mask,
        mask_required=split == "test",
    )


def _categories(tree: FileTree) -> dict[str, _Category]:
    """By the category's folder."""
    found: defaultdict[str, _Category] = defaultdict(_Category)
    known: set[str] = set()
    for folder, split, inner, path in _images(tree):
        found[folder].images.append((split, inner, path))
        if split == "test" or names_normal(inner.partition("/")[0]):
            known.add(folder)
    for path in tree.images:
        parts = path.split("/")
        for depth, part in enumerate(parts[:-1]):
            if not _holds_masks(part, parts[-1]):
                continue
            above = depth - 1 if depth and parts[depth - 1].casefold() in _TEST else depth
            if (folder := "/".join(parts[:above])) in known:
                found[folder].masks["/".join(parts[: depth + 1])].append(path)
                break
    return {folder: own for folder, own in found.items() if folder in known}


def _images(tree: FileTree) -> Iterator[tuple[str, Split, str, str]]:
    """Category folder, split, path below the split's folder, and whole path of each image that has a defect folder."""
    for path in tree.images:
        parts = path.split("/")
        for depth, part in enumerate(parts[:-2]):
            name = part.casefold()
            if name not in (*_TEST, "train"):
                continue
            if not any(_holds_masks(folder, parts[-1]) for folder in parts[depth + 1 : -1]):
                split: Split = "train" if name == "train" else "test"
                yield "/".join(parts[:depth]), split, "/".join(parts[depth + 1 :]), path
            break


def _holds_masks(folder: str, name: str) -> bool:
    """Whether ``name`` in a folder of a split is a mask; ``label`` may be a kind of defect, too."""
    return is_mask_folder(folder) and (
        folder.casefold() not in ("label", "labels") or image_stem(name) != stem_of(name)
    )
