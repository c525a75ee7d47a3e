"""What can be wrong with a listing as a whole, and between records.

:mod:`cascade.storage.datasets.inspection` lists every kind of problem.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from cascade.storage.datasets.listing import Entry
from cascade.storage.datasets.manifest import MEAN, ImageRecord
from cascade.storage.datasets.masks import image_stem, stem_of
from cascade.storage.datasets.problems import Problem
from cascade.storage.errors import DataError
from cascade.storage.names import safe_path


def check_listing(entries: Sequence[Entry]) -> list[Problem]:
    """Problems that show without opening a file."""
    if not entries:
        return [Problem("error", "empty", ".", "no images; check the root and the layout")]
    return [*_check_names(entries), *_check_paths(entries), *_check_stems(entries)]


def check_categories(records: Iterable[ImageRecord]) -> list[Problem]:
    """Which metrics the images of each category leave without a value."""
    by_category: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_category[record.category].append(record)
    problems = []
    for category, members in by_category.items():
        labels = {record.label for record in members}
        if labels == {None}:
            message = "no labels; scores and maps are written, metrics stay empty"
            problems.append(Problem("warning", "unlabelled", category, message))
            continue
        if 1 not in labels:
            message = "no defective image; its metrics stay empty"
            problems.append(Problem("warning", "no-defective", category, message))
        elif 0 not in labels:
            message = "no good image; its image metrics stay empty"
            problems.append(Problem("warning", "no-normal", category, message))
        defective = [record for record in members if record.label == 1]
        bare = sum(record.mask_path is None for record in defective)
        if bare:
            message = f"{bare} of {len(defective)} defective images have no mask; its pixel metrics stay empty"
            problems.append(Problem("warning", "no-mask", category, message))
    return problems


def check_colours(entries: Iterable[Entry], colours: Mapping[str, int]) -> list[Problem]:
    """What images of one or two colours may be; ``colours`` says by path which they are."""
    by_name: dict[str, str] = {}
    for entry in entries:
        if entry.path not in colours:
            by_name.setdefault(image_stem(entry.path.rpartition("/")[2]), entry.path)
    problems = []
    for entry in entries:
        path, number = entry.path, colours.get(entry.path)
        twin = by_name.get(image_stem(path.rpartition("/")[2]))
        # Where labels are known, masks are too, and every folder may have an image of this name.
        if number == 2 and entry.label is None and twin is not None:
            message = f"has two colours and the name of {twin}, as its mask has, but is listed as an image"
            problems.append(Problem("error", "mask-as-image", path, f"{message}; move it away", path))
        elif number is not None:
            told = "one colour; restore it" if number == 1 else "two colours, as a mask has; move it away"
            problems.append(Problem("warning", "few-colours", path, f"has {told}, unless it is a photograph"))
    return problems


def check_duplicates(records: Iterable[ImageRecord]) -> list[Problem]:
    """A problem for each image with the bytes of an earlier one, in order of path."""
    by_bytes: defaultdict[str, list[ImageRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.path):
        by_bytes[record.image_id].append(record)
    problems = []
    for first, *copies in by_bytes.values():
        for copy in copies:
            if copy.path == first.path:
                continue
            if _truth(copy) != _truth(first):
                message = f"same bytes as {first.path}, but another label or mask; remove the wrong one"
                problems.append(Problem("error", "duplicate", copy.path, message))
            else:
                where = "" if copy.split == first.split else ", which is in the other split"
                message = f"same bytes as {first.path}{where}; it counts twice"
                problems.append(Problem("warning", "duplicate", copy.path, message))
    return problems


def _check_names(entries: Iterable[Entry]) -> list[Problem]:
    """Categories and defects become folders of an export, and a category stands beside the means in every table."""
    problems = []
    categories = {entry.category: entry for entry in reversed(list(entries))}
    defects = {entry.defect: entry for entry in reversed(list(entries)) if entry.defect}
    for what, names in (("category", categories), ("defect", defects)):
        for name, entry in names.items():
            fault = _fault(name, what)
            if fault is None and what == "category" and name == MEAN:
                fault = f"category '{MEAN}' would be taken for the mean of all; choose another name"
            if fault is not None:
                problems.append(Problem("error", "name", entry.path, fault))
    return problems


def _fault(name: str, what: str) -> str | None:
    try:
        safe_path(name, what, nested=True)
    except DataError as error:
        return str(error)
    return None


def _check_paths(entries: Iterable[Entry]) -> list[Problem]:
    problems = []
    seen: set[str] = set()
    by_folded: dict[str, str] = {}
    for entry in entries:
        if entry.path in seen:
            problems.append(Problem("error", "repeated-path", entry.path, "listed twice; remove one"))
        seen.add(entry.path)
        for path in filter(None, (entry.path, entry.mask_path)):
            other = by_folded.setdefault(path.casefold(), path)
            if other != path:
                message = f"differs from {other} in case only; other systems cannot hold both"
                problems.append(Problem("warning", "case-collision", path, message))
    return problems


def _check_stems(entries: Iterable[Entry]) -> list[Problem]:
    """Images of which one may be the mask or another form of another, by their names."""
    by_stem: defaultdict[str, list[Entry]] = defaultdict(list)
    by_name: dict[str, Entry] = {}
    for entry in entries:
        by_stem[stem_of(entry.path)].append(entry)
        by_name.setdefault(stem_of(entry.path.rpartition("/")[2]), entry)
    problems = []
    for members in list(by_stem.values()):
        first = members[0].path
        name = first.rpartition("/")[2]
        if image_stem(name) != stem_of(name) and image_stem(name) in by_name:
            owner = by_stem.get(image_stem(first), [by_name[image_stem(name)]])[0].path
            message = f"has the name of a mask of {owner}, but is listed as an image; move it away"
            problems.append(Problem("error", "mask-as-image", first, message, first))
        if len(members) > 1 and all(entry.mask_path is None for entry in members):
            message = f"has the name of {first}; if one is the mask or a copy of the other, move it away"
            unsure = any(entry.label == 1 for entry in members)
            problems += [
                Problem("error" if unsure else "warning", "same-name", entry.path, message)
                for entry in members[1:]
                if entry.path.casefold() != first.casefold()
            ]
    return problems


def _truth(record: ImageRecord) -> tuple[int | None, str | None]:
    return record.label, record.mask_id if record.label == 1 else None
