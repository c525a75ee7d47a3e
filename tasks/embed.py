"""Stage ``embed``: SAM's image encoder, once for each image, ever."""

from __future__ import annotations

from collections.abc import Sequence

from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import read_image
from cascade.storage.keys import StageKey
from cascade.tasks import localise, tokens
from cascade.tasks.execution.photographs import keep_for_clip
from cascade.tasks.execution.threads import batches, encoded_at_once, pinned, read_ahead, written_behind
from cascade.tasks.stage import Run, Stage, StageItem, config_of, image_items, require_finite, worded_id

VERSION = 1


def key(run: Run) -> StageKey:
    """Encoder, its weights, and how the image is given to it."""
    embed = run.experiment.embed
    unused = () if embed.image == "square" else ("square_side",)
    config = config_of(embed, "weights", "sha256", *unused)
    return StageKey("embed", VERSION, config, weights={"sam": run.weights["sam"].sha256})


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``embedding`` [C, grid, grid] float16, the encoder's output."""
    from cascade.backbones.sam.build import embedding_shape
    from cascade.tasks.execution.networks import compiles, sam_of

    sam_of(run), compiles(run)  # what cannot work is refused before anything is written
    return {"embedding": ArraySpec(embedding_shape(run.experiment.embed.backbone), "float16")}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Decode, encode and store images, a batch at a time."""
    import torch

    from cascade.backbones.sam.image import embed, normalise, to_input
    from cascade.tasks.execution.networks import compiles, sam_of

    config = run.experiment.embed
    sam = sam_of(run)
    side = sam.image_encoder.img_size
    bf16, fused, compiled = config.precision == "bf16", config.attention == "fused", compiles(run)
    at_once = encoded_at_once(config.batch_size, sam.device)

    for_clip = _clip_will_look_at(run, items)

    def read(item: StageItem) -> torch.Tensor:
        photograph = read_image(run.image_path(item.record), item.record.white)
        if item.record.image_id in for_clip:
            squares = keep_for_clip(run, item.record, photograph)
            if config.image == "square":
                photograph = squares.get(config.square_side, photograph)  # scaling it to its own size changes nothing
        image = to_input(photograph, config.image, side, config.square_side)
        return pinned(torch.from_numpy(image), sam.device)

    with written_behind(artefact) as write:
        for batch in batches(read_ahead(items, read), at_once):
            inputs = torch.stack([normalise(image, sam) for _, image in batch])
            embeddings = embed(sam, inputs, bf16=bf16, fused=fused, compiled=compiled).half().cpu().numpy()
            for (item, _), embedding in zip(batch, embeddings, strict=True):
                require_finite("embed", item.record, embedding)
                write(item.id, {"embedding": embedding}, {})


def _clip_will_look_at(run: Run, items: Sequence[StageItem]) -> set[str]:
    """Images that CLIP has not seen and will in this process; the workers of other runners share no memory."""
    if run.experiment.runtime.runner != "threads":
        return set()
    if run.experiment.localise.keep == "tokens":
        return run.artefact(tokens.key(run)).missing(item.record.image_id for item in items)
    maps = run.artefact(localise.key(run))
    worded = {worded_id(run, item.record): item.record.image_id for item in items}
    return {worded[name] for name in maps.missing(worded)}


EMBED = Stage("embed", key, image_items, arrays, compute)
