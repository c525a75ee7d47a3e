"""The DAG of an evaluation: plan every stage from its key, then run what the store lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from cascade.storage.artefacts import Artefact, Store
from cascade.storage.errors import CorruptItem
from cascade.tasks.aggregate import AGGREGATE
from cascade.tasks.embed import EMBED
from cascade.tasks.execution.shards import shard_size, shards_of
from cascade.tasks.localise import LOCALISE
from cascade.tasks.prompt import PROMPT
from cascade.tasks.refine import REFINE
from cascade.tasks.score import SCORE
from cascade.tasks.stage import Run, Stage, StageItem
from cascade.tasks.tally import TALLY
from cascade.tasks.tokens import TOKENS

STAGES: tuple[Stage, ...] = (EMBED, TOKENS, LOCALISE, PROMPT, REFINE, SCORE, TALLY, AGGREGATE)
"""In the order in which they run; what each reads stands in its ``upstream``."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage has to do.

    Attributes:
        stage: the stage.
        artefact: where its items are.
        items: all its items.
        missing: how many of them are not in the store.
        reason: why they are missing; empty if none is.
    """

    stage: Stage
    artefact: Artefact
    items: tuple[StageItem, ...]
    missing: int
    reason: str


@dataclass(frozen=True)
class StageResult:
    """What a stage did: how many items were there, how many were computed, in how many seconds."""

    stage: str
    key: str
    items: int
    hits: int
    computed: int
    seconds: float
    reason: str


class Reporter(Protocol):
    """Whoever shows the progress of a run."""

    def started(self, plan: StagePlan) -> Callable[[], None]:
        """A stage begins; the function returned is called after each item."""

    def finished(self, result: StageResult) -> None:
        """A stage has ended."""

    def damaged(self, error: CorruptItem) -> None:
        """An item was damaged and will be computed again."""


Executor = Callable[[Run, Stage, Sequence[Sequence[StageItem]], Artefact], None]
"""Runs shards of a stage; the two engines differ in nothing else."""


def plan_stage(run: Run, stage: Stage) -> StagePlan:
    """Compare a stage's items with the store. Raises ``ConfigError`` if the stage could not run at all."""
    artefact = stage.artefact(run)
    items = stage.items(run)
    artefact.done()
    missing = artefact.missing(item.id for item in items)
    reason = ""
    if missing:
        stage.arrays(run, [item for item in items if item.id in missing])
        reason = "new items" if artefact.exists else Store(run.store).explain_missing(artefact.key)
    return StagePlan(stage, artefact, tuple(items), len(missing), reason)


def stages_of(run: Run) -> list[Stage]:
    """The stages that a run has, in order."""
    return [stage for stage in STAGES if stage.applies(run)]


def plan(run: Run) -> list[StagePlan]:
    """Every stage of a run, before any of them starts."""
    return [plan_stage(run, stage) for stage in stages_of(run)]


def evaluate(
    run: Run, execute: Executor, reporter: Reporter, finished: Mapping[str, StageResult] = MappingProxyType({})
) -> list[StageResult]:
    """Run every stage of a run that :func:`plan` has not refused. A damaged item is computed again, once.

    Stages of ``finished``, by name, were found complete for the same items a moment ago; they run only if damage shows.
    """
    results = _run_stages(run, execute, reporter, finished)
    return [results[stage.name] for stage in stages_of(run)]


def _run_stages(
    run: Run, execute: Executor, reporter: Reporter, finished: Mapping[str, StageResult]
) -> dict[str, StageResult]:
    mended: set[tuple[str, str]] = set()
    results, stages = dict(finished), stages_of(run)
    while stage := next((each for each in stages if each.name not in results), None):
        try:
            results[stage.name] = run_stage(run, stage, execute, reporter)
        except CorruptItem as error:
            if (error.artefact, error.item) in mended:
                raise
            mended.add((error.artefact, error.item))
            reporter.damaged(error)
            source = next(each for each in stages if error.artefact.startswith(f"{each.name}/"))
            source.artefact(run).forget(error.item)
            stale = {source.name, *(each.name for each in stages if each.follows(source.name))}
            results = {name: result for name, result in results.items() if name not in stale}
    return results


def run_stage(run: Run, stage: Stage, execute: Executor, reporter: Reporter) -> StageResult:
    """Plan one stage and compute what the store lacks."""
    start = time.perf_counter()
    planned = plan_stage(run, stage)
    artefact = planned.artefact
    artefact.on_write = reporter.started(planned)
    shards = shards_of(planned.items, shard_size(run, stage))
    lacking = artefact.missing(item.id for item in planned.items)
    for item in planned.items:
        if item.id not in lacking:
            artefact.record(item.id)  # raises if its line was altered; the tables read it when no stage does
    if planned.missing:
        todo = [item for item in planned.items if item.id in lacking]
        with artefact.writing([item.id for item in todo], stage.arrays(run, todo)):
            lacking = artefact.missing(lacking)  # another run may have computed some while this one waited for the lock
            execute(run, stage, shards, artefact)
    else:
        execute(run, stage, shards, artefact)
    result = StageResult(
        stage=stage.name,
        key=artefact.key.digest,
        items=len(planned.items),
        hits=len(planned.items) - len(lacking),
        computed=len(lacking),
        seconds=time.perf_counter() - start,
        reason=planned.reason,
    )
    if planned.items:
        reporter.finished(result)
    return result
