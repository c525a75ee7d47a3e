"""Stage ``tokens``: what CLIP sees in an image before a word is said, the tokens of the chosen blocks.

With ``localise.keep`` at ``tokens`` they are kept, so that other words, sentences or linear layers cost no second look
at the images. ``localise`` reads them, or looks at the images itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.keys import StageKey
from cascade.tasks.execution.photographs import squares_for_clip
from cascade.tasks.execution.threads import batches, encoded_at_once, pinned, read_ahead, written_behind
from cascade.tasks.stage import Run, Stage, StageItem, image_items, require_finite

if TYPE_CHECKING:
    import torch

    from cascade.backbones.clip.backbone import ImageTokens

VERSION = 3

Looked = Iterator[tuple[Sequence[StageItem], list["ImageTokens"]]]
"""Items, a batch at a time, with their tokens for each side of CLIP's input."""


def key(run: Run) -> StageKey:
    """The frozen tower and its inputs; neither words nor linear layers."""
    localise = run.experiment.localise
    config = {
        "backbone": localise.backbone,
        "activation": localise.activation,
        "sides": list(localise.sides),
        "layers": list(localise.layers),
        "precision": localise.precision,
    }
    return StageKey("tokens", VERSION, config, weights={"clip": run.weights["clip"].sha256})


def items(run: Run) -> list[StageItem]:
    """Every distinct image, or none if tokens are not kept."""
    return image_items(run) if run.experiment.localise.keep == "tokens" else []


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``tokens_<side>`` [L, 1 + grid², width] float16 for each side, and ``pooled`` [D] float32 of the first."""
    from cascade.tasks.execution.networks import check_vision, clip_config, clip_of

    config = run.experiment.localise
    clip = clip_config(config.backbone)
    check_vision(config, clip)
    clip_of(run)  # a checkpoint that does not fit is refused before anything is written
    vision = clip["vision_cfg"]
    specs = {"pooled": ArraySpec((clip["embed_dim"],), "float32")}
    for side in config.sides:
        patches = (side // vision["patch_size"]) ** 2
        specs[f"tokens_{side}"] = ArraySpec((len(config.layers), 1 + patches, vision["width"]), "float16")
    return specs


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Look at images and store their tokens."""
    import torch

    sides = run.experiment.localise.sides
    with written_behind(artefact) as write:
        for batch, views in looked_at(run, items):
            stacked = [torch.stack(view.blocks, dim=1).half().cpu().numpy() for view in views]
            pooled = views[0].pooled.cpu().numpy()
            for index, item in enumerate(batch):
                own = {f"tokens_{side}": tokens[index] for side, tokens in zip(sides, stacked, strict=True)}
                own["pooled"] = pooled[index]
                for values in own.values():
                    require_finite("tokens", item.record, values)
                write(item.id, own, {})


def looked_at(run: Run, items: Sequence[StageItem]) -> Looked:
    """Encode the images now; float32 tokens on the run's device."""
    import torch

    from cascade.backbones.clip.backbone import image_tensor, image_tokens
    from cascade.tasks.execution.networks import clip_of, device_of

    config, device = run.experiment.localise, device_of(run)
    clips = [clip_of(run, side) for side in config.sides]

    def read(item: StageItem) -> list[torch.Tensor]:
        return [pinned(image_tensor(square), device) for square in squares_for_clip(run, item.record)]

    for batch in batches(read_ahead(items, read), encoded_at_once(config.batch_size, device)):
        views = []
        for clip, view in zip(clips, zip(*(inputs for _, inputs in batch), strict=True), strict=True):
            images = torch.stack([image.to(device, non_blocking=True) for image in view])
            views.append(image_tokens(clip, images, config.layers, bf16=config.precision == "bf16"))
        yield [item for item, _ in batch], views


def kept(run: Run, items: Sequence[StageItem]) -> Looked:
    """The tokens in the store, as float32 on the run's device."""
    import torch

    from cascade.backbones.clip.backbone import ImageTokens
    from cascade.tasks.execution.networks import device_of

    config, device, artefact = run.experiment.localise, device_of(run), run.artefact(key(run))
    read = read_ahead(items, lambda item: artefact.read(item.record.image_id).arrays)
    for batch in batches(read, encoded_at_once(config.batch_size, device)):
        stored = {
            name: torch.stack([torch.from_numpy(arrays[name]) for _, arrays in batch]).to(device).float()
            for name in batch[0][1]
        }
        views = [ImageTokens(stored[f"tokens_{side}"].unbind(dim=1), stored["pooled"]) for side in config.sides]
        yield [item for item, _ in batch], views


TOKENS = Stage("tokens", key, items, arrays, compute)
