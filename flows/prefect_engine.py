"""The engine on Prefect: the same stages in the same order, one task run for each stage and shard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# Read by Prefect when it is imported. A user's own setting wins.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "CRITICAL")

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger

from flows.evaluate import Reporter, StageResult, evaluate
from flows.runners import make_runner
from storage.artefacts import Artefact
from tasks.aggregate import MEAN, table_rows
from tasks.prefect_task import ShardWork, prefect_task
from tasks.shards import ShardReference, abandon, holds, shard_digest
from tasks.stage import Run, Stage, StageItem

_ARTIFACT_ROWS = 200


def evaluate_on_prefect(run: Run, reporter: Reporter) -> list[StageResult]:
    """Run every stage inside a Prefect flow run; starts Prefect's own server if none is configured."""

    @flow(
        name="evaluate",
        flow_run_name=f"{run.experiment.name}-{run.manifest.name}",
        task_runner=make_runner(run.experiment.runtime),
        validate_parameters=False,
    )
    def evaluate_flow(experiment: dict[str, Any], dataset: str, images: int) -> None:
        try:
            results.extend(evaluate(run, execute_on_prefect, reporter))
        except KeyboardInterrupt:
            interrupted.append(True)
            raise
        _publish(run)

    results: list[StageResult] = []
    interrupted: list[bool] = []
    try:
        evaluate_flow(run.experiment.model_dump(mode="json"), run.manifest.name, len(run.manifest))
    except Exception as error:
        # Ctrl-C also ends a server that Prefect started for us, which then cannot be told of the crash
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    return results


def execute_on_prefect(run: Run, stage: Stage, shards: Sequence[Sequence[StageItem]], artefact: Artefact) -> None:
    """Submit the shards; a reference that Prefect remembers but the store does not hold is computed after all.

    With worker processes a shard whose worker died is submitted again; what it had finished is kept.
    """
    results_folder = run.store / "prefect-results"
    results_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    task = prefect_task(stage.name).with_options(result_storage=results_folder)
    remote = run.experiment.runtime.runner != "threads"

    def submit(number: int, *, refresh: bool = False) -> PrefectFuture[ShardReference]:
        own = artefact.for_worker(item.id for item in shards[number]) if remote else artefact
        work = ShardWork(run, stage, shards[number], own)
        chosen = task.with_options(refresh_cache=True) if refresh else task
        return chosen.submit(shard_digest(stage, run, shards[number]), f"{number:04d}", work)

    lacking = artefact.missing(item.id for shard in shards for item in shard)
    futures = [submit(number) for number in range(len(shards))]
    try:
        for number, future in enumerate(futures):
            future.wait()
            if remote and artefact.on_write is not None:
                for item in shards[number]:
                    if item.id in lacking:
                        artefact.on_write()
    except KeyboardInterrupt:
        abandon(artefact)
        raise
    artefact.done()
    stale = [number for number, future in enumerate(futures) if _is_stale(future, run, stage, shards[number], artefact)]
    again = [submit(number, refresh=True) for number in stale]
    wait(again)
    for future in again:
        future.result()


def _is_stale(
    future: PrefectFuture[ShardReference], run: Run, stage: Stage, shard: Sequence[StageItem], artefact: Artefact
) -> bool:
    """Whether a shard has to be submitted again. Raises what the stage raised."""
    if future.state.is_crashed():
        return bool(artefact.missing(item.id for item in shard))
    return not holds(future.result(), run, stage, shard, artefact)


def _publish(run: Run) -> None:
    """A table artifact with the means first; a failure to publish does not fail the run."""
    rows = sorted(table_rows(run), key=lambda row: row["category"] != MEAN)[:_ARTIFACT_ROWS]
    try:
        create_table_artifact(
            key=f"results-{run.experiment.name}".lower().replace("_", "-").replace(".", "-"),
            table=rows,
            description=f"{run.experiment.name} on {run.manifest.name}",
        )
    except Exception as error:  # whatever the server says, the tables are on disk
        get_run_logger().warning("no results artifact: %s", error)
