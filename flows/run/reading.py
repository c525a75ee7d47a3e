"""The images of an experiment: read, checked, and what has to be said of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cascade.configs.schema import DatasetConfig, Experiment
from cascade.flows.run.words import check_words, words_used
from cascade.localisers import localiser_class
from cascade.storage.artefacts import Artefact, Store
from cascade.storage.datasets import (
    ImageRecord,
    LeftOut,
    Manifest,
    Marked,
    Pixels,
    Problem,
    Report,
    Rules,
    Split,
    inspect_dataset,
    summarised,
)
from cascade.storage.errors import ConfigError, DataError
from cascade.storage.keys import StageKey
from cascade.storage.names import printable

_CHECK_VERSION = 4


@dataclass(frozen=True)
class Images:
    """What an experiment is about to look at.

    Attributes:
        manifest: the chosen images.
        report: on the whole dataset, with warnings about the chosen images.
        words: what CLIP is told, by category.
        frame: side of the evaluation frame that the report is about; None where it is the image.
    """

    manifest: Manifest
    report: Report
    words: Mapping[str, str]
    frame: int | None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The images that could not be used."""
        return self.report.left_out


def read_images(experiment: Experiment, store: Path, *, skip_bad: bool = False) -> Images:
    """The images that the configuration selects; those that the store has not seen are decoded once to check them.

    With ``skip_bad``, images that cannot be used are left out.

    Raises:
        ConfigError: there is no dataset of that name, or no such category.
        DataError: something in it would make the run wrong, or nothing is selected.
    """
    dataset, path, frame = experiment.dataset, dataset_path(experiment), _frame(experiment)

    def known(record: ImageRecord) -> Pixels | None:
        return _pixels(seen[_pair(record)]) if _pair(record) in seen else None

    def chosen(record: ImageRecord) -> bool:
        wanted = dataset.categories is None or record.category in dataset.categories
        return record.split == dataset.split and wanted and record.category not in dataset.exclude

    seen = _checked(store, frame).done()
    report = inspect_dataset(
        path,
        rules_of(dataset),
        name=dataset.name,
        decode=chosen,
        known=known,
        frame=frame,
        select=lambda whole: _selected(whole, dataset),
        skip_bad=skip_bad,
    )
    report.require_ok(path)
    manifest = _selected(report.manifest, dataset)
    if not len(manifest):
        raise DataError(f"{path}: {_nothing(report.manifest, dataset)}")
    words = words_used(dataset.words, report.manifest)
    if asks_in_words(experiment):
        report = report.adding(check_words(dataset.words, manifest))
    return Images(manifest, report, {category: words[category] for category in manifest.categories}, frame)


def asks_in_words(experiment: Experiment) -> bool:
    """Whether the localiser is told what an image shows."""
    return localiser_class(experiment.localise.method).WORDS


def inspect_all(experiment: Experiment) -> Report:
    """Every problem of an experiment's whole dataset, its words and its evaluation frame; every pixel is looked at.

    Raises:
        ConfigError: there is no dataset of that name, or words for a category that it does not have.
        DataError: its files cannot even be listed.
    """
    dataset = experiment.dataset
    report = inspect_dataset(
        dataset_path(experiment),
        rules_of(dataset),
        name=dataset.name,
        decode=True,
        frame=_frame(experiment),
    )
    if not len(report.manifest):
        return report
    words_used(dataset.words, report.manifest)
    problems = check_words(dataset.words, report.manifest) if asks_in_words(experiment) else []
    if not len(_selected(report.manifest, dataset)):
        problems.append(Problem("error", "nothing-chosen", ".", _nothing(report.manifest, dataset)))
    return report.adding(problems)


def remember_checked(images: Images, store: Path) -> None:
    """Note in the store what the pixels of sound images and masks are like, so that no later run decodes them."""
    artefact = _checked(store, images.frame)
    artefact.done()
    found = {
        _pair(record): images.report.pixels[record.path]
        for record in images.report.manifest
        if record.path in images.report.pixels
    }
    fresh = artefact.missing(found)
    if fresh:
        with artefact.writing(fresh, {}):
            for pair in sorted(fresh):
                own, marked = found[pair], found[pair].marked
                shares = marked and [marked.share, marked.border]
                artefact.write(pair, {}, asdict(own) | {"marked": shares})


def lines_of(problems: Iterable[Problem]) -> tuple[str, ...]:
    """One line for each problem; those beyond the first few of a kind are counted."""
    return tuple(
        printable(f"{problem.path}: {problem.message}") + (f" (and {more} more)" if more else "")
        for problem, more in summarised(problems)
    )


def dataset_path(experiment: Experiment) -> Path:
    """Where the dataset is. Raises ``ConfigError`` if it is not named, or not there."""
    path = experiment.dataset.path
    if path is None:
        raise ConfigError("no dataset; give --dataset PATH, or set dataset.path")
    if not path.exists():
        raise ConfigError(f"no dataset at {path}; {_sibling_hint(path)}")
    return path


def rules_of(dataset: DatasetConfig) -> Rules:
    """How the configuration says that a dataset is read."""
    return Rules(dataset.layout, dataset.follow_links, dataset.full_scale, dataset.large_masks)


def _selected(manifest: Manifest, dataset: DatasetConfig) -> Manifest:
    return manifest.select(dataset.categories, dataset.exclude, dataset.split)


def _nothing(manifest: Manifest, dataset: DatasetConfig) -> str:
    other: Split = "train" if dataset.split == "test" else "test"
    there = len(manifest.select(dataset.categories, dataset.exclude, other))
    hint = f"; --set dataset.split={other} takes the {there} in '{other}'" if there else ""
    return f"no image in split '{dataset.split}' of the chosen categories{hint}"


def _frame(experiment: Experiment) -> int | None:
    return None if experiment.score.frame == "native" else experiment.score.frame


def _checked(store: Path, frame: int | None) -> Artefact:
    return Store(store).artefact(StageKey("check", _CHECK_VERSION, {"frame": frame}))


def _pixels(stored: Mapping[str, Any]) -> Pixels:
    return Pixels(**{**stored, "marked": stored["marked"] and Marked(*stored["marked"])})


def _pair(record: ImageRecord) -> str:
    return f"{record.digest}/{record.mask_id}/{record.label}"


def _sibling_hint(path: Path) -> str:
    beside = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean '{path.parent / close[0]}'?" if close else "give the path of a folder or table"
