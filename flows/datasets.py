"""What a folder of images holds, beside what is expected of it: descriptors, recognition and differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

import yaml

from cascade.configs.datasets import Counts, KnownDataset, known_datasets, load_descriptor
from cascade.storage.atomic import replacing
from cascade.storage.datasets import Split, list_dataset
from cascade.storage.errors import ConfigError, DataError

_ENOUGH = 3
"""Categories by whose names alone a dataset is recognised, if there are all of them and no other."""


class Listed(Protocol):
    """An image, as a reader lists it or as a manifest has it."""

    @property
    def category(self) -> str:
        """Kind of object."""

    @property
    def split(self) -> Split:
        """``train`` or ``test``."""

    @property
    def label(self) -> int | None:
        """0 normal, 1 defective, None not known."""


@dataclass(frozen=True)
class Tally:
    """Numbers of images: in the training split, and by label in the test split."""

    train: int = 0
    good: int = 0
    defective: int = 0
    unlabelled: int = 0

    def __add__(self, other: Tally) -> Tally:
        """Of both together."""
        return Tally(
            self.train + other.train,
            self.good + other.good,
            self.defective + other.defective,
            self.unlabelled + other.unlabelled,
        )


@dataclass(frozen=True)
class Recognised:
    """A folder of images, by the names of its files alone.

    Attributes:
        folder: as it was given.
        layout: that it was read in.
        tallies: by category.
        known: name of the dataset of the literature that it looks like, or ``None``.
    """

    folder: Path
    layout: str
    tallies: Mapping[str, Tally]
    known: str | None


def tallied(images: Iterable[Listed]) -> dict[str, Tally]:
    """Numbers of images by category, in alphabetical order."""
    found: defaultdict[str, Tally] = defaultdict(Tally)
    names = {0: "good", 1: "defective", None: "unlabelled"}
    for image in images:
        kind = "train" if image.split == "train" else names[image.label]
        own = found[image.category]
        found[image.category] = replace(own, **{kind: getattr(own, kind) + 1})
    return dict(sorted(found.items()))


def recognise(folder: Path, layout: str = "auto") -> Recognised:
    """The layout of a folder, its categories and how many images they have; only masks that name labels are opened.

    Raises:
        ConfigError: there is no such layout.
        DataError: the folder is not there, or has no such layout.
    """
    listing = list_dataset(folder, layout)
    tallies = tallied(listing.entries)
    if not tallies:
        raise DataError(f"{folder}: no images; check the folder and the layout")
    return Recognised(folder, listing.layout, tallies, known_as(folder, tallies))


def known_as(folder: Path, categories: Iterable[str]) -> str | None:
    """Name of the dataset of the literature whose folder is called so, or that has just these categories."""
    datasets, name = known_datasets(), folder.resolve().name.lower()
    own = {_last(category) for category in categories}
    for known, descriptor in datasets.items():
        if name in descriptor.folders:
            return known
    for known, descriptor in datasets.items():
        if len(own) >= _ENOUGH and own == {each.casefold() for each in descriptor.categories}:
            return known
    return None


def expected_of(folder: Path, categories: Iterable[str], descriptor: str | None) -> KnownDataset | None:
    """The descriptor that was asked for, else that of the dataset that a folder looks like. Raises ``ConfigError``."""
    name = descriptor or known_as(folder, categories)
    return None if name is None else load_descriptor(name)


def differences(expected: KnownDataset, tallies: Mapping[str, Tally]) -> tuple[str, ...]:
    """A line for each category, and for all together, that has other numbers of images than expected.

    Numbers that are not expected of anything are not compared. A dataset without any training image gets one line on
    that, since zero-shot methods need none.
    """
    own = {_last(category): tally for category, tally in tallies.items()}
    whole = sum(tallies.values(), Tally())
    trained = [each.train for each in (*expected.categories.values(), expected.counts) if each.train]
    no_train = not whole.train and bool(trained)
    lines = []
    for category, counts in expected.categories.items():
        if category.casefold() not in own:
            lines.append(f"{category}: not here{_of(counts)}")
        elif wrong := _wrong(counts, own[category.casefold()], train=not no_train):
            lines.append(f"{category}: {wrong}")
    names = {category.casefold() for category in expected.categories}
    lines += [f"{each}: no category of it" for each in tallies if names and _last(each) not in names]
    whole_wrong = _wrong(expected.counts, whole, train=not no_train)
    if whole_wrong and not lines:
        lines.append(f"all together: {whole_wrong}")
    if no_train:
        number = f" ({expected.counts.train} expected)" if expected.counts.train else ""
        lines.append(f"no training images{number}; zero-shot methods need none")
    return tuple(lines)


def write_starter(found: Recognised, target: Path) -> Path:
    """What was recognised as a descriptor in YAML. Raises ``ConfigError`` if a file is there."""
    if target.exists():
        raise ConfigError(f"{target}: is there already; give another file with --out")
    whole = sum(found.tallies.values(), Tally())
    data = {
        "title": found.folder.resolve().name,
        "folders": [found.folder.resolve().name.lower()],
        "layout": found.layout,
        "licence": "",
        "notes": [],
        "categories": {category: _counts(tally) for category, tally in found.tallies.items()},
        "counts": _counts(whole),
    }
    text = (
        f"# What was recognised in {found.folder.resolve()}. Correct it where it is wrong, and add a licence.\n"
        f"# `cascade check DIR --descriptor {target.name}` says where a folder differs from it.\n"
        + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8")
    return target


def _counts(tally: Tally) -> dict[str, int]:
    labelled = {} if tally.unlabelled else {"good": tally.good, "defective": tally.defective}
    return {"train": tally.train, **labelled}


def _last(category: str) -> str:
    return PurePosixPath(category).name.casefold()


def _of(counts: Counts) -> str:
    numbers = [f"{value} {name}" for name, value in _expected(counts).items()]
    return f" ({', '.join(numbers)} expected)" if numbers else ""


def _expected(counts: Counts) -> dict[str, int]:
    return {name: value for name, value in counts if value is not None}


def _wrong(counts: Counts, tally: Tally, *, train: bool) -> str:
    """What of ``counts`` a tally does not have, in words; empty if it has all."""
    wrong = [
        f"{getattr(tally, name)} {name}, not {value}"
        for name, value in _expected(counts).items()
        if getattr(tally, name) != value and (train or name != "train")
    ]
    return "; ".join(wrong)
