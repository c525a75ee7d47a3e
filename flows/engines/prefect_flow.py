"""The engine on Prefect: the same stages in the same order, one task run for each stage and shard.

This imports Prefect, so ``cascade.flows.engines.prefect_server.set_defaults`` is called before; ``choice`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from cascade.configs.schema import RuntimeConfig
from cascade.flows.engines.evaluate import Reporter, StageResult, evaluate
from cascade.flows.engines.prefect_server import prefect_server, server_is_ours
from cascade.flows.engines.runners import hidden_main, make_runner, workers_ended
from cascade.storage.artefacts import Artefact
from cascade.tasks.aggregate import MEAN, table_rows
from cascade.tasks.execution.prefect_task import ShardWork, prefect_task
from cascade.tasks.execution.shards import ShardReference, abandon, compute_shard, holds, run_of_shard, shard_digest
from cascade.tasks.stage import Run, Stage, StageItem

_ARTIFACT_ROWS = 200
Result = TypeVar("Result")


def evaluate_on_prefect(run: Run, reporter: Reporter) -> list[StageResult]:
    """Run every stage inside a Prefect flow run; a server of Prefect's is started if none is configured."""
    experiment, manifest = run.experiment, run.manifest

    def work() -> list[StageResult]:
        results = evaluate(run, execute_on_prefect, reporter)
        rows = sorted(table_rows(run), key=lambda row: row["category"] != MEAN)  # the means first
        publish(f"results-{experiment.name}", rows, f"{experiment.name} on {manifest.name}")
        return results

    parameters = {
        "experiment": experiment.model_dump(mode="json"),
        "dataset": manifest.name,
        "images": len(manifest),
    }
    return run_as_flow("evaluate", f"{experiment.name}-{manifest.name}", parameters, experiment.runtime, work)


def run_as_flow(
    name: str, run_name: str, parameters: Mapping[str, Any], runtime: RuntimeConfig, work: Callable[[], Result]
) -> Result:
    """What ``work`` returns, done inside one Prefect flow run in which :func:`execute_on_prefect` can be called."""

    interrupted: list[bool] = []
    returned: list[Result] = []

    def worked() -> None:
        try:
            with workers_ended() if runtime.runner == "processes" else nullcontext():
                returned.append(work())
        except KeyboardInterrupt:
            interrupted.append(True)
            raise

    as_flow = flow(
        name=name,
        flow_run_name=run_name,
        task_runner=make_runner(runtime),
        validate_parameters=False,
    )(_work_of_this_process)
    token = _WORK.set(worked)
    try:
        with _heartbeats(), prefect_server(), hidden_main():
            as_flow(dict(parameters))
    except Exception as error:
        # Ctrl-C also ends a server that Prefect started for us, which then cannot be told of the crash
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        _WORK.reset(token)
    return returned[0]


_WORK: ContextVar[Callable[[], None]] = ContextVar("work")


def _work_of_this_process(parameters: dict[str, Any]) -> None:
    """The body of every flow. Prefect sends the flow to each worker with its tasks, and this one travels as a name.

    What it does holds consoles, locks and open files, and stays here.
    """
    _WORK.get()()


def _heartbeats() -> AbstractContextManager[object]:
    """None to a server of our own: it would miss nobody, and a run waits up to a second for their thread to end."""
    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}) if server_is_ours() else nullcontext()


def execute_on_prefect(run: Run, stage: Stage, shards: Sequence[Sequence[StageItem]], artefact: Artefact) -> None:
    """Submit the shards; a reference that Prefect remembers but the store does not hold is computed after all.

    With worker processes a shard whose worker died is submitted again; what it had finished is kept.
    """
    remote = run.experiment.runtime.runner != "threads"
    if stage.central and remote:
        for shard in shards:
            compute_shard(run_of_shard(run, stage, shard), stage, shard, artefact)
        return
    results_folder = run.store / "prefect-results"
    results_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    task = prefect_task(stage.name).with_options(result_storage=results_folder)

    def submit(number: int, *, refresh: bool = False) -> PrefectFuture[ShardReference]:
        own = artefact.for_worker(item.id for item in shards[number]) if remote else artefact
        work = ShardWork(run_of_shard(run, stage, shards[number]), stage, shards[number], own)
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


def publish(key: str, rows: Sequence[dict[str, Any]], description: str) -> None:
    """A table artifact of the first rows; a failure to publish does not fail the run."""
    try:
        create_table_artifact(
            key=key.lower().replace("_", "-").replace(".", "-"),
            table=list(rows)[:_ARTIFACT_ROWS],
            description=description,
        )
    except Exception as error:  # whatever the server says, the tables are on disk
        get_run_logger().warning("no results artifact: %s", error)
