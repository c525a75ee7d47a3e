"""Training of APRIL-GAN's linear layers on cached tokens (arXiv 2305.17382 and its public train.py)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.configs.localisers import LinearClip
from cascade.configs.schema import TrainConfig
from cascade.localisers.april_gan import AprilGan
from cascade.storage.artefacts import Artefact
from cascade.storage.atomic import replacing
from cascade.storage.datasets import ImageRecord, mask_in_frame, read_image, read_mask
from cascade.storage.errors import DataError
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.stage import Run
from cascade.tasks.words import text_features

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cascade.localisers.patch_text import LinearAdapter
    from cascade.tasks.execution.networks import Networks


@dataclass(frozen=True)
class Epoch:
    """Mean loss of an epoch, focal and Dice summed over blocks."""

    number: int
    loss: float


def train_adapter(
    run: Run, config: TrainConfig, tokens: Artefact, out: Path, on_epoch: Callable[[Epoch], None]
) -> list[Epoch]:
    """Train the linear layers and write them, with what they were trained on, to ``out`` (safetensors).

    The layers start at random, or as the adapter among the run's weights. An epoch without mosaics reads cached tokens
    and touches only linear layers; a mosaic is encoded as it comes.

    What it needs is checked by :func:`require_trainable`.
    """
    import torch
    from safetensors.torch import save_file

    from cascade.localisers.patch_text import LinearAdapter, grid_logits, layer_maps
    from cascade.losses import segmentation_loss
    from cascade.tasks.execution.networks import networks_of

    records = list(run.manifest)
    localise = cast(LinearClip, run.experiment.localise)
    networks = networks_of(run.experiment, run.weights)
    clip, model, device = networks.clip(localise.image_side), networks.clip_config, networks.device
    texts = text_features(run, {run.words(record) for record in records})
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    if "adapter" in run.weights:
        adapter = copy.deepcopy(_start(run, networks)).requires_grad_(True)
    else:
        adapter = LinearAdapter(len(localise.layers), model["vision_cfg"]["width"], model["embed_dim"]).to(device)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=config.learning_rate, betas=(0.5, 0.999))
    size = (localise.image_side, localise.image_side)
    epochs = []
    for number in range(1, config.epochs + 1):
        losses = []
        order = rng.permutation(len(records))
        for start in range(0, len(order), config.batch_size):
            chosen = [records[index] for index in order[start : start + config.batch_size]]
            examples = [_example(run, clip, tokens, record, rng, config.mosaic) for record in chosen]
            blocks = torch.stack([own for own, _ in examples]).to(device).unbind(dim=1)
            masks = torch.from_numpy(np.stack([mask for _, mask in examples])).to(device)
            text = torch.stack([texts[run.words(record)] for record in chosen]).clone()
            loss = segmentation_loss(layer_maps(grid_logits(adapter, blocks, text), size), masks)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
        epochs.append(Epoch(number, float(np.mean(losses))))
        on_epoch(epochs[-1])

    with replacing(out) as part:
        state = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
        save_file(state, part, metadata={"training": json.dumps(_training(run, config, epochs), sort_keys=True)})
    return epochs


def _example(
    run: Run, clip: nn.Module, tokens: Artefact, record: ImageRecord, rng: np.random.Generator, mosaic: float
) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Tokens [L, 1 + P, width] and mask [side, side] of one image, or with some probability of a mosaic."""
    import torch

    side = run.experiment.localise.image_side
    if mosaic and rng.random() < mosaic:
        image, mask = _mosaic(run, record.category, rng)
        return _encode(run, clip, [image])[0].cpu(), mask_in_frame(mask, (side, side))
    name = f"tokens_{side}"
    cached = tokens.read(record.image_id, only=[name]).arrays[name]
    return torch.from_numpy(cached).float(), mask_in_frame(_mask(run, record), (side, side))


def _mosaic(run: Run, category: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Four images of a category in a 2 x 2 canvas: a defect type drawn evenly, then a file (APRIL-GAN's augmentation).

    All four take the size of the first, so that images of different sizes fit one canvas.
    """
    own = [record for record in run.manifest if record.category == category]
    kinds = sorted({record.defect for record in own})
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    for _ in range(4):
        kind = kinds[rng.integers(len(kinds))]
        files = [record for record in own if record.defect == kind]
        record = files[rng.integers(len(files))]
        image, mask = read_image(run.image_path(record), record.white), _mask(run, record)
        if images and image.shape != images[0].shape:
            height, width = images[0].shape[:2]
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
            mask = mask_in_frame(mask, (height, width))
        images.append(image)
        masks.append(mask)
    canvas = np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])
    return canvas, np.vstack([np.hstack(masks[:2]), np.hstack(masks[2:])])


def _mask(run: Run, record: ImageRecord) -> NDArray[np.bool_]:
    if record.mask_path is None:
        return np.zeros((record.height, record.width), dtype=bool)
    return read_mask(run.manifest.root / record.mask_path)


def _encode(run: Run, clip: nn.Module, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Tokens [B, L, 1 + P, width] float32 of images [H, W, 3]."""
    import torch

    from cascade.backbones.clip.backbone import image_tensor, image_tokens
    from cascade.localisers.squares import squared

    config = cast(LinearClip, run.experiment.localise)
    inputs = torch.stack([image_tensor(squared(image, config.image_side)) for image in images])
    tokens = image_tokens(
        clip, inputs.to(next(clip.parameters()).device), config.layers, bf16=config.precision == "bf16"
    )
    return torch.stack(tokens.blocks, dim=1)


def require_trainable(run: Run) -> None:
    """Refuse what could not be trained, before anything is written.

    Raises:
        DataError: a defective image of the training data has no mask, or none is defective.
        WeightsError: the adapter to start from is of no use.
    """
    from cascade.tasks.execution.networks import networks_of

    records = list(run.manifest)
    unknown = [record for record in records if record.label is None or (record.label and record.mask_path is None)]
    if unknown:
        raise DataError(f"{run.manifest.root / unknown[0].path}: training needs a label, and a mask if it is defective")
    if not any(record.label for record in records):
        raise DataError(f"{run.manifest.root}: training needs defective images; none is in the chosen split")
    if "adapter" in run.weights:
        _start(run, networks_of(run.experiment, run.weights))


def _start(run: Run, networks: Networks) -> LinearAdapter:
    """The adapter that the training starts from."""
    return cast(AprilGan, run.localiser).adapter(networks)


def _training(run: Run, config: TrainConfig, epochs: Sequence[Epoch]) -> dict[str, Any]:
    """What an adapter has to say about itself: enough to refuse an unfair test."""
    localise = cast(LinearClip, run.experiment.localise)
    start = {"start": adapter_training(run.weights["adapter"])} if "adapter" in run.weights else {}
    return start | {
        "method": "april_gan",
        "dataset": run.manifest.name,
        "categories": list(run.manifest.categories),
        "image_ids": sorted({record.digest for record in run.manifest}),
        "backbone": localise.backbone,
        "layers": list(localise.layers),
        "image_side": localise.image_side,
        "activation": localise.activation,
        "clip_sha256": run.weights["clip"].sha256,
        "recipe": config.model_dump(mode="json"),
        "loss": [epoch.loss for epoch in epochs],
    }
