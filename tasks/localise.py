"""Stage ``localise``: where CLIP, asked in words, sees something wrong."""

from __future__ import annotations

from collections.abc import Sequence

from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.keys import StageKey
from cascade.tasks.decoded import squares_for_clip
from cascade.tasks.overlap import batches, encoded_at_once, pinned, read_ahead, written_behind
from cascade.tasks.stage import Run, Stage, StageItem, config_of, require_finite, worded_items
from cascade.tasks.words import text_features

VERSION = 2


def key(run: Run) -> StageKey:
    """Model, adapter, the sentences themselves (not the name of their file), and the input size."""
    from cascade.tasks.ensembles import load_ensemble

    config = config_of(
        run.experiment.localise,
        "weights",
        "sha256",
        "pretrained",
        "adapter",
        "adapter_sha256",
        "adapter_trained_on",
        "prompts",
    )
    config["sentences"] = load_ensemble(run.experiment.localise.prompts).as_data()
    weights = {role: run.weights[role].sha256 for role in ("clip", "adapter")}
    return StageKey("localise", VERSION, config, weights=weights)


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``logits`` [L, 2, grid, grid] float32: both logits of each block, on the grid of the largest input."""
    from cascade.tasks.models import adapter_of, check_vision, clip_config, clip_of

    config = run.experiment.localise
    clip = clip_config(config.backbone)
    check_vision(config, clip)
    clip_of(run), adapter_of(run)  # checkpoints that do not fit are refused before anything is written
    grid = max(config.sides) // clip["vision_cfg"]["patch_size"]
    return {"logits": ArraySpec((len(config.layers), 2, grid, grid), "float32")}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Compare the tokens of images with the text features of their class, and store the logits."""
    import torch
    from torch import nn

    from cascade.clip.april_gan import grid_logits, image_score, mean_logits
    from cascade.clip.backbone import ImageTokens, image_tensor, image_tokens
    from cascade.tasks.models import adapter_of, clip_of, device_of

    config = run.experiment.localise
    clips, adapter, device = [clip_of(run, side) for side in config.sides], adapter_of(run), device_of(run)
    at_once = encoded_at_once(config.batch_size, device)
    texts = text_features(run, {run.words(item.record) for item in items})

    def read(item: StageItem) -> list[torch.Tensor]:
        return [pinned(image_tensor(square), device) for square in squares_for_clip(run, item.record)]

    def encode(clip: nn.Module, view: Sequence[torch.Tensor]) -> ImageTokens:
        images = torch.stack([image.to(device, non_blocking=True) for image in view])
        return image_tokens(clip, images, config.layers, bf16=config.precision == "bf16")

    with written_behind(artefact) as write:
        for batch in batches(read_ahead(items, read), at_once):
            text = torch.stack([texts[run.words(item.record)] for item, _ in batch])
            views = zip(*(inputs for _, inputs in batch), strict=True)
            with torch.inference_mode():
                tokens = [encode(clip, view) for clip, view in zip(clips, views, strict=True)]
                logits = mean_logits([grid_logits(adapter, each.blocks, text) for each in tokens]).cpu().numpy()
                scores = image_score(tokens[0].pooled, text).cpu().numpy()
            for (item, _), own, score in zip(batch, logits, scores, strict=True):
                require_finite("localise", item.record, own)
                require_finite("localise", item.record, score)
                write(item.id, {"logits": own}, {"image_score": float(score)})


LOCALISE = Stage("localise", key, worded_items, arrays, compute)
