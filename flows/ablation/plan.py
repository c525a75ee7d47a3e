"""What an ablation would do: the union of its variants' stage keys, held against the store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cascade.configs.settings import Settings
from cascade.flows.ablation.state import Ablation
from cascade.flows.ablation.timings import Rates, past_rates, rate_group
from cascade.flows.ablation.variants import prepare_variants
from cascade.flows.engines.evaluate import STAGES
from cascade.flows.run.prepare import Prepared
from cascade.storage.errors import PipelineError
from cascade.tasks.stage import Run, Stage, StageItem


@dataclass(frozen=True)
class PlannedKey:
    """One key of one stage.

    Attributes:
        stage: name of the stage.
        key: digest of the key.
        variants: names of those that need it.
        items: how many items they need of it, each counted once.
        missing: how many of these are not in the store.
        nbytes: of the missing items' arrays before compression; 0 for a stage that fits in the ledger.
        seconds: for the missing items at the rate of past runs; ``None`` if none has been timed.
    """

    stage: str
    key: str
    variants: tuple[str, ...]
    items: int
    missing: int
    nbytes: int
    seconds: float | None


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation would do: its keys, and by variant why those that cannot run cannot."""

    keys: tuple[PlannedKey, ...]
    refused: Mapping[str, PipelineError]


def plan_ablation(ablation: Ablation, settings: Settings | None = None) -> AblationPlan:
    """What is cached and what would be computed; nothing is written.

    Raises:
        PipelineError: no variant can start; the error of the first.
    """
    machine = settings or Settings()
    candidates = prepare_variants(ablation, machine)
    ready = {name: each.run for name, each in candidates.items() if isinstance(each, Prepared)}
    refused = {name: each for name, each in candidates.items() if isinstance(each, PipelineError)}
    return AblationPlan(tuple(plan_keys(ready, past_rates(machine.runs))), refused)


def plan_keys(runs: Mapping[str, Run], rates: Rates) -> list[PlannedKey]:
    """Every distinct key of the runs, by stage in the order of the picture; no stage's input has to exist."""
    return [each for stage in STAGES for each in _plan_stage(stage, runs, rates)]


def _plan_stage(stage: Stage, runs: Mapping[str, Run], rates: Rates) -> list[PlannedKey]:
    needed: dict[str, dict[str, Run]] = {}
    for name, run in runs.items():
        if stage.applies(run):
            needed.setdefault(stage.key(run).digest, {})[name] = run
    planned = []
    for digest, own in needed.items():
        items = {item.id: item for run in own.values() for item in stage.items(run)}
        run = next(iter(own.values()))  # runs of one key differ at most in their items
        missing = run.artefact(stage.key(run)).missing(items)
        todo = [item for name, item in items.items() if name in missing]
        rate = rates.get(rate_group(stage.name, run.experiment.model_dump(mode="json")))
        planned.append(
            PlannedKey(
                stage=stage.name,
                key=digest,
                variants=tuple(own),
                items=len(items),
                missing=len(todo),
                nbytes=_nbytes(stage, run, todo),
                seconds=None if rate is None and todo else len(todo) * (rate or 0.0),
            )
        )
    return planned


def _nbytes(stage: Stage, run: Run, items: Sequence[StageItem]) -> int:
    """Bytes of the items' arrays; an item's arrays depend on nothing but the size of its image."""
    sizes = Counter((item.record.height, item.record.width) for item in items)
    examples = {(item.record.height, item.record.width): item for item in items}
    return sum(
        count * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        for size, count in sizes.items()
        for spec in stage.arrays(run, [examples[size]]).values()
    )
