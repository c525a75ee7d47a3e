"""Stage ``embed``: SAM's image encoder, once for each image, ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import read_image
from cascade.tasks.execution.threads import batches, encoded_at_once, pinned, read_ahead, written_behind
from cascade.tasks.localise import LOCALISE
from cascade.tasks.stage import Run, Stage, StageItem, config_of, image_items, localised_id, refines, require_finite
from cascade.tasks.tokens import TOKENS

VERSION = 1


def config(run: Run) -> dict[str, Any]:
    """The encoder, and how the image is given to it."""
    return config_of(run.experiment.embed, "weights", "sha256")


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``embedding`` [C, grid, grid] float16, the encoder's output."""
    from cascade.backbones.sam.build import embedding_shape
    from cascade.tasks.execution.networks import compiles, sam_of

    sam_of(run.experiment, run.weights)  # what cannot work is refused before anything is written
    compiles(run.experiment.runtime)
    return {"embedding": ArraySpec(embedding_shape(run.experiment.embed.backbone), "float16")}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Decode, encode and store images, a batch at a time."""
    import torch

    from cascade.backbones.sam.image import embed, normalise, to_input
    from cascade.tasks.execution.networks import compiles, sam_of

    config = run.experiment.embed
    sam = sam_of(run.experiment, run.weights)
    side = sam.image_encoder.img_size
    bf16, fused, compiled = config.precision == "bf16", config.attention == "fused", compiles(run.experiment.runtime)
    at_once = encoded_at_once(config.batch_size, sam.device)

    wanted = _localiser_will_look_at(run, items)

    def read(item: StageItem) -> torch.Tensor:
        photograph = read_image(run.image_path(item.record), item.record.white)
        if item.record.image_id in wanted:
            squares = run.photographs.keep(item.record.image_id, photograph, run.localiser.sides)
            if config.image == "square":  # scaling it to its own size changes nothing
                photograph = next((each for each in squares if len(each) == config.square_side), photograph)
        image = to_input(photograph, config.image, side, config.square_side)
        return pinned(torch.from_numpy(image), sam.device)

    with written_behind(artefact) as write:
        for batch in batches(read_ahead(items, read), at_once):
            inputs = torch.stack([normalise(image, sam) for _, image in batch])
            embeddings = embed(sam, inputs, bf16=bf16, fused=fused, compiled=compiled).half().cpu().numpy()
            for (item, _), embedding in zip(batch, embeddings, strict=True):
                require_finite("embed", item.record, embedding)
                write(item.id, {"embedding": embedding}, {})


def _localiser_will_look_at(run: Run, items: Sequence[StageItem]) -> set[str]:
    """Images that the localiser has not seen and will in this process; other processes share no memory."""
    if run.experiment.runtime.runner != "threads":
        return set()
    if TOKENS.applies(run):
        return TOKENS.artefact(run).missing(item.record.image_id for item in items)
    localised = {localised_id(run, item.record): item.record.image_id for item in items}
    return {localised[name] for name in LOCALISE.artefact(run).missing(localised)}


EMBED = Stage(
    name="embed",
    version=lambda run: VERSION,
    config=config,
    upstream=(),
    roles=lambda run: ("sam",),
    items=image_items,
    arrays=arrays,
    compute=compute,
    applies=refines,
)
