"""Stage ``localise``: where CLIP, asked in words, sees something wrong."""

from __future__ import annotations

from collections.abc import Sequence

from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.keys import StageKey
from cascade.tasks import tokens
from cascade.tasks.execution.threads import written_behind
from cascade.tasks.stage import Run, Stage, StageItem, config_of, require_finite, worded_items
from cascade.tasks.words import text_features

VERSION = 2


def key(run: Run) -> StageKey:
    """Model, adapter, the sentences themselves (not the name of their file), the input size, and tokens if kept."""
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
        "keep",
    )
    config["sentences"] = load_ensemble(run.experiment.localise.prompts).as_data()
    weights = {role: run.weights[role].sha256 for role in ("clip", "adapter")}
    upstream = {"tokens": tokens.key(run).digest} if run.experiment.localise.keep == "tokens" else {}
    return StageKey("localise", VERSION, config, upstream, weights)


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """``logits`` [L, 2, grid, grid] float32: both logits of each block, on the grid of the largest input."""
    from cascade.tasks.execution.networks import adapter_of, check_vision, clip_config, clip_of

    config = run.experiment.localise
    clip = clip_config(config.backbone)
    check_vision(config, clip)
    clip_of(run), adapter_of(run)  # checkpoints that do not fit are refused before anything is written
    grid = max(config.sides) // clip["vision_cfg"]["patch_size"]
    return {"logits": ArraySpec((len(config.layers), 2, grid, grid), "float32")}


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Compare the tokens of images with the text features of their class, and store the logits."""
    import torch

    from cascade.localisers.april_gan import grid_logits, image_score, mean_logits
    from cascade.tasks.execution.networks import adapter_of

    adapter = adapter_of(run)
    texts = text_features(run, {run.words(item.record) for item in items})
    looked = tokens.kept(run, items) if run.experiment.localise.keep == "tokens" else tokens.looked_at(run, items)
    with written_behind(artefact) as write:
        for batch, views in looked:
            text = torch.stack([texts[run.words(item.record)] for item in batch])
            with torch.inference_mode():
                logits = mean_logits([grid_logits(adapter, each.blocks, text) for each in views]).cpu().numpy()
                scores = image_score(views[0].pooled, text).cpu().numpy()
            for item, own, score in zip(batch, logits, scores, strict=True):
                require_finite("localise", item.record, own)
                require_finite("localise", item.record, score)
                write(item.id, {"logits": own}, {"image_score": float(score)})


LOCALISE = Stage("localise", key, worded_items, arrays, compute)
