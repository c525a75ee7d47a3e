"""Stage ``tokens``: what a localiser sees in an image before a word is said, kept with ``localise.keep=tokens``.

Other words, sentences or linear layers then need no second look at the images. ``localise`` reads what is kept, or
looks at the images itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.squares import squared
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import read_image
from cascade.tasks.execution.threads import batches, encoded_at_once, pinned, read_ahead, written_behind
from cascade.tasks.stage import Run, Stage, StageItem, image_items, keeps_tokens, require_finite

if TYPE_CHECKING:
    import torch

VERSION = 3
_BACKBONES = ("clip", "features")

Looked = Iterator[tuple[Sequence[StageItem], Mapping[str, "torch.Tensor"]]]
"""Items, a batch at a time, with what was seen in them, [B, ...] by name."""


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """Those of the localiser's look."""
    from cascade.tasks.execution.networks import networks_of

    kept = run.localiser.look_arrays(networks_of(run.experiment, run.weights))
    return {name: ArraySpec(each.shape, each.dtype) for name, each in kept.items()}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Look at images and store what is seen."""
    import torch

    dtypes = {name: spec.dtype for name, spec in arrays(run, items).items()}
    with written_behind(artefact) as write:
        for batch, looks in looked_at(run, items):
            stored = {name: values.to(getattr(torch, dtypes[name])).cpu().numpy() for name, values in looks.items()}
            for index, item in enumerate(batch):
                mine = {name: values[index] for name, values in stored.items()}
                for values in mine.values():
                    require_finite("tokens", item.record, values)
                write(item.id, mine, {})


def looked_at(run: Run, items: Sequence[StageItem]) -> Looked:
    """Look at the images now; on the run's device."""
    import torch

    from cascade.tasks.execution.networks import networks_of

    localiser, networks = run.localiser, networks_of(run.experiment, run.weights)

    def read(item: StageItem) -> list[torch.Tensor]:
        return [pinned(each, networks.device) for each in localiser.inputs(squares_of(run, item))]

    at_once = encoded_at_once(run.experiment.localise.batch_size, networks.device)
    for batch in batches(read_ahead(items, read), at_once):
        inputs = [
            torch.stack([each.to(networks.device, non_blocking=True) for each in view])
            for view in zip(*(inputs for _, inputs in batch), strict=True)
        ]
        yield [item for item, _ in batch], localiser.look(networks, inputs)


def squares_of(run: Run, item: StageItem) -> list[NDArray[np.uint8]]:
    """A photograph as uint8 [side, side, 3] for each side of the localiser."""
    record, sides = item.record, run.localiser.sides
    waiting = run.photographs.take(record.image_id, sides)
    if waiting is not None:
        return waiting
    photograph = read_image(run.image_path(record), record.white)
    return [squared(photograph, side) for side in sides]


def kept(run: Run, items: Sequence[StageItem], at_once: int | None = None) -> Looked:
    """What is in the store, as float32 on the run's device, of as many images as an encoder takes or ``at_once``."""
    import torch

    from cascade.tasks.execution.networks import device_of

    device, artefact = device_of(run.experiment.runtime), TOKENS.artefact(run)
    read = read_ahead(items, lambda item: artefact.read(item.record.image_id).arrays)
    size = at_once or encoded_at_once(run.experiment.localise.batch_size, device)
    for batch in batches(read, size):
        yield (
            [item for item, _ in batch],
            {
                name: torch.stack([torch.from_numpy(arrays[name]) for _, arrays in batch]).to(device).float()
                for name in batch[0][1]
            },
        )


def references(run: Run, images: Sequence[str]) -> dict[str, Mapping[str, torch.Tensor]]:
    """What the images that judge others are to them, by image id, as float32 on the run's device."""
    import torch

    from cascade.tasks.execution.networks import device_of

    device, artefact = device_of(run.experiment.runtime), TOKENS.artefact(run)
    read = read_ahead(images, lambda image: artefact.read(image).arrays)
    return {
        image: run.localiser.judge(
            {name: torch.from_numpy(values).to(device).float() for name, values in arrays.items()}
        )
        for image, arrays in read
    }


TOKENS = Stage(
    name="tokens",
    version=lambda run: VERSION,
    config=lambda run: run.experiment.localise.look_options(),
    upstream=(),
    roles=lambda run: [role for role in run.localiser.roles if role in _BACKBONES],
    items=image_items,
    arrays=arrays,
    compute=compute,
    applies=keeps_tokens,
)
