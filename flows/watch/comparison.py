"""What a comparison of two runs found, and the gate that a run has to pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cascade.flows.run.results import FinishedRun
from cascade.flows.watch.changes import Change, describe
from cascade.flows.watch.vanished import Vanished
from cascade.storage.atomic import replacing, write_text
from cascade.tasks.aggregate import MEAN
from cascade.tasks.tables.batch import batch_note
from cascade.tasks.tables.intervals import explained

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
        table: see ``cascade.tasks.tables.comparison.Paired``; a column ``remark`` says what makes a difference other
            than one of the same measurement.
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
            f"{row['category']}: {row['metric']} fell by {-row['difference']:.4f} ({row['baseline']:.4f} → "
            f"{row['run']:.4f}; {self._interval(row)}; limit {self.limits[row['metric']]:g}"
            f"{'; ' if row['remark'] else ''}{row['remark']})"
            for row in self.table.to_dict("records")
            if row["verdict"] == "fell"
            and (row["category"] == MEAN or row["p_adjusted"] < 1 - self.level)
            and -row["difference"] > self.limits[row["metric"]]
        ]

    def _interval(self, row: Mapping[Hashable, Any]) -> str:
        if row["note"]:
            return f"{row['note']}, so that no interval is given"
        return f"{100 * self.level:g} % interval of the difference {row['low']:.4f} to {row['high']:.4f}"

    @property
    def reasons(self) -> list[str]:
        """Why the gate is closed, one line each: what fell, what vanished unless allowed, or that nothing is left."""
        lines = self.regressions
        if not self.allow_vanished:
            lines += [f"vanished: {line}" for line in self.vanished.whole]
        if self.table["difference"].isna().all():
            lines.append("nothing was compared: the runs share no images on which a metric is defined")
        return lines

    @property
    def passed(self) -> str:
        """What an open gate says, and what it does not."""
        differences, undecided = self.table["difference"].notna().sum(), (self.table["verdict"] == "undecided").sum()
        line = "no metric is known to have fallen by more than its limit"
        return line if not undecided else f"{line}; {undecided} of {differences} differences are undecided"

    def legend(self) -> list[str]:
        """What the verdicts mean, and why an interval is missing, one line each."""
        limits = sorted({f"{limit:g}" for limit in self.limits.values()})
        verdicts = (
            "fell, improved: the interval of the difference is on one side of 0; equal: it lies within the limit of a "
            f"fall on both sides (±{' or ±'.join(limits)}), or both put all scores in the same order; else undecided"
        )
        return [verdicts, *explained(self.table["note"])]

    def batches(self) -> list[str]:
        """A line for each run whose images judged each other."""
        notes = {name: batch_note(side.results()) for name, side in (("run", self.run), ("baseline", self.baseline))}
        return [f"the {name}: {note}" for name, note in notes.items() if note]

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
            f"with a paired {100 * self.level:g} % bootstrap interval (BCa) over images",
        ]
        lines += ["", "## Gate", ""]
        lines += [f"- {line}" for line in self.reasons] or [f"Passed: {self.passed}."]
        if batches := self.batches():
            lines += ["", "## Batches", "", *(f"- {line}" for line in batches)]
        lines += ["", "## What made the runs differ", "", *(f"- {line}" for line in self.notes())]
        for title, rows in (
            ("Mean", self.table[self.table["category"] == MEAN]),
            ("Categories", self.table[self.table["category"] != MEAN]),
        ):
            lines += ["", f"## {title}", "", *_markdown_table(rows)]
        lines += ["", *(f"- {line}" for line in self.legend())]
        lines += ["", "## Images that lost most", ""]
        if self.worst.empty:
            lines.append("No defective image has a lower pixel AP than in the baseline.")
        else:
            lines += _markdown_table(self.worst.drop(columns="image_id").head(_WORST))
        return "\n".join(lines) + "\n"


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``comparison.md`` and ``comparison.csv``."""
    write_text(folder / "comparison.md", comparison.markdown())
    with replacing(folder / "comparison.csv") as path:
        comparison.table.to_csv(path, index=False)


def _markdown_table(rows: pd.DataFrame) -> Iterable[str]:
    yield "| " + " | ".join(name.replace("_", " ") for name in rows.columns) + " |"
    yield "|" + "---|" * len(rows.columns)
    for row in rows.itertuples(index=False):
        yield "| " + " | ".join(_cell(value) for value in row) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4f}"
    return str(value).replace("|", "\\|")
