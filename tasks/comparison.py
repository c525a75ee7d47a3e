"""Two runs on the same images: paired differences of every metric, and the images that lost most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from storage.artefacts import Artefact
from tasks.aggregate import MEAN, METRICS
from tasks.uncertainty import (
    Evidence,
    ScoredImage,
    category_weights,
    intervals,
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
_ROUNDING = 1e-9
WORST_COLUMNS = ("category", "path", "image_id", "baseline", "run", "difference")


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
    Strata and weights are those of ``tasks.uncertainty``; an image whose label differs is a stratum of its own kind.

    Raises ``StoreError`` if a store lacks some of the images.
    """
    rows: list[_Row] = []
    worst: list[dict[str, Any]] = []
    shared: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for category in sorted({image.category for image in (*run.images, *baseline.images)}):
        pairs = [pair for pair in matching.pairs if pair[0].category == category]
        if pairs:
            own = read_evidence(run.scores, [pair[0] for pair in pairs], [step])
            other = read_evidence(baseline.scores, [pair[1] for pair in pairs], [step])
            weights = category_weights(category, 3 * own.labels + other.labels, resamples, seed)
            draws = own.resampled(weights)[0], other.resampled(weights)[0]
            shared.append(_defined_in_both(*draws))
            worst += _losses(pairs, own, other)
        else:
            draws = _alone(run, category, step), _alone(baseline, category, step)
        rows += _rows(category, draws, len(pairs), level)
    cells = _with_adjusted(rows)
    if shared:
        mean = mean_of([own for own, _ in shared]), mean_of([other for _, other in shared])
        cells += [row.cells for row in _rows(MEAN, mean, len(matching.pairs), level)]
    table = pd.DataFrame(cells, columns=list(COLUMNS))
    losses = pd.DataFrame(worst, columns=list(WORST_COLUMNS)).sort_values("difference", kind="stable")
    return Paired(table, losses.reset_index(drop=True))


def p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided bootstrap p of resampled differences [R]: twice the smaller share on either side of 0.

    The sample itself counts as one resample, so that p is never 0 (Davison & Hinkley 1997, section 4.2).
    """
    tails = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (min(tails) + 1) / (differences.size + 1)))


def adjusted_p_values(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided p of each column among all of them, [K]: how often the largest deviation of any is as large.

    Deviations are in standard errors, resample by resample, so that correlated metrics do not count twice: the
    single-step maximum of Westfall & Young (1993). The chance that any of K differences that are not there gets a p
    below 0.05 is then about 0.05.

    Args:
        differences: float64 [1 + R, K], those of the sample first.
    """
    observed, drawn = differences[0], differences[1:]
    error = drawn.std(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation, largest = np.nan_to_num([abs(observed) / error]), np.nan_to_num(abs(drawn - observed) / error)
    exceeded = (largest.max(axis=1, initial=0.0)[:, None] >= deviation).sum(axis=0)
    p: NDArray[np.float64] = (1 + exceeded) / (1 + len(drawn))
    return p


def _numbered(images: Sequence[ScoredImage]) -> dict[tuple[str, str, int], ScoredImage]:
    seen: Counter[tuple[str, str]] = Counter()
    numbered = {}
    for image in sorted(images, key=lambda each: each.path):
        name = image.category, image.image_id
        numbered[(*name, seen[name])] = image
        seen[name] += 1
    return numbered


def _alone(side: Scored, category: str, step: str) -> NDArray[np.float64]:
    """The metrics of a run's own images of a category that shares none, [1, metrics]."""
    own = [image for image in side.images if image.category == category]
    if not own:
        return np.full((1, len(METRICS)), np.nan)
    rows: NDArray[np.float64] = read_evidence(side.scores, own, [step]).resampled(np.ones((1, len(own))))[0]
    return rows


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of the table, and its resampled differences [1 + R] if the runs can be compared there."""

    cells: dict[str, Any]
    differences: NDArray[np.float64] | None


def _rows(
    category: str, draws: tuple[NDArray[np.float64], NDArray[np.float64]], images: int, level: float
) -> list[_Row]:
    """One row for each metric that either run has; ``draws`` are [1 + R, metrics], the sample itself first."""
    rows: list[_Row] = []
    for index, metric in enumerate(METRICS):
        own, other = draws[0][0, index], draws[1][0, index]
        cells = {"category": category, "metric": metric, "baseline": other, "run": own, "images": images}
        if np.isnan(own) and np.isnan(other):
            continue
        if np.isnan(own) or np.isnan(other):
            rows.append(_Row(cells | {"verdict": "vanished" if np.isnan(own) else "appeared"}, None))
        elif not images:
            rows.append(_Row(cells | {"verdict": "not comparable"}, None))
        else:
            differences = draws[0][:, index] - draws[1][:, index]
            ((low, high),) = intervals(differences[1:, None], level)
            judged = {"difference": own - other, "low": low, "high": high, "p_value": p_value(differences[1:])}
            rows.append(_Row(cells | judged | {"verdict": _verdict(low, high)}, differences))
    return rows


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
        if own[index] < other[index]
    ]


def _defined_in_both(
    own: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    undefined = np.isnan(own) | np.isnan(other)
    return np.where(undefined, np.nan, own), np.where(undefined, np.nan, other)
