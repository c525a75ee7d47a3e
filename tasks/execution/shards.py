"""A shard is what one task computes: a fixed slice of a stage's items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from cascade.storage.artefacts import Artefact
from cascade.storage.errors import StageError
from cascade.storage.keys import digest_of
from cascade.tasks.stage import Run, Stage, StageItem


class ShardReference(TypedDict):
    """What a shard task returns: plain JSON that says where its items are, never the items."""

    store: str
    stage: str
    key: str
    shard: str
    items: int


def shard_size(run: Run, stage: Stage) -> int:
    """Most items in a task of a stage."""
    size = run.experiment.runtime.shard_size
    return size if stage.per_task is None else min(size, stage.per_task)


def shards_of(items: Sequence[StageItem], size: int) -> list[Sequence[StageItem]]:
    """Consecutive slices of at most ``size`` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def shard_digest(stage: Stage, run: Run, shard: Sequence[StageItem]) -> str:
    """The identity of a shard: the stage key and the items, whether finished or not."""
    return digest_of([stage.key(run).digest, [item.id for item in shard]])


def compute_shard(run: Run, stage: Stage, shard: Sequence[StageItem], artefact: Artefact) -> ShardReference:
    """Compute the items of a shard that are not in the store yet.

    ``run`` is of the shard's images alone, see :func:`run_of_shard`.
    """
    missing = artefact.missing([item.id for item in shard])
    if missing:
        stage.compute(run, [item for item in shard if item.id in missing], artefact)
    return reference_to(run, stage, shard)


def run_of_shard(run: Run, stage: Stage, shard: Sequence[StageItem]) -> Run:
    """The run as a task of a shard is given it: it knows the images that it needs, however many others there are."""
    return run.only(stage.records(run, shard))


def abandon(artefact: Artefact) -> None:
    """Make shards that are being computed in other threads end after their next item; what is written stays."""

    def stop() -> None:
        raise StageError(f"{artefact.name}: stopped")

    artefact.on_write = stop


def reference_to(run: Run, stage: Stage, shard: Sequence[StageItem]) -> ShardReference:
    """The reference to a finished shard."""
    return ShardReference(
        store=str(run.store),
        stage=stage.name,
        key=stage.key(run).digest,
        shard=shard_digest(stage, run, shard),
        items=len(shard),
    )


def holds(reference: ShardReference, run: Run, stage: Stage, shard: Sequence[StageItem], artefact: Artefact) -> bool:
    """Whether a reference, perhaps from an earlier run, is true of the store as it is now."""
    return reference == reference_to(run, stage, shard) and not artefact.missing([item.id for item in shard])
