"""A stage as a Prefect task: one task run for each shard, keyed by the shard's own digest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from prefect import Task, task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from cascade.storage.artefacts import Artefact
from cascade.tasks.execution.shards import ShardReference, compute_shard
from cascade.tasks.stage import Run, Stage, StageItem


class ShardPolicy(CachePolicy):
    """Keys a task run by the digest that its caller passes as ``shard_key``.

    Prefect's own policies see the text of a wrapper and a hash of its arguments, but not the code, configuration and
    weights behind them; the digest names all of these. What Prefect then returns from its cache is only a reference,
    and the flow holds it against the store before it believes it: a lost or emptied store is recomputed.
    """

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """The shard's digest."""
        return str(inputs["shard_key"])


@cache
def prefect_task(stage_name: str) -> Task[..., ShardReference]:
    """The task of a stage; its results are small JSON references, kept on disk."""
    decorate = task(
        name=stage_name,
        task_run_name=stage_name + "-{shard_name}",
        cache_policy=ShardPolicy(),
        persist_result=True,
        result_serializer="json",
        cache_result_in_memory=False,
    )
    return decorate(_run_shard)


def _run_shard(shard_key: str, shard_name: str, work: ShardWork) -> ShardReference:
    return compute_shard(work.run, work.stage, work.shard, work.artefact)


class ShardWork:
    """What a task needs, in a plain object, so that Prefect does not search it for futures or hash it."""

    def __init__(self, run: Run, stage: Stage, shard: Sequence[StageItem], artefact: Artefact) -> None:
        self.run = run
        self.stage = stage
        self.shard = shard
        self.artefact = artefact
