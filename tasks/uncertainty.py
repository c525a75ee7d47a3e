"""How sure the table is: bootstrap intervals over images, from the histograms in the store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cascade.metrics import OccupiedBins, bins_of_scores, draw_weights, percentile_intervals, resampled_metrics
from cascade.storage.artefacts import Artefact
from cascade.storage.errors import ConfigError
from cascade.tasks import score
from cascade.tasks.aggregate import MEAN, METRICS, PIXEL_METRICS, table_rows
from cascade.tasks.stage import Run

RESAMPLES = 1000
LEVEL = 0.95
_N_PIXEL = len(PIXEL_METRICS)
_UNKNOWN = -1


@dataclass(frozen=True)
class ScoredImage:
    """An image of a run: where it belongs, and the name of its histograms in the store."""

    category: str
    image_id: str
    path: str
    label: int | None
    item: str


def result_intervals(run: Run, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> pd.DataFrame:
    """Percentile intervals of every number in the table of a finished run.

    The images of a category are drawn with replacement, good and defective ones apart; see ``draw_weights`` for why.
    The mean is the mean of the categories' resamples.

    Args:
        run: a run whose stages are all in the store.
        resamples: number of draws.
        seed: equal seeds give equal intervals.
        level: share of the resamples inside an interval, in (0, 1).

    Returns:
        Columns ``category``, ``step``, ``metric``, ``value`` (the table's), ``low``, ``high``, in the order of the
        table; all three are missing where the metric is undefined.

    Raises:
        ConfigError: ``level`` or ``resamples`` makes no interval.
        StoreError: the store does not hold the run.
    """
    check_interval(resamples, level)
    images = [
        ScoredImage(record.category, record.image_id, record.path, record.label, score.item_id(run, record))
        for record in run.manifest
    ]
    scores = run.artefact(score.key(run))
    by_category: dict[str, NDArray[np.float64]] = {}
    for category in run.manifest.categories:
        own = [image for image in images if image.category == category]
        weights = category_weights(category, labels_of(own), resamples, seed)
        by_category[category] = read_evidence(scores, own, score.STEPS).resampled(weights)
    by_category[MEAN] = mean_of(list(by_category.values()))
    rows: list[dict[str, Any]] = []
    for row in table_rows(run):
        resampled = by_category[row["category"]][score.STEPS.index(row["step"]), 1:]
        for metric, (low, high) in zip(METRICS, percentile_intervals(resampled, level), strict=True):
            defined = row[metric] is not None
            rows.append(
                {"category": row["category"], "step": row["step"], "metric": metric, "value": row[metric]}
                | {"low": low if defined else None, "high": high if defined else None}
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high"), "float64"))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the metrics of one category's N images rest on.

    Attributes:
        labels: int64 [N], 0 good, 1 defective, -1 not known.
        has_truth: bool [N], whether the pixels of an image could be compared; only those are counted.
        pixels: by step, the histogram of each image that has truth.
        image_scores: float64 [steps, N].
    """

    labels: NDArray[np.int64]
    has_truth: NDArray[np.bool_]
    pixels: tuple[tuple[OccupiedBins, ...], ...]
    image_scores: NDArray[np.float64]

    def resampled(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metrics of images that are weighted by ``weights`` [R, N]: [steps, R, metrics].

        NaN where the table's cell would be empty; see ``cascade.tasks.aggregate`` for when that is.
        """
        # each step keeps a core busy; threads of the matrix product would only wait for each other
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(lambda step: self._of_step(step, weights), range(len(self.pixels)))))

    def average_precision(self, step: int) -> NDArray[np.float64]:
        """Pixel AP of each image alone, [N]; NaN for an image without defect or truth."""
        alone = np.full(self.labels.size, np.nan)
        if self.has_truth.any():
            alone[self.has_truth] = resampled_metrics(self.pixels[step], np.eye(len(self.pixels[step])))[:, 2]
        return alone

    def _of_step(self, step: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = np.full((len(weights), len(METRICS)), np.nan)
        pixels, known = self.pixels[step], self.labels != _UNKNOWN
        complete = (self.has_truth | ~known).all()
        both = any(each.positives.any() for each in pixels) and any(each.negatives.any() for each in pixels)
        if complete and both:
            rows[:, :_N_PIXEL] = resampled_metrics(pixels, weights[:, self.has_truth])
        if len(set(self.labels[known])) > 1:
            images = bins_of_scores(self.image_scores[step, known], self.labels[known] == 1)
            rows[:, _N_PIXEL:] = resampled_metrics(images, weights[:, known])[:, : len(METRICS) - _N_PIXEL]
        return rows


def read_evidence(scores: Artefact, images: Sequence[ScoredImage], steps: Sequence[str]) -> Evidence:
    """The evidence of one category's images for some steps.

    Raises ``StoreError`` if an image's histograms are not in the store, ``CorruptItem`` if they are damaged.
    """
    chosen = [score.STEPS.index(step) for step in steps]
    pixels: list[list[OccupiedBins]] = [[] for _ in steps]
    has_truth, image_scores = [], []
    for image in images:
        item = scores.read(image.item, only=score.HISTOGRAMS)
        has_truth.append(item.record["truth"])
        image_scores.append([item.record["image_score"][index] for index in chosen])
        if has_truth[-1]:
            for own, index in zip(pixels, chosen, strict=True):
                own.append(OccupiedBins.of(*(item.arrays[name][index] for name in score.HISTOGRAMS)))
    return Evidence(
        labels=labels_of(images),
        has_truth=np.array(has_truth),
        pixels=tuple(map(tuple, pixels)),
        image_scores=np.array(image_scores).T,
    )


def check_interval(resamples: int, level: float) -> None:
    """Raise ``ConfigError`` unless both can make an interval."""
    if not 0.0 < level < 1.0:
        raise ConfigError(f"the level of an interval has to be between 0 and 1, not {level}; 0.95 is usual")
    if resamples < 1:
        raise ConfigError(f"{resamples} resamples make no interval; {RESAMPLES} are usual")


def category_weights(category: str, strata: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each image of one category is drawn, [1 + resamples, N]; row 0 is the sample itself.

    A category's draws depend on the seed, its name and its images, and not on what else is in the run.
    """
    return draw_weights(strata, resamples, np.random.default_rng([seed, *category.encode()]))


def labels_of(images: Sequence[ScoredImage]) -> NDArray[np.int64]:
    """0 good, 1 defective, -1 not known, [N]: the strata of a category."""
    return np.array([_UNKNOWN if image.label is None else image.label for image in images])


def mean_of(categories: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Unweighted mean over the categories that have a value, resample by resample; NaN if none has."""
    stacked = np.stack(categories)
    defined = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(defined, stacked, 0.0).sum(axis=0) / defined.sum(axis=0)
    return mean
