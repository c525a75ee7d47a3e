"""Two finished runs against each other, and the gate that a run has to pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cascade.flows.changes import Change, describe, what_changed
from cascade.flows.finished import FinishedRun, read_finished, require_results
from cascade.flows.limits import complete_limits
from cascade.flows.vanished import Vanished, find_vanished
from cascade.storage.atomic import replacing, write_text
from cascade.storage.errors import ConfigError, DataError, nearest
from cascade.tasks.aggregate import MEAN
from cascade.tasks.comparison import Scored, compare_paired, match_images
from cascade.tasks.score import STEPS
from cascade.tasks.uncertainty import LEVEL, RESAMPLES, ScoredImage, check_interval

_WORST = 10


@dataclass(frozen=True, eq=False)
class Comparison:
    """A run against its baseline.

    Attributes:
        run: the newer run.
        baseline: what it is held against.
        step: the step that is compared.
        level: of the intervals.
        limits: how much a metric may fall, on the mean and in each category.
        table: see ``cascade.tasks.comparison.Paired``.
        worst: the shared defective images whose own pixel AP fell, the largest loss first, with the IoU of their masks
            in both runs.
        changes: what made the runs differ.
        only_run: how many images only the run has.
        vanished: what only the baseline has.
        allow_vanished: whether the gate stays open all the same.
        undefined: categories without any metric in either run.
    """

    run: FinishedRun
    baseline: FinishedRun
    step: str
    level: float
    limits: Mapping[str, float]
    table: pd.DataFrame
    worst: pd.DataFrame
    changes: tuple[Change, ...]
    only_run: int
    vanished: Vanished
    allow_vanished: bool
    undefined: tuple[str, ...]

    @property
    def regressions(self) -> list[str]:
        """One line for each metric that fell by more than its limit, and not by chance.

        A mean has fallen when its interval lies below 0. A category has when, moreover, its p is below 1 - level after
        adjustment for the number of categories: of many that are looked at, one lies below 0 by chance.
        """
        return [
            f"{row['category']}: {row['metric']} fell by {-row['difference']:.4f} "
            f"({row['baseline']:.4f} → {row['run']:.4f}; {100 * self.level:g} % interval of the difference "
            f"{row['low']:.4f} to {row['high']:.4f}; limit {self.limits[row['metric']]:g})"
            for row in self.table.to_dict("records")
            if row["verdict"] == "fell"
            and (row["category"] == MEAN or row["p_adjusted"] < 1 - self.level)
            and -row["difference"] > self.limits[row["metric"]]
        ]

    @property
    def reasons(self) -> list[str]:
        """Why the gate is closed, one line each: what fell, what vanished unless allowed, or that nothing is left."""
        lines = self.regressions
        if not self.allow_vanished:
            lines += [f"vanished: {line}" for line in self.vanished.whole]
        if self.table["difference"].isna().all():
            lines.append("nothing was compared: the runs share no images on which a metric is defined")
        return lines

    def notes(self) -> list[str]:
        """What made the runs differ, one line each, many of a kind cut short; and what was not compared."""
        return [*describe(self.changes), *self.not_compared()]

    def not_compared(self) -> list[str]:
        """What the numbers leave out, and what they must not be taken for, one line each."""
        lines = [f"vanished: {line}" for line in (*self.vanished.whole, *self.vanished.part)]
        if self.only_run:
            lines.append(f"not compared: {self.only_run} images that only the run has")
        if self.undefined:
            names = ", ".join(self.undefined)
            lines.append(f"not compared: {names}: labels or masks are missing, no metric is defined")
        for name, side in (("run", self.run), ("baseline", self.baseline)):
            if side.description.get("leak"):
                lines.append(f"the {name} is not zero-shot: {side.description['leak']}")
        return lines

    def markdown(self) -> str:
        """The comparison as a Markdown document."""
        lines = [
            f"# {self.run.experiment} on {self.run.dataset}: run against baseline",
            "",
            f"- run: `{self.run.folder}`, finished {self.run.description['finished']}",
            f"- baseline: `{self.baseline.folder}`, finished {self.baseline.description['finished']}",
            f"- step: {self.step}; differences are run minus baseline on the shared images, "
            f"with a paired {100 * self.level:g} % bootstrap interval over images",
        ]
        lines += ["", "## Gate", ""]
        lines += [f"- {line}" for line in self.reasons] or [
            "Passed: no metric fell by more than its limit, chance aside."
        ]
        lines += ["", "## What made the runs differ", "", *(f"- {line}" for line in self.notes())]
        for title, rows in (
            ("Mean", self.table[self.table["category"] == MEAN]),
            ("Categories", self.table[self.table["category"] != MEAN]),
        ):
            lines += ["", f"## {title}", "", *_markdown_table(rows)]
        lines += ["", "## Images that lost most", ""]
        if self.worst.empty:
            lines.append("No defective image has a lower pixel AP than in the baseline.")
        else:
            lines += _markdown_table(self.worst.drop(columns="image_id").head(_WORST))
        return "\n".join(lines) + "\n"


def compare_runs(
    run_folder: Path,
    baseline: Path,
    limits: Mapping[str, float] | None = None,
    *,
    allow_vanished: bool = False,
    step: str = STEPS[-1],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two finished runs, image by image, from the histograms in their stores.

    Args:
        run_folder: folder of the run.
        baseline: folder of the run that it is held against.
        limits: how much a metric may fall before it is a regression; see ``cascade.flows.limits``.
        allow_vanished: whether the gate stays open though categories, steps, metrics or all good or defective images
            of a category are in the baseline alone.
        step: the step to compare.
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
    if step not in STEPS:
        raise ConfigError(f"no step '{step}'; {nearest(step, STEPS)}")
    own, other = read_finished(run_folder), read_finished(baseline)
    require_results(own, "a comparison")
    _require_step(own, step)
    require_comparable(other, own.frame, step)
    own_images, other_images = own.images(), other.images()
    sides = _scored(own, own_images), _scored(other, other_images)
    matching = match_images(sides[0].images, sides[1].images)
    paired = compare_paired(*sides, matching, step, resamples=resamples, seed=seed, level=level)
    worst = paired.worst
    for name, images in (("iou_baseline", other_images), ("iou_run", own_images)):
        rows = images[images["step"] == step].drop_duplicates(["category", "image_id"])
        masks = rows[["category", "image_id", "mask_iou"]].rename(columns={"mask_iou": name})
        worst = worst.merge(masks, on=["category", "image_id"], how="left")
    return Comparison(
        run=own,
        baseline=other,
        step=step,
        level=level,
        limits=every_limit,
        table=paired.table,
        worst=worst,
        changes=what_changed(own, other, matching),
        only_run=len(matching.only_run),
        vanished=find_vanished(own, other, sides[1].images, matching, paired.table),
        allow_vanished=allow_vanished,
        undefined=tuple(sorted({*own_images["category"], *other_images["category"]} - set(paired.table["category"]))),
    )


def require_comparable(baseline: FinishedRun, frame: str, step: str = STEPS[-1]) -> None:
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
    _require_step(baseline, step)
    _scored(baseline, baseline.images())


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``comparison.md`` and ``comparison.csv``."""
    write_text(folder / "comparison.md", comparison.markdown())
    with replacing(folder / "comparison.csv") as path:
        comparison.table.to_csv(path, index=False)


def scored_images(table: pd.DataFrame) -> tuple[ScoredImage, ...]:
    """The images of a run, from its ``images.parquet``."""
    rows = table[table["step"] == STEPS[0]].to_dict("records")
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


def _require_step(run: FinishedRun, step: str) -> None:
    if step not in run.steps():
        raise DataError(f"{run.folder}: no step '{step}' to compare; {nearest(step, run.steps())}")


def _scored(run: FinishedRun, table: pd.DataFrame) -> Scored:
    images = scored_images(table)
    if not run.scores.exists or run.scores.missing(image.item for image in images):
        raise DataError(f"{run.folder}: its scores are not in the store any more; restore them with `{run.command()}`")
    return Scored(run.scores, images)


def _markdown_table(rows: pd.DataFrame) -> Iterable[str]:
    yield "| " + " | ".join(name.replace("_", " ") for name in rows.columns) + " |"
    yield "|" + "---|" * len(rows.columns)
    for row in rows.itertuples(index=False):
        yield "| " + " | ".join(_cell(value) for value in row) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4f}"
    return str(value).replace("|", "\\|")
