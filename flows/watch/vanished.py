"""What the baseline has and the run has not: a metric cannot fall where nothing is left to measure it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from cascade.flows.run.results import FinishedRun
from cascade.tasks.tables.evidence import ScoredImage
from cascade.tasks.tables.matching import Matching

_KINDS = {1: "defective", 0: "good"}


@dataclass(frozen=True)
class Vanished:
    """One line for each thing that is gone.

    Attributes:
        whole: steps, categories, all good or all defective images of a category, and metrics; these close the gate.
        part: categories that have lost some images.
    """

    whole: tuple[str, ...]
    part: tuple[str, ...]


def find_vanished(
    run: FinishedRun,
    baseline: FinishedRun,
    baseline_images: Sequence[ScoredImage],
    matching: Matching,
    table: pd.DataFrame,
) -> Vanished:
    """What a run lacks of its baseline.

    Args:
        run: the newer run.
        baseline: what it is held against.
        baseline_images: its images.
        matching: which of them the run has.
        table: of the metrics, see ``cascade.tasks.tables.comparison.Paired``.
    """
    whole = [f"step '{step}' is not in the run" for step in baseline.steps() if step not in run.steps()]
    part: list[str] = []
    for category in sorted({image.category for image in baseline_images}):
        had = [image for image in baseline_images if image.category == category]
        lost = [image for image in matching.only_baseline if image.category == category]
        gone = list(_whole_kinds(category, had, lost)) or list(_metrics(category, table))
        whole += gone
        if lost and not gone:
            part.append(f"{category}: {_share(lost, had)} are not in the run")
    return Vanished(tuple(whole), tuple(part))


def _whole_kinds(category: str, had: Sequence[ScoredImage], lost: Sequence[ScoredImage]) -> Iterator[str]:
    """A line if a category has lost all its images, or all that are good or defective."""
    if len(lost) == len(had):
        yield f"{category}: none of the baseline's {_counted(len(had), '')} is in the run"
        return
    for label, kind in _KINDS.items():
        before, gone = _of_label(had, label), _of_label(lost, label)
        if before and before == gone:
            yield f"{category}: none of the baseline's {_counted(before, kind)} is in the run"


def _metrics(category: str, table: pd.DataFrame) -> Iterator[str]:
    """A line if metrics of a category are only in the baseline, or on other images than the run's."""
    own = table[table["category"] == category]
    for verdict, why in (("vanished", "not in the run"), ("not comparable", "defined on other images than the run's")):
        metrics = list(own.loc[own["verdict"] == verdict, "metric"])
        if metrics:
            yield f"{category}: {', '.join(metrics)}: in the baseline, {why}"


def _share(lost: Sequence[ScoredImage], had: Sequence[ScoredImage]) -> str:
    kinds = ", ".join(f"{_of_label(lost, label)} of {_of_label(had, label)} {kind}" for label, kind in _KINDS.items())
    return f"{len(lost)} of the baseline's {_counted(len(had), '')} ({kinds})"


def _of_label(images: Sequence[ScoredImage], label: int) -> int:
    return sum(image.label == label for image in images)


def _counted(count: int, kind: str) -> str:
    return " ".join(filter(None, (str(count), kind, "image" if count == 1 else "images")))
