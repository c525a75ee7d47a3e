"""How sure the table is: bootstrap intervals over images, from the histograms in the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cascade.metrics import Estimate, bca_intervals, correctable
from cascade.storage.errors import ConfigError
from cascade.tasks import score
from cascade.tasks.aggregate import MEAN, METRICS, PIXEL_METRICS, table_rows
from cascade.tasks.stage import Run
from cascade.tasks.tables.evidence import ScoredImage, category_draws, read_evidence

RESAMPLES = 1000
LEVEL = 0.95
NEGLIGIBLE = 0.01
"""A difference that does not matter: the limit of a fall where none is given, and the margin of ``equal``."""

ENOUGH, ENOUGH_EACH = 10, 5
"""Images of each kind that an interval needs: in all, and in each of the categories whose mean it is of.

Of 5 good and 8 defective images intervals of 95 % hold the truth in 90 % of the cases, of 3 and 3 in 75 %.
"""
FEW, NO_SPREAD, NO_INTERVAL = "few images", "no spread", "no interval"
NOTES = {
    FEW: f"an interval needs {ENOUGH} defective images, for image metrics {ENOUGH} good ones too, "
    f"and the mean {ENOUGH_EACH} of them in each category",
    NO_SPREAD: "every draw of the images gives the same value, which does not make it certain",
    NO_INTERVAL: "the value comes out too high or too low on so few images, or some draws of them have none",
}
"""Why an interval is not shown: what stands in its place, and what that means."""

_ROUNDING = 1e-9


def result_intervals(run: Run, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> pd.DataFrame:
    """BCa bootstrap intervals of every number in the table of a finished run.

    The images of a category are drawn with replacement, good and defective ones apart; see ``draw_weights`` for why.
    The mean is the mean of the categories' resamples.

    Args:
        run: a run whose stages are all in the store.
        resamples: number of draws.
        seed: equal seeds give equal intervals.
        level: of the intervals, in (0, 1).

    Returns:
        Columns ``category``, ``step``, ``metric``, ``value`` (the table's), ``low``, ``high`` and ``note``, in the
        order of the table. ``low`` and ``high`` are missing where the metric is undefined, or where ``note`` says why
        an interval would mislead: ``FEW``, ``NO_SPREAD`` or ``NO_INTERVAL``.

    Raises:
        ConfigError: ``level`` or ``resamples`` makes no interval.
        StoreError: the store does not hold the run.
    """
    check_interval(resamples, level)
    images = [
        ScoredImage(record.category, record.image_id, record.path, record.label, score.item_id(run, record))
        for record in run.manifest
    ]
    scores = score.SCORE.artefact(run)
    by_category: dict[str, Sequence[Estimate]] = {}
    compared: dict[str, NDArray[np.int64]] = {}
    for category in run.manifest.categories:
        own = [image for image in images if image.category == category]
        evidence = read_evidence(scores, own, range(len(run.steps)))
        by_category[category] = evidence.estimates(category_draws(category, evidence.labels, resamples, seed))
        compared[category] = compared_images(evidence.labels)[None]
    of_steps = list(zip(*by_category.values(), strict=True))
    by_category[MEAN] = [mean_of(categories) for categories in of_steps]
    compared[MEAN] = np.concatenate(list(compared.values()))
    rows: list[dict[str, Any]] = []
    for row in table_rows(run):
        category, step = row["category"], run.steps.index(row["step"])
        estimate = by_category[category][step]
        parts = of_steps[step] if category == MEAN else [estimate]
        bounds, notes = intervals_and_notes(estimate, level, compared[category], parts)
        for metric, (low, high), note in zip(METRICS, bounds, notes, strict=True):
            shown = row[metric] is not None and not note
            rows.append(
                {"category": category, "step": row["step"], "metric": metric, "value": row[metric]}
                | {"low": low if shown else None, "high": high if shown else None}
                | {"note": note if row[metric] is not None else ""}
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high"), "float64"))


def check_interval(resamples: int, level: float) -> None:
    """Raise ``ConfigError`` unless both can make an interval."""
    if not 0.0 < level < 1.0:
        raise ConfigError(f"the level of an interval has to be between 0 and 1, not {level}; 0.95 is usual")
    if resamples < 1:
        raise ConfigError(f"{resamples} resamples make no interval; {RESAMPLES} are usual")


def compared_images(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images each metric rests on, [metrics]: defective ones for pixels, the rarer kind for images."""
    good, defective = ((labels == kind).sum() for kind in (0, 1))
    return np.array([defective if metric in PIXEL_METRICS else min(good, defective) for metric in METRICS])


def intervals_and_notes(
    estimate: Estimate, level: float, compared: NDArray[np.int64], categories: Sequence[Estimate]
) -> tuple[NDArray[np.float64], list[str]]:
    """The interval of each metric, [metrics, 2], and why it is not to be shown, [metrics]; empty where it may be.

    Args:
        estimate: of the metrics.
        level: of the intervals.
        compared: int64 [K, metrics], the :func:`compared_images` of the categories that it is of.
        categories: their K estimates; those without a value do not count.
    """
    bounds, able = bca_intervals(estimate, level), correctable(estimate, level)
    defined = ~np.isnan([each.value for each in categories])
    enough = np.where(defined, compared, 0).sum(axis=0) >= ENOUGH
    enough &= np.where(defined, compared, ENOUGH_EACH).min(axis=0) >= ENOUGH_EACH
    without_spread = bounds[:, 1] - bounds[:, 0] <= _ROUNDING
    reasons = zip(~enough, without_spread, ~able, strict=True)
    names = (FEW, NO_SPREAD, NO_INTERVAL)
    return bounds, [next((name for name, holds in zip(names, row, strict=True) if holds), "") for row in reasons]


def explained(notes: Iterable[str]) -> list[str]:
    """What those of ``NOTES`` mean that occur among some, one line each."""
    found = set(notes)
    return [f"{note}: {meaning}" for note, meaning in NOTES.items() if note in found]


def mean_of(categories: Sequence[Estimate]) -> Estimate:
    """Unweighted mean over the categories that have a value; NaN if none has. Categories are drawn apart."""
    defined = ~np.isnan([each.value for each in categories])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = defined / defined.sum(axis=0)
    parts = list(zip(shares, categories, strict=True))
    return Estimate(
        value=_sum([_weighted(own.value, share) for share, own in parts]),
        drawn=_sum([_weighted(own.drawn, share) for share, own in parts]),
        influence=np.concatenate([_weighted(own.influence, share) for share, own in parts]),
    )


def _weighted(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values [..., metrics] times the metrics' shares; 0 where the share is, whatever the value."""
    return np.where(shares == 0, 0.0, values * shares)


def _sum(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum(arrays, axis=0)
    return total
