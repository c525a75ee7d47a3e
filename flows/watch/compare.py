"""Two finished runs against each other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cascade.flows.run.results import FinishedRun, read_finished, require_results
from cascade.flows.watch.changes import what_changed
from cascade.flows.watch.comparison import Comparison
from cascade.flows.watch.limits import complete_limits
from cascade.flows.watch.vanished import find_vanished
from cascade.storage.errors import ConfigError, DataError, nearest
from cascade.tasks.aggregate import IMAGE_METRICS
from cascade.tasks.tables.batch import COLUMN as BATCH
from cascade.tasks.tables.batch import batch_change
from cascade.tasks.tables.comparison import Scored, compare_paired
from cascade.tasks.tables.evidence import ScoredImage
from cascade.tasks.tables.intervals import LEVEL, RESAMPLES, check_interval
from cascade.tasks.tables.matching import match_images


def compare_runs(
    run_folder: Path,
    baseline: Path,
    limits: Mapping[str, float] | None = None,
    *,
    allow_vanished: bool = False,
    step: str | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two finished runs, image by image, from the histograms in their stores.

    Args:
        run_folder: folder of the run.
        baseline: folder of the run that it is held against.
        limits: how much a metric may fall before it is a regression; see ``cascade.flows.watch.limits``.
        allow_vanished: whether the gate stays open though categories, steps, metrics or all good or defective images
            of a category are in the baseline alone.
        step: the step to compare; the last that both have by default.
        level: of the intervals.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        ConfigError: there is no such metric or step, a limit is no fraction, ``level`` makes no interval, or the runs
            were scored in different evaluation frames.
        DataError: a folder is not a finished run, has no metrics, or its store does not hold its scores any more.
        StoreError: stored scores are damaged.
    """
    check_interval(resamples, level)
    every_limit = complete_limits(limits)
    own, other = read_finished(run_folder), read_finished(baseline)
    require_results(own, "a comparison")
    step = step or last_shared_step(own, other)
    _require_step(own, step)
    require_comparable(other, own.frame, step)
    own_images, other_images = own.images(), other.images()
    sides = _scored(own, own_images), _scored(other, other_images)
    matching = match_images(sides[0].images, sides[1].images)
    paired = compare_paired(*sides, matching, step, margins=every_limit, resamples=resamples, seed=seed, level=level)
    worst = paired.worst
    for name, images in (("iou_baseline", other_images), ("iou_run", own_images)):
        rows = images[images["step"] == step].drop_duplicates(["category", "image_id"])
        masks = rows[["category", "image_id", "mask_iou"]].rename(columns={"mask_iou": name})
        worst = worst.merge(masks, on=["category", "image_id"], how="left")
    table = paired.table
    counts = _batches(other), _batches(own)
    table["remark"] = [_remark(row, own, other, counts) for row in table.to_dict("records")]
    return Comparison(
        run=own,
        baseline=other,
        step=step,
        level=level,
        limits=every_limit,
        table=table,
        worst=worst,
        changes=what_changed(own, other, matching),
        only_run=len(matching.only_run),
        vanished=find_vanished(own, other, sides[1].images, matching, paired.table),
        allow_vanished=allow_vanished,
        undefined=tuple(sorted({*own_images["category"], *other_images["category"]} - set(paired.table["category"]))),
    )


def last_shared_step(run: FinishedRun, baseline: FinishedRun) -> str:
    """The last step of a run that its baseline has, too; the run's last if there is none."""
    steps, there = run.steps(), baseline.steps()
    return next((step for step in reversed(steps) if step in there), steps[-1])


def require_comparable(baseline: FinishedRun, frame: str, step: str | None = None) -> None:
    """Raise unless runs in an evaluation frame can be held against a baseline; it may be asked before they are made.

    Raises:
        ConfigError: the frames differ, so that the metrics are of other pixels.
        DataError: the baseline has no metrics, no such step, or its scores are gone.
    """
    require_results(baseline, "a comparison")
    if baseline.frame != frame:
        raise ConfigError(
            f"score.frame is {frame} here and {baseline.frame} in {baseline.folder}: metrics of different evaluation "
            f"frames are not compared; run one of them again with the other's score.frame"
        )
    if step is not None:
        _require_step(baseline, step)
    _scored(baseline, baseline.images())


def scored_images(table: pd.DataFrame) -> tuple[ScoredImage, ...]:
    """The images of a run, from its ``images.parquet``."""
    rows = table[table["step"] == table["step"].iloc[0]].to_dict("records")
    return tuple(
        ScoredImage(
            category=row["category"],
            image_id=row["image_id"],
            path=row["path"],
            label=None if pd.isna(row["label"]) else int(row["label"]),
            item=row["item"],
        )
        for row in rows
    )


def _batches(run: FinishedRun) -> Mapping[str, float]:
    """By category and for the mean, how many images judged each other; nothing if each was judged alone."""
    results = run.results()
    if BATCH not in results:
        return {}
    return dict(zip(results["category"], results[BATCH], strict=True))


def _remark(
    row: Mapping[Hashable, Any],
    run: FinishedRun,
    baseline: FinishedRun,
    batches: tuple[Mapping[str, float], Mapping[str, float]],
) -> str:
    """What makes a difference other than one of the same measurement, and what batches it is of, if any."""
    change = batch_change(*(counts.get(row["category"], 0) for counts in batches))
    remarks = [change] if change else []
    if row["other_truth"] > 0:
        remarks.append(f"{row['other_truth']:.0f} of {row['images']} images have another ground truth")
    rules = [side.description["experiment"]["score"].get("image_score") for side in (baseline, run)]
    if row["metric"] in IMAGE_METRICS and rules[0] != rules[1]:
        remarks.append(f"image scores by {rules[0]} → by {rules[1]}")
    return "; ".join(remarks)


def _require_step(run: FinishedRun, step: str) -> None:
    if step not in run.steps():
        raise DataError(f"{run.folder}: no step '{step}' to compare; {nearest(step, run.steps())}")


def _scored(run: FinishedRun, table: pd.DataFrame) -> Scored:
    images = scored_images(table)
    if not run.scores.exists or run.scores.missing(image.item for image in images):
        raise DataError(f"{run.folder}: its scores are not in the store any more; restore them with `{run.command()}`")
    return Scored(run.scores, images, tuple(run.steps()))
