"""The engine without a server: shards one after the other, or a few at a time in threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cascade.storage.artefacts import Artefact
from cascade.tasks.execution.shards import abandon, compute_shard, run_of_shard
from cascade.tasks.stage import Run, Stage, StageItem


def execute_locally(run: Run, stage: Stage, shards: Sequence[Sequence[StageItem]], artefact: Artefact) -> None:
    """Compute the shards with ``runtime.workers`` threads; the first error stops the rest.

    A single worker is this thread itself, so that Ctrl-C is felt at once.
    """
    if run.experiment.runtime.workers == 1 or stage.central:
        for shard in shards:
            compute_shard(run_of_shard(run, stage, shard), stage, shard, artefact)
        return
    with ThreadPoolExecutor(run.experiment.runtime.workers) as pool:
        futures = [
            pool.submit(compute_shard, run_of_shard(run, stage, shard), stage, shard, artefact) for shard in shards
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:
            abandon(artefact)
            pool.shutdown(wait=True, cancel_futures=True)
            raise
