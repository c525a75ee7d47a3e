"""Two runs on the same images: paired differences of every metric, and the images that lost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cascade.metrics import adjusted_p_values, p_values, verdict
from cascade.storage.artefacts import Artefact
from cascade.tasks.aggregate import MEAN, METRICS
from cascade.tasks.tables.evidence import Evidence, ScoredImage, read_evidence
from cascade.tasks.tables.intervals import NO_SPREAD, intervals_and_notes
from cascade.tasks.tables.matching import Matching
from cascade.tasks.tables.shared import Shared, mean_of_shared, shared_metrics

COLUMNS = (
    "category",
    "metric",
    "baseline",
    "run",
    "difference",
    "low",
    "high",
    "note",
    "p_value",
    "p_adjusted",
    "images",
    "other_truth",
    "verdict",
)
WORST_COLUMNS = ("category", "path", "image_id", "baseline", "run", "difference")
SAME = "same order"
"""Note of a difference that is 0 because both runs put all scores in the same order, so that no draw can tell them."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Scored:
    """The images of a run, where their histograms are, and of which steps, in order."""

    scores: Artefact
    images: tuple[ScoredImage, ...]
    steps: tuple[str, ...]

    def evidence(self, images: Sequence[ScoredImage], step: str) -> Evidence:
        """The evidence of some of the images for one step."""
        return read_evidence(self.scores, images, [self.steps.index(step)])


@dataclass(frozen=True)
class Paired:
    """The numbers of a comparison.

    Attributes:
        table: columns ``COLUMNS``, one row for each category and metric that either run has, and the mean. Values and
            difference (run minus baseline) are those of the shared images; ``images`` counts them, and ``other_truth``
            those whose ground truth is another one in the baseline. The mean is over the categories that both runs
            have a value for. Where ``note`` says why (``SAME``, or one of ``cascade.tasks.tables.intervals``) there is
            no interval and no ``p_value``, which judges a row alone and goes with its interval. ``p_adjusted`` judges a
            category among all categories with that metric; the mean has none. ``verdict`` is that of
            ``cascade.metrics.verdict``; or, where only one run has a value, "appeared" or "vanished", or, where they
            share no image that it can be computed on, "not comparable". Then the values are those of all images, and
            the rest is missing.
        worst: columns ``WORST_COLUMNS``, the shared defective images whose own pixel AP fell, the largest loss first.
    """

    table: pd.DataFrame
    worst: pd.DataFrame


def compare_paired(
    run: Scored,
    baseline: Scored,
    matching: Matching,
    step: str,
    *,
    margins: Mapping[str, float],
    resamples: int,
    seed: int,
    level: float,
) -> Paired:
    """Difference of every metric of one step, with a BCa interval, two-sided bootstrap p-values and a verdict.

    A resample draws the same images for both runs, so that what makes an image hard for both leaves the difference.
    Strata and weights are those of ``cascade.tasks.tables.evidence``; an image whose label differs is a stratum of its
    own kind. ``margins`` are the differences below which two runs are equal, by metric.

    Raises ``StoreError`` if a store lacks some of the images.
    """
    rows: list[_Row] = []
    worst: list[dict[str, Any]] = []
    shared: list[Shared] = []
    for category in sorted({image.category for image in (*run.images, *baseline.images)}):
        pairs = [pair for pair in matching.pairs if pair[0].category == category]
        both = None
        if pairs:
            own = run.evidence([pair[0] for pair in pairs], step)
            other = baseline.evidence([pair[1] for pair in pairs], step)
            both = shared_metrics(category, pairs, own, other, resamples, seed)
            shared.append(both)
            worst += _losses(pairs, own, other)
        rows += _rows(category, both, (run, baseline), step, level, margins)
    cells = _with_adjusted(rows)
    if shared:
        cells += [row.cells for row in _rows(MEAN, mean_of_shared(shared), (run, baseline), step, level, margins)]
    table = pd.DataFrame(cells, columns=list(COLUMNS))
    losses = pd.DataFrame(worst, columns=list(WORST_COLUMNS)).sort_values("difference", kind="stable")
    return Paired(table, losses.reset_index(drop=True))


