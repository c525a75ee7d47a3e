"""Stage ``localise``: where a localiser sees something wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade.configs.localisers import of_clip
from cascade.localisers.protocol import AnomalyMap
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import ImageRecord
from cascade.tasks import tokens
from cascade.tasks.execution.threads import Write, written_behind
from cascade.tasks.stage import Run, Stage, StageItem, localised_id, localised_items, require_finite
from cascade.tasks.words import text_features

if TYPE_CHECKING:
    import torch

    from cascade.frames import Size
    from cascade.localisers.protocol import Networks


def config(run: Run) -> dict[str, Any]:
    """The method, its options, and the sentences themselves (not the name of their file)."""
    from cascade.tasks.ensembles import load_ensemble

    options = run.experiment.localise.key_options()
    if run.localiser.WORDS:
        options["sentences"] = load_ensemble(of_clip(run.experiment.localise).prompts).as_data()
    return options


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """Those of the localiser."""
    from cascade.tasks.execution.networks import networks_of

    kept = run.localiser.arrays(networks_of(run.experiment, run.weights))
    return {name: ArraySpec(each.shape, each.dtype) for name, each in kept.items()}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Compare what is seen with the words of each image's class, and store what comes of it."""
    import torch

    from cascade.tasks.execution.networks import networks_of

    localiser, networks = run.localiser, networks_of(run.experiment, run.weights)
    texts = text_features(run, {run.words(item.record) for item in items}) if localiser.WORDS else {}
    if localiser.SCOPE == "batch":
        _judge(run, items, networks, texts, artefact)
        return
    looked = tokens.kept(run, items) if tokens.TOKENS.applies(run) else tokens.looked_at(run, items)
    with written_behind(artefact) as write:
        for batch, looks in looked:
            text = torch.stack([texts[run.words(item.record)] for item in batch]) if texts else None
            found, scores = localiser.compare(networks, looks, text)
            for index, item in enumerate(batch):
                _keep(write, item, {name: values[index] for name, values in found.items()}, scores[index])


def _judge(
    run: Run, items: Sequence[StageItem], networks: Networks, texts: Mapping[str, torch.Tensor], artefact: Artefact
) -> None:
    """Let the batch of each category, if there is one, judge its images, one at a time."""
    with written_behind(artefact) as write:
        for category in sorted({item.record.category for item in items}):
            batch = tokens.references(run, run.batches[category].images) if category in run.batches else {}
            mine = [item for item in items if item.record.category == category]
            for (item, *_), look in tokens.kept(run, mine, at_once=1):
                others = [each for image, each in batch.items() if image != item.record.image_id]
                text = texts[run.words(item.record)][None] if texts else None
                found, scores = run.localiser.compare(networks, look, text, others)
                _keep(write, item, {name: values[0] for name, values in found.items()}, scores[0])


def _keep(write: Write, item: StageItem, arrays: Mapping[str, NDArray[Any]], score: np.float32) -> None:
    for values in (*arrays.values(), np.asarray(score)):
        require_finite("localise", item.record, values)
    write(item.id, arrays, {"image_score": float(score)})


class Maps:
    """The maps of a run, each in any size; what prompt, refine and score read."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._artefact = LOCALISE.artefact(run)
        self._known: dict[tuple[str, ...], list[float]] = {}
        self._lock = Lock()

    def of(self, item: str, size: Size) -> AnomalyMap:
        """The map of an item in a frame of ``size`` (height, width) that spans the image."""
        return self._run.localiser.map_of(self._artefact.read(item).arrays, size)

    def image_score(self, record: ImageRecord) -> float:
        """The localiser's own score of an image, once those of its batch, if there is one, are known."""
        item, batch = localised_id(self._run, record), self._run.batches.get(record.category)
        score = float(self._artefact.record(item)["image_score"])
        if batch is None or not self._run.localiser.rescores:
            return score
        items = [localised_id(self._run, replace(record, image_id=image)) for image in batch.images]
        items = items if item in items else [*items, item]
        return self._rescored(tuple(items))[items.index(item)]

    def _rescored(self, items: tuple[str, ...]) -> list[float]:
        with self._lock:
            if items not in self._known:
                read = [self._artefact.read(item) for item in items]
                scores = np.array([each.record["image_score"] for each in read], np.float32)
                arrays = {name: np.stack([each.arrays[name] for each in read]) for name in read[0].arrays}
                self._known[items] = self._run.localiser.rescore(scores, arrays).tolist()
            return self._known[items]


LOCALISE = Stage(
    name="localise",
    version=lambda run: run.localiser.VERSION,
    config=config,
    upstream=(tokens.TOKENS,),
    roles=lambda run: run.localiser.roles,
    items=localised_items,
    arrays=arrays,
    compute=compute,
)
