"""What every stage is: a key, its items, the arrays of an item, and a function that computes some of them.

The stage modules import networks inside their ``compute`` functions only, so that a run which finds everything in the
store starts without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.configs.schema import Experiment
from cascade.configs.section import Section
from cascade.localisers import make_localiser
from cascade.localisers.protocol import Localiser
from cascade.refiners import make_refiner
from cascade.refiners.protocol import Refiner
from cascade.storage.artefacts import ArraySpec, Artefact, Store
from cascade.storage.datasets import ImageRecord, Manifest
from cascade.storage.errors import StageError
from cascade.storage.keys import StageKey, digest_of
from cascade.storage.weights import LocatedWeights
from cascade.tasks.execution.photographs import Photographs


@dataclass(frozen=True)
class Batch:
    """The images of a category that judge the others.

    Attributes:
        digest: of the images.
        images: their ids, in order.
    """

    digest: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """Everything that a stage needs to know; plain data, so that it can be sent to another process.

    Attributes:
        experiment: the validated configuration.
        manifest: the images of this run.
        store: folder of the artefact store.
        weights: verified checkpoints by role: ``sam``, and those of the localiser.
        batches: by category, the images that judge the others, for a localiser that looks at batches.
        photographs: those that one stage has decoded for another; they stay in this process.
    """

    experiment: Experiment
    manifest: Manifest
    store: Path
    weights: Mapping[str, LocatedWeights]
    batches: Mapping[str, Batch] = field(default_factory=dict)
    photographs: Photographs = field(default_factory=Photographs, compare=False, repr=False)

    @cached_property
    def localiser(self) -> Localiser:
        """The method that says where something is wrong."""
        return make_localiser(self.experiment.localise.method, self.experiment.localise)

    @cached_property
    def refiner(self) -> Refiner:
        """The method that says how far it reaches."""
        return make_refiner(self.experiment.refine.method, self.experiment.refine)

    @property
    def steps(self) -> tuple[str, ...]:
        """The rows of the tables: the map, and the steps of the refiner."""
        return (self.localiser.STEP, *self.refiner.STEPS)

    def only(self, records: Sequence[ImageRecord]) -> Run:
        """The same run of these images alone: all that a task needs to be sent."""
        manifest = replace(self.manifest, records=tuple(records))
        batches = {name: batch for name, batch in self.batches.items() if name in manifest.categories}
        return replace(self, manifest=manifest, batches=batches)

    def words(self, record: ImageRecord) -> str:
        """What CLIP is told that an image shows."""
        return self.experiment.dataset.words.get(record.category, record.category)

    def artefact(self, key: StageKey) -> Artefact:
        """The artefact of ``key`` in this run's store."""
        return Store(self.store).artefact(key)

    def image_path(self, record: ImageRecord) -> Path:
        """Where an image is on disk."""
        return self.manifest.root / record.path


@dataclass(frozen=True)
class StageItem:
    """One item of work.

    Attributes:
        id: its identity in the artefact.
        record: the image (any one of its copies) that it belongs to.
        members: of an item that is made of others, their identities upstream.
    """

    id: str
    record: ImageRecord
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A stage of the picture.

    Attributes:
        name: as in the picture.
        version: raised by hand when the mathematics changes; a method has its own.
        config: the part of the configuration that the stage reads, as plain data.
        upstream: the stages whose artefacts it reads.
        roles: of the checkpoints that it loads.
        items: all items of a run, in order, each identity once.
        arrays: what has to be allotted for given items; empty if everything fits in the ledger.
        compute: computes given items and writes each to the artefact.
        applies: whether a run has this stage at all.
        records: the images that a task needs to know to compute given items; those of the items by default.
        central: whether its items need the whole run, and so are computed where it is, and never sent to a worker.
        per_task: most items in a task, if ``runtime.shard_size`` is too many.
    """

    name: str
    version: Callable[[Run], int]
    config: Callable[[Run], dict[str, Any]]
    upstream: tuple[Stage, ...]
    roles: Callable[[Run], Sequence[str]]
    items: Callable[[Run], list[StageItem]]
    arrays: Callable[[Run, Sequence[StageItem]], dict[str, ArraySpec]]
    compute: Callable[[Run, Sequence[StageItem], Artefact], None]
    applies: Callable[[Run], bool] = lambda run: True
    records: Callable[[Run, Sequence[StageItem]], Sequence[ImageRecord]] = lambda run, items: [
        item.record for item in items
    ]
    central: bool = False
    per_task: int | None = None

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Sent to another process as its name: the module there has it."""
        return _stage_named, (self.name,)

    def key(self, run: Run) -> StageKey:
        """The key of this stage for a run."""
        upstream = {stage.name: stage.key(run).digest for stage in self.upstream if stage.applies(run)}
        weights = {role: run.weights[role].sha256 for role in self.roles(run)}
        return StageKey(self.name, self.version(run), self.config(run), upstream, weights)

    def artefact(self, run: Run) -> Artefact:
        """Where this stage's items of a run are."""
        return run.artefact(self.key(run))

    def follows(self, name: str) -> bool:
        """Whether it reads what the stage ``name`` writes, at any remove."""
        return any(stage.name == name or stage.follows(name) for stage in self.upstream)


def _stage_named(name: str) -> Stage:
    stage: Stage = getattr(import_module(f"cascade.tasks.{name}"), name.upper())
    return stage


def no_roles(run: Run) -> Sequence[str]:
    """A stage that loads no checkpoint."""
    return ()


def config_of(section: Section, *without: str) -> dict[str, Any]:
    """A section as plain data for a key, less the fields that cannot change the output."""
    left_out = {"batch_size", *without}
    return {name: value for name, value in section.in_force().items() if name not in left_out}


def image_items(run: Run) -> list[StageItem]:
    """One item for each distinct image, named by the sha256 of its file."""
    return _distinct(StageItem(record.image_id, record) for record in run.manifest)


def localised_items(run: Run) -> list[StageItem]:
    """One item for each distinct pair of image and class words, for the stages that follow the localiser."""
    return _distinct(StageItem(localised_id(run, record), record) for record in run.manifest)


def localised_id(run: Run, record: ImageRecord) -> str:
    """The identity of an image under its class words, and in its batch if it has one."""
    batch = run.batches.get(record.category)
    return "/".join([record.image_id, run.words(record), *([batch.digest] if batch is not None else [])])


def batches_of(manifest: Manifest, references: int) -> dict[str, Batch]:
    """By category, at most ``references`` images that judge the others.

    They are drawn by their digests, so that the draw is the same everywhere, and another image changes it only if it is
    drawn itself.
    """
    found = {}
    for category in manifest.categories:
        images = tuple(sorted({record.image_id for record in manifest if record.category == category})[:references])
        found[category] = Batch(digest_of(images), images)
    return found


def refines(run: Run) -> bool:
    """Whether a run has steps after its map, so that it needs SAM and prompts."""
    return bool(run.refiner.STEPS)


def keeps_tokens(run: Run) -> bool:
    """Whether what the localiser sees before a word is said is kept."""
    return run.experiment.localise.keep == "tokens"


def require_finite(stage: str, record: ImageRecord, values: NDArray[Any]) -> None:
    """Raise ``StageError`` naming the image if a network returned NaN or infinity."""
    if not np.isfinite(values).all():
        raise StageError(
            f"{stage}: {record.path}: the network returned NaN or infinity; check the weights, or use precision fp32"
        )


def _distinct(items: Iterator[StageItem]) -> list[StageItem]:
    return list({item.id: item for item in items}.values())