def _whole(side: Scored, category: str, step: str) -> NDArray[np.float64]:
    """The metrics of all images that a run has of a category, [metrics]."""
    own = [image for image in side.images if image.category == category]
    if not own:
        return np.full(len(METRICS), np.nan)
    rows: NDArray[np.float64] = side.evidence(own, step).resampled(np.ones((1, len(own))))[0, 0]
    return rows


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of the table, and its differences [1 + R], the sample's first, if the runs can be compared there."""

    cells: dict[str, Any]
    differences: NDArray[np.float64] | None


def _rows(
    category: str,
    shared: Shared | None,
    whole: tuple[Scored, Scored],
    step: str,
    level: float,
    margins: Mapping[str, float],
) -> list[_Row]:
    """One row for each metric that either run has; of the ``whole`` category where they share none."""
    rows = []
    if shared is not None:
        judged = _judged(shared, level, margins)
        values = (side.value for side in shared.sides)
        for metric, own, other, cells, differences in zip(METRICS, *values, *judged, strict=True):
            if not np.isnan(own):
                place = {"category": category, "metric": metric, "images": shared.images}
                rows.append(_Row(place | {"run": own, "baseline": other} | cells, differences))
    done = {row.cells["metric"] for row in rows}
    if category == MEAN or len(done) == len(METRICS):
        return rows
    images = 0 if shared is None else shared.images
    for metric, own, other in zip(METRICS, *(_whole(side, category, step) for side in whole), strict=True):
        if metric not in done and not (np.isnan(own) and np.isnan(other)):
            found = "vanished" if np.isnan(own) else "appeared" if np.isnan(other) else "not comparable"
            place = {"category": category, "metric": metric, "images": images}
            rows.append(_Row(place | {"run": own, "baseline": other, "note": "", "verdict": found}, None))
    return sorted(rows, key=lambda row: METRICS.index(row.cells["metric"]))


def _judged(
    shared: Shared, level: float, margins: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[NDArray[np.float64]]]:
    """Of each metric the cells that judge its difference, and the differences [1 + R]."""
    difference = shared.sides[0] - shared.sides[1]
    bounds, notes = intervals_and_notes(difference, level, shared.compared, shared.parts)
    p = p_values(difference)
    cells = []
    for index, metric in enumerate(METRICS):
        low, high = bounds[index]
        note = SAME if shared.same[index] else notes[index]
        found: str = "equal" if note == SAME else "undecided"
        if note not in (SAME, NO_SPREAD):
            found = verdict(low, high, margins[metric], sure=not note)
        shown = {} if note else {"low": low, "high": high, "p_value": p[index]}
        common = {"difference": difference.value[index], "note": note, "other_truth": shared.other_truth}
        cells.append(common | shown | {"verdict": found})
    return cells, list(np.vstack([difference.value, difference.drawn]).T)


def _with_adjusted(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """The cells of all categories, with each metric's p adjusted over the categories."""
    cells = [dict(row.cells) for row in rows]
    for metric in METRICS:
        own = [(cell, row.differences) for cell, row in zip(cells, rows, strict=True) if cell["metric"] == metric]
        family = [(cell, differences) for cell, differences in own if differences is not None]
        if family:
            adjusted = adjusted_p_values(np.stack([differences for _, differences in family], axis=1))
            for (cell, _), value in zip(family, adjusted, strict=True):
                cell["p_adjusted"] = value
    return cells


def _losses(
    pairs: Sequence[tuple[ScoredImage, ScoredImage]], run: Evidence, baseline: Evidence
) -> list[dict[str, Any]]:
    own, other = run.average_precision(0), baseline.average_precision(0)
    return [
        {
            "category": image.category,
            "path": image.path,
            "image_id": image.image_id,
            "baseline": other[index],
            "run": own[index],
            "difference": own[index] - other[index],
        }
        for index, (image, _) in enumerate(pairs)
        if own[index] < other[index] - _ROUNDING
    ]
