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

from cascade.metrics import OccupiedBins, bins_of_scores, draw_weights, resampled_metrics
from storage.artefacts import Artefact
from storage.errors import ConfigError
from tasks import score
from tasks.aggregate import MEAN, METRICS, table_rows
from tasks.stage import Run

RESAMPLES = 1000
LEVEL = 0.95
_PIXEL_METRICS = 4
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
        by_category[category] = resampled_rows(scores, own, category_weights(own, resamples, seed))
    by_category[MEAN] = mean_of(list(by_category.values()))
    rows: list[dict[str, Any]] = []
    for row in table_rows(run):
        resampled = by_category[row["category"]][score.STEPS.index(row["step"]), 1:]
        for metric, (low, high) in zip(METRICS, intervals(resampled, level), strict=True):
            defined = row[metric] is not None
            rows.append(
                {"category": row["category"], "step": row["step"], "metric": metric, "value": row[metric]}
                | {"low": low if defined else None, "high": high if defined else None}
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high"), "float64"))


def check_interval(resamples: int, level: float) -> None:
    """Raise ``ConfigError`` unless both can make an interval."""
    if not 0.0 < level < 1.0:
        raise ConfigError(f"the level of an interval has to be between 0 and 1, not {level}; 0.95 is usual")
    if resamples < 1:
        raise ConfigError(f"{resamples} resamples make no interval; 1000 are usual")


def category_weights(images: Sequence[ScoredImage], resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each image of one category is drawn, [1 + resamples, N]; row 0 is the sample itself.

    A category's draws depend on the seed and its name and not on what else is in the run.
    """
    labels = [_UNKNOWN if image.label is None else image.label for image in images]
    rng = np.random.default_rng([seed, *images[0].category.encode()])
    return draw_weights(np.array(labels), resamples, rng)


def resampled_rows(
    scores: Artefact, images: Sequence[ScoredImage], weights: NDArray[np.float64], steps: Sequence[str] = score.STEPS
) -> NDArray[np.float64]:
    """The metrics of weighted images of one category, [steps, R, metrics]; NaN where the table's cell would be empty.

    Raises ``StoreError`` if an image's histograms are not in the store, ``CorruptItem`` if they are damaged.
    """
    pixels: list[list[OccupiedBins]] = [[] for _ in steps]
    counted: list[bool] = []  # pixels count only where the truth is known
    image_scores: list[list[float]] = []
    for image in images:
        item = scores.read(image.item, only=score.HISTOGRAMS)
        image_scores.append(item.record["image_score"])
        counted.append(item.record["truth"])
        if item.record["truth"]:
            for number, step in enumerate(steps):
                index = score.STEPS.index(step)
                pixels[number].append(OccupiedBins.of(*(item.arrays[name][index] for name in score.HISTOGRAMS)))
    labelled = np.array([image.label is not None for image in images])
    labels = np.array([image.label == 1 for image in images])
    known = np.array(counted)
    complete = bool((known | ~labelled).all())
    by_image = np.array(image_scores)[:, [score.STEPS.index(step) for step in steps]]

    def one(number: int) -> NDArray[np.float64]:
        rows = np.full((len(weights), len(METRICS)), np.nan)
        own = pixels[number]
        if complete and any(each.positives.any() for each in own) and any(each.negatives.any() for each in own):
            rows[:, :_PIXEL_METRICS] = resampled_metrics(own, weights[:, known])
        if labels.any() and not labels[labelled].all():
            single = bins_of_scores(by_image[labelled, number], labels[labelled])
            rows[:, _PIXEL_METRICS:] = resampled_metrics(single, weights[:, labelled])[:, :3]
        return rows

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(one, range(len(steps)))))


def mean_of(categories: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Unweighted mean over the categories that have a value, resample by resample; NaN if none has."""
    stacked = np.stack(categories)
    defined = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(defined, stacked, 0.0).sum(axis=0) / defined.sum(axis=0)
    return mean


def intervals(resampled: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Percentile interval of each column of [R, M], as [M, 2]; NaN for a column of NaN."""
    return np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0).T
