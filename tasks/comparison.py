"""Two runs on the same images: paired differences of every metric, and the images that lost most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cascade.metrics import adjusted_p_values, p_value, percentile_intervals
from cascade.storage.artefacts import Artefact
from cascade.tasks.aggregate import MEAN, METRICS
from cascade.tasks.uncertainty import (
    Evidence,
    ScoredImage,
    category_weights,
    mean_of,
    read_evidence,
)

Verdict = Literal["improved", "fell", "unchanged", "appeared", "vanished", "not comparable"]
COLUMNS = (
    "category",
    "metric",
    "baseline",
    "run",
    "difference",
    "low",
    "high",
    "p_value",
    "p_adjusted",
    "images",
    "verdict",
)
WORST_COLUMNS = ("category", "path", "image_id", "baseline", "run", "difference")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Scored:
    """The images of a run, and where their histograms are."""

    scores: Artefact
    images: tuple[ScoredImage, ...]


@dataclass(frozen=True)
class Matching:
    """Which images two runs share, by category and image.

    Attributes:
        pairs: the image in the run and in the baseline, ordered by category and image.
        only_run: images that the baseline does not have.
        only_baseline: images that the run does not have.
    """

    pairs: tuple[tuple[ScoredImage, ScoredImage], ...]
    only_run: tuple[ScoredImage, ...]
    only_baseline: tuple[ScoredImage, ...]


@dataclass(frozen=True)
class Paired:
    """The numbers of a comparison.

    Attributes:
        table: columns ``COLUMNS``, one row for each category and metric that either run has, and the mean. Values and
            difference (run minus baseline) are those of the shared images; ``images`` counts them. The mean is over
            the categories that both runs have a value for. ``p_value`` judges a row alone, ``p_adjusted`` a category
            among all categories with that metric; the mean has none. Where only one run has a value, or they share no
            image of a category ("not comparable"), the values are those of all images, and the rest is missing.
        worst: columns ``WORST_COLUMNS``, the shared defective images whose own pixel AP fell, the largest loss first.
    """

    table: pd.DataFrame
    worst: pd.DataFrame


def match_images(run: Sequence[ScoredImage], baseline: Sequence[ScoredImage]) -> Matching:
    """Pair images of the same category and bytes; copies of an image are paired one by one, in the order of paths."""
    own, other = _numbered(run), _numbered(baseline)
    return Matching(
        pairs=tuple((own[name], other[name]) for name in sorted(own.keys() & other.keys())),
        only_run=tuple(own[name] for name in sorted(own.keys() - other.keys())),
        only_baseline=tuple(other[name] for name in sorted(other.keys() - own.keys())),
    )


def compare_paired(
    run: Scored, baseline: Scored, matching: Matching, step: str, *, resamples: int, seed: int, level: float
) -> Paired:
    """Difference of every metric of one step, with a percentile interval and two-sided bootstrap p-values.

    A resample draws the same images for both runs, so that what makes an image hard for both leaves the difference.
    Strata and weights are those of ``cascade.tasks.uncertainty``; an image whose label differs is a stratum of its own
    kind.

    Raises ``StoreError`` if a store lacks some of the images.
    """
    rows: list[_Row] = []
    worst: list[dict[str, Any]] = []
    shared: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for category in sorted({image.category for image in (*run.images, *baseline.images)}):
        pairs = [pair for pair in matching.pairs if pair[0].category == category]
        draws = _undefined(resamples), _undefined(resamples)
        if pairs:
            own = read_evidence(run.scores, [pair[0] for pair in pairs], [step])
            other = read_evidence(baseline.scores, [pair[1] for pair in pairs], [step])
            weights = category_weights(category, 3 * own.labels + other.labels, resamples, seed)
            draws = _defined_in_both(own.resampled(weights)[0], other.resampled(weights)[0])
            worst += _losses(pairs, own, other)
        whole = draws[0][0], draws[1][0]
        if np.isnan(whole[0]).any():
            whole = _whole(run, category, step), _whole(baseline, category, step)
        shared.append(draws)
        rows += _rows(category, draws, whole, len(pairs), level)
    cells = _with_adjusted(rows)
    mean = mean_of([own for own, _ in shared]), mean_of([other for _, other in shared])
    cells += [row.cells for row in _rows(MEAN, mean, (mean[0][0], mean[1][0]), len(matching.pairs), level)]
    table = pd.DataFrame(cells, columns=list(COLUMNS))
    losses = pd.DataFrame(worst, columns=list(WORST_COLUMNS)).sort_values("difference", kind="stable")
    return Paired(table, losses.reset_index(drop=True))


def _numbered(images: Sequence[ScoredImage]) -> dict[tuple[str, str, int], ScoredImage]:
    seen: Counter[tuple[str, str]] = Counter()
    numbered = {}
    for image in sorted(images, key=lambda each: each.path):
        name = image.category, image.image_id
        numbered[(*name, seen[name])] = image
        seen[name] += 1
    return numbered


def _whole(side: Scored, category: str, step: str) -> NDArray[np.float64]:
    """The metrics of all images that a run has of a category, [metrics]."""
    own = [image for image in side.images if image.category == category]
    if not own:
        return np.full(len(METRICS), np.nan)
    rows: NDArray[np.float64] = read_evidence(side.scores, own, [step]).resampled(np.ones((1, len(own))))[0, 0]
    return rows


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of the table, and its resampled differences [1 + R] if the runs can be compared there."""

    cells: dict[str, Any]
    differences: NDArray[np.float64] | None


def _rows(
    category: str,
    draws: tuple[NDArray[np.float64], NDArray[np.float64]],
    whole: tuple[NDArray[np.float64], NDArray[np.float64]],
    images: int,
    level: float,
) -> list[_Row]:
    """One row for each metric that either run has.

    ``draws`` are the metrics of the shared images [1 + R, metrics], the sample itself first, NaN where either run has
    none. There the metrics of the ``whole`` category [metrics] are shown.
    """
    rows: list[_Row] = []
    for index, metric in enumerate(METRICS):
        differences = draws[0][:, index] - draws[1][:, index]
        own, other = (side[index] for side in whole)
        cells: dict[str, Any] = {"category": category, "metric": metric, "images": images}
        if not np.isnan(differences[0]):
            own, other = draws[0][0, index], draws[1][0, index]
            ((low, high),) = percentile_intervals(differences[1:, None], level)
            judged = {"difference": differences[0], "low": low, "high": high, "p_value": p_value(differences[1:])}
            rows.append(_Row(cells | judged | _values(own, other, _verdict(low, high)), differences))
        elif not (np.isnan(own) and np.isnan(other)):
            verdict: Verdict = "vanished" if np.isnan(own) else "appeared" if np.isnan(other) else "not comparable"
            rows.append(_Row(cells | _values(own, other, verdict), None))
    return rows


def _values(run: float, baseline: float, verdict: Verdict) -> dict[str, Any]:
    return {"run": run, "baseline": baseline, "verdict": verdict}


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


def _verdict(low: float, high: float) -> Verdict:
    return "fell" if high < -_ROUNDING else "improved" if low > _ROUNDING else "unchanged"


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


def _defined_in_both(
    own: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    undefined = np.isnan(own) | np.isnan(other)
    return np.where(undefined, np.nan, own), np.where(undefined, np.nan, other)


def _undefined(resamples: int) -> NDArray[np.float64]:
    return np.full((1 + resamples, len(METRICS)), np.nan)
