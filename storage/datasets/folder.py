"""A folder of images of one's own, with or without labels and masks.

Masks lie in a folder called ``masks``, ``ground_truth`` or the like (``masks.MASK_FOLDERS``). The images lie in
``images/`` next to it, or straight in the root:

    images/a.png   masks/a.png        or          good/a.png   scratch/b.png   masks/scratch/b_mask.png

Upper or lower case of these names does not matter. A mask has the image's path below the mask folder, with any
extension, and ``_mask`` after the stem or not.
What an image is depends on what is there, in this order:

1. One of the image sub-folders is called ``good``, ``ok`` or ``normal``: the first sub-folder names the kind of
   defect. With a mask folder, a defective image without a mask is then an error.
2. There is a mask folder: the mask tells. No mask or an empty one is normal, else the image is defective, and
   its kind is the first sub-folder's name, or ``bad`` straight in the folder.
3. Neither: not labelled. Sub-folders of dates or cameras mean nothing then.

Images beside the sub-folders of rule 1 follow rules 2 and 3. The whole is one category, named like the root, and
all of it is ``test``.
"""

from __future__ import annotations

from collections.abc import Iterable

from cascade.storage.datasets.files import FileTree
from cascade.storage.datasets.listing import Entry, Listing, any_normal, named_or_marked, names_normal
from cascade.storage.datasets.masks import MaskIndex, is_mask_folder
from cascade.storage.datasets.problems import Problem


def mask_folders(tree: FileTree) -> list[str]:
    """Folders straight in the root that hold masks; a folder is none if nothing but it holds images."""
    found = [name for name in sorted(tree.top_folders) if is_mask_folder(name)]
    return found if sum(len(tree.top_folders[name]) for name in found) < len(tree.images) else []


def read_folder(tree: FileTree) -> Listing:
    """Every image of the tree, by the rules of this module."""
    folders = mask_folders(tree)
    problems: list[Problem] = []
    if len(folders) > 1:
        message = f"the masks are in {' and in '.join(folders)}; keep one of these folders"
        problems.append(Problem("error", "two-mask-folders", ".", message))
    base = next((f"{name}/" for name in tree.top_folders if name.casefold() == "images"), "") if folders else ""
    masks = {path[len(folder) + 1 :]: path for folder in folders[:1] for path in tree.top_folders[folder]}
    inners = {
        path[len(base) :]: path
        for path in tree.images
        if path.startswith(base) and path.partition("/")[0] not in folders and not _in_mask_folder(path)
    }
    index, named = MaskIndex(masks), any_normal(inners)
    entries = []
    for inner, path in inners.items():
        kind, slash, _ = inner.partition("/")
        mask = index.take(inner, path)
        label, defect = named_or_marked(tree.root, kind if slash else None, mask, named=named, masked=bool(folders))
        entries.append(Entry(path, tree.name, "test", defect, label, mask, mask_required=bool(folders)))
    # Where no mask means good, an image whose mask has another name would be good in silence.
    problems += index.problems(orphan="warning" if named else "error")
    return Listing(
        tree.root,
        "folder",
        tuple(entries),
        (*problems, *_nested_masks(tree, folders), *(() if named else _nested_labels(inners, base))),
        frozenset([*masks.values(), *inners.values(), *(path for path in tree.images if _in_mask_folder(path))]),
    )


def _in_mask_folder(path: str) -> bool:
    return any(is_mask_folder(part) for part in path.split("/")[:-1])


def _nested_masks(tree: FileTree, folders: list[str]) -> list[Problem]:
    """Mask folders that :func:`read_folder` does not read."""
    found: set[str] = set()
    for path in tree.images:
        parts = path.split("/")[:-1]
        if parts and parts[0] not in folders:
            found.update("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if is_mask_folder(part))
    message = "masks are read from the top folder only; move them there or use this folder's parent"
    return [Problem("warning", "nested-masks", folder, message) for folder in sorted(found)]


def _nested_labels(inners: Iterable[str], base: str) -> list[Problem]:
    """Folders of normal images that are too deep to name labels."""
    found: set[str] = set()
    for path in inners:
        parts = path.split("/")[:-1]
        found.update("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if names_normal(part))
    message = (
        "names labels only straight in the dataset; give the folder above it as the dataset, or call it "
        "<category>/test/good/"
    )
    return [Problem("warning", "nested-labels", f"{base}{folder}", message) for folder in sorted(found)]
