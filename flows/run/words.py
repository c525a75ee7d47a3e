"""The words that CLIP is told a category shows: where they come from, and whether they are words at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cascade.storage.datasets import Manifest, Problem
from cascade.storage.errors import ConfigError, nearest

_DATE = re.compile(r"(19|20)\d\d[-_. ]?(0?[1-9]|1[0-2])[-_. ]?\d{1,2}|\d{1,2}\.\d{1,2}\.(\d{4}|\d\d)")
_RUNS = re.compile(r"[^\W\d_]+|\d+")
_FOLDERS = frozenset(
    [
        *("photo", "photos", "photograph", "photographs", "picture", "pictures", "pic", "pics", "foto", "fotos"),
        *(
            "image",
            "images",
            "img",
            "imgs",
            "bild",
            "bilder",
            "aufnahmen",
            "frame",
            "frames",
            "scan",
            "scans",
            "file",
            "files",
            "capture",
        ),
        *("data", "dataset", "datasets", "set", "test", "tests", "train", "val", "validation", "input", "inputs"),
        *("new", "neu", "neuer", "old", "copy", "folder", "ordner", "directory", "dir", "untitled", "tmp", "temp"),
        *("class", "category", "cat", "part", "object", "item", "sample", "samples", "batch", "run", "default", "misc"),
        *(
            "camera",
            "cam",
            "line",
            "station",
            "export",
            "output",
            "results",
            "dsc",
            "dcim",
            "png",
            "jpg",
            "jpeg",
            "tif",
            "tiff",
            "bmp",
            "my",
            "our",
            "the",
            "of",
        ),
    ]
)
"""What folders are called that say nothing of what they show."""
_STATES = frozenset(
    [
        *("good", "ok", "normal", "flawless", "perfect", "bad", "ng", "damaged", "damage", "broken", "defect"),
        *("defects", "defective", "faulty", "abnormal", "anomaly", "anomalies", "anomalous", "reject", "rejects"),
    ]
)
"""The sentences say themselves whether something is wrong."""


def words_used(words: Mapping[str, str], manifest: Manifest) -> dict[str, str]:
    """What CLIP is told of each category: ``words`` where they name it, else the category's own name.

    Raises:
        ConfigError: ``words`` names a category that is not in the manifest, or says nothing of one.
    """
    for category, told in words.items():
        if not told.strip():
            raise ConfigError(f"dataset.words: nothing is said of '{category}'; say what it shows")
        if category not in manifest.categories:
            raise ConfigError(f"dataset.words: no category '{category}'; {nearest(category, manifest.categories)}")
    return {category: words.get(category, category) for category in manifest.categories}


def check_words(words: Mapping[str, str], manifest: Manifest) -> list[Problem]:
    """A warning for each category without ``words`` whose name says nothing, or too much, of what it shows."""
    problems = []
    for category in manifest.categories:
        fault = None if category in words else _fault(category)
        if fault is not None:
            setting = json.dumps({category: "metal plate"}, ensure_ascii=False)
            message = (
                f"CLIP is told '{category}', the name of the folder, which {fault}; say what is shown: "
                f"--set 'dataset.words={setting}'"
            )
            problems.append(Problem("warning", "words", category, message))
    return problems


def _fault(name: str) -> str | None:
    """Why a folder's name are no words for what it shows; ``None`` if they may be."""
    runs = [run.casefold() for run in _RUNS.findall(name)]
    letters = [run for run in runs if not run.isdigit()]
    if "/" in name:
        return "is a path"
    if _DATE.search(name):
        return "has a date in it"
    if not letters:
        return "has no words in it"
    if all(run in _FOLDERS or len(run) == 1 for run in letters):
        return "says nothing of what is shown"
    if not _STATES.isdisjoint(letters):
        return "says whether something is wrong, as the sentences do"
    return None
