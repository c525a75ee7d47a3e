"""A folder of images of one's own, with or without labels and masks.

Masks lie in ``masks/`` or ``ground_truth/``. The images lie in ``images/`` next to it, or straight in the root:

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

from pathlib import Path, PurePosixPath

from cascade.storage.datasets.images import ImageError, read_mask
from cascade.storage.datasets.listing import (
    UNNAMED_DEFECT,
    Entry,
    Listing,
    Problem,
    find_mask,
    index_masks,
    leaves,
    names_normal,
    orphan_masks,
    subfolders,
    walk_images,
)

_MASK_FOLDERS = ("masks", "ground_truth")


def read_folder(root: Path) -> Listing:
    """Every image at any depth below ``root`` (absolute), by the rules of this module."""
    mask_folder = _subfolder(root, _MASK_FOLDERS)
    base = root if mask_folder is None else _subfolder(root, ("images",)) or root
    masks = {} if mask_folder is None else index_masks(mask_folder)
    named = any(names_normal(child.name) for child in subfolders(base))
    entries: list[Entry] = []
    used: set[Path] = set()
    problems = _unread_folders(root, base)
    for image in walk_images(base):
        inner = PurePosixPath(image.relative_to(base).as_posix())
        if _in_mask_folder(inner):
            continue
        mask = find_mask(masks, inner)
        if mask is not None:
            used.add(mask)
        mask_path = None if mask is None else mask.relative_to(root).as_posix()
        kind = inner.parts[0] if len(inner.parts) > 1 else UNNAMED_DEFECT
        label: int | None = None
        if named and len(inner.parts) > 1:
            label = 0 if names_normal(kind) else 1
        elif mask_folder is not None:
            label = 0 if mask_path is None else label_from_mask(root, mask_path)
        entries.append(
            Entry(
                path=image.relative_to(root).as_posix(),
                category=root.name,
                split="test",
                defect="" if label is None else kind if label else "good",
                label=label,
                mask_path=mask_path,
                mask_required=mask_folder is not None,
            )
        )
    return Listing(root, tuple(entries), (*problems, *orphan_masks(root, masks, used)))


def label_from_mask(root: Path, mask_path: str) -> int | None:
    """1 when the mask marks any pixel, 0 when none, None when it cannot be read (which the checks report)."""
    if leaves(root, mask_path):
        return None
    try:
        return int(read_mask(root / mask_path).any())
    except ImageError:
        return None


def _subfolder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((child for child in subfolders(root) if child.name.casefold() in names), None)


def _in_mask_folder(inner: PurePosixPath) -> bool:
    return any(part.casefold() in _MASK_FOLDERS for part in inner.parts[:-1])


def _unread_folders(root: Path, base: Path) -> list[Problem]:
    """Folders that hold images which :func:`read_folder` passes over."""
    problems = []
    for folder in sorted(path for path in base.rglob("*") if path.is_dir()):
        relative = folder.relative_to(root).as_posix()
        if folder.is_symlink() and leaves(root, relative):
            message = "a link to a folder outside the dataset; copy the images here or use their own folder"
            problems.append(Problem("error", "escape", relative, message))
        elif folder.name.casefold() in _MASK_FOLDERS and folder.parent != root:
            message = "masks are read from the top folder only; move them there or use this folder's parent"
            problems.append(Problem("warning", "nested-masks", relative, message))
    return problems
