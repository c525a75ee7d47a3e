"""What every stage is: a key, its items, the arrays of an item, and a function that computes some of them.

The stage modules import networks inside their ``compute`` functions only, so that a run which finds everything in the
store starts without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.configs.schema import Experiment, Section
from cascade.storage.artefacts import ArraySpec, Artefact, Store
from cascade.storage.datasets import ImageRecord, Manifest
from cascade.storage.errors import StageError
from cascade.storage.keys import StageKey
from cascade.storage.weights import LocatedWeights


@dataclass(frozen=True)
class Run:
    """Everything that a stage needs to know; plain data, so that it can be sent to another process.

    Attributes:
        experiment: the validated configuration.
        manifest: the images of this run.
        store: folder of the artefact store.
        weights: verified checkpoints by role: ``sam``, ``clip`` and ``adapter``.
    """

    experiment: Experiment
    manifest: Manifest
    store: Path
    weights: Mapping[str, LocatedWeights]

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
    """One item of work: its identity in the artefact, and the image (any one of its copies) that it belongs to."""

    id: str
    record: ImageRecord


@dataclass(frozen=True)
class Stage:
    """A stage of the picture.

    Attributes:
        name: as in the picture.
        key: the key of this stage for a run.
        items: all items of a run, in order, each identity once.
        arrays: what has to be allotted for given items; empty if everything fits in the ledger.
        compute: computes given items and writes each to the artefact.
    """

    name: str
    key: Callable[[Run], StageKey]
    items: Callable[[Run], list[StageItem]]
    arrays: Callable[[Run, Sequence[StageItem]], dict[str, ArraySpec]]
    compute: Callable[[Run, Sequence[StageItem], Artefact], None]


def config_of(section: Section, *without: str) -> dict[str, Any]:
    """A section as plain data for a key, less the fields that cannot change the output."""
    left_out = {"batch_size", *without}
    return {name: value for name, value in section.in_force().items() if name not in left_out}


def image_items(run: Run) -> list[StageItem]:
    """One item for each distinct image, named by the sha256 of its file."""
    return _distinct(StageItem(record.image_id, record) for record in run.manifest)


def worded_items(run: Run) -> list[StageItem]:
    """One item for each distinct pair of image and class words, for the stages that follow CLIP."""
    return _distinct(StageItem(worded_id(run, record), record) for record in run.manifest)


def worded_id(run: Run, record: ImageRecord) -> str:
    """The identity of an image under its class words."""
    return f"{record.image_id}/{run.words(record)}"


def require_finite(stage: str, record: ImageRecord, values: NDArray[Any]) -> None:
    """Raise ``StageError`` naming the image if a network returned NaN or infinity."""
    if not np.isfinite(values).all():
        raise StageError(
            f"{stage}: {record.path}: the network returned NaN or infinity; check the weights, or use precision fp32"
        )


def _distinct(items: Iterator[StageItem]) -> list[StageItem]:
    return list({item.id: item for item in items}.values())
