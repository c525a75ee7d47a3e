"""Masks beside their images: DAGM, KolektorSDD, KolektorSDD2, and folders of one's own like them.

    Class1/Test/0001.PNG   Class1/Test/Label/0001_label.PNG        DAGM
    test/20000.png         test/20000_GT.png                       KolektorSDD2
    kos01/Part0.jpg        kos01/Part0_label.bmp                   KolektorSDD
    a.png                  a_mask.png

A mask ends in ``_mask``, ``_gt`` or ``_label``, in any case, and lies in its image's folder or in a mask folder in it.
An image without a mask, or with an empty one, is normal; where a folder is called ``good``, ``ok`` or ``normal``, the
folders name the kind of defect instead, and a defective image needs its mask. Folders called ``train`` and ``test`` are
the splits, and what they lie in is the category; without them all of it is one category, and ``test``.
"""

from __future__ import annotations

from collections import defaultdict

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.listing import Entry, Listing, any_normal, named_or_marked
from cascade.storage.datasets.manifest import Split
from cascade.storage.datasets.masks import beside, image_stem, is_mask_folder, stem_of
from cascade.storage.datasets.problems import Problem
from cascade.storage.errors import DataError

_SPLITS: dict[str, Split] = {"train": "train", "test": "test"}


def read_beside(tree: FileTree) -> Listing:
    """Every image of the tree, by the rules of this module.

    Raises:
        DataError: no mask lies beside an image.
    """
    owners = beside(tree.images)
    if not owners:
        raise DataError(f"{tree.root}: no mask beside an image (layout beside); name the right root or layout")
    masks_of: defaultdict[str, list[str]] = defaultdict(list)
    for mask, stem in owners.items():
        masks_of[stem].append(mask)
    photographs = [path for path in tree.images if not _is_mask(path)]
    orphans = [path for path in tree.images if _is_mask(path) and path not in owners]
    problems = [
        Problem("error", "orphan-mask", path, "no image goes with this mask; restore the image, or remove the mask")
        for path in orphans
    ]
    places = {path: _place(tree, path) for path in photographs}
    named = any_normal(inner for _, _, inner in places.values())
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    entries = []
    for path, (category, split, inner) in places.items():
        masks = masks_of.get(stem_of(path), [])
        by_stem[stem_of(path)].append(path)
        if len(masks) > 1:
            message = f"has {len(masks)} masks, {' and '.join(masks)}; keep the right one"
            problems.append(Problem("error", "two-masks", path, message, path))
        own = masks[0] if masks else None
        kind, slash, _ = inner.partition("/")
        label, defect = named_or_marked(tree.root, kind if slash and named else None, own, named=named, masked=True)
        entries.append(Entry(path, category, split, defect, label, own, mask_required=True))
    for stem, takers in by_stem.items():
        if len(takers) > 1 and stem in masks_of:
            message = f"is the mask of {' and of '.join(takers)}; keep one of these images"
            problems.append(Problem("error", "shared-mask", masks_of[stem][0], message))
    return Listing(tree.root, "beside", tuple(entries), tuple(problems), frozenset(tree.images))


def _is_mask(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return is_mask_folder(folder.rpartition("/")[2]) or image_stem(name) != stem_of(name)


def _place(tree: FileTree, path: str) -> tuple[str, Split, str]:
    """Category, split, and the path below the split's folder."""
    parts = path.split("/")
    for depth, part in enumerate(parts[:-1]):
        if part.casefold() in _SPLITS:
            return "/".join(parts[:depth]) or tree.name, _SPLITS[part.casefold()], "/".join(parts[depth + 1 :])
    return tree.name, "test", path
