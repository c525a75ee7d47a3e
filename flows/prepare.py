"""Everything that is decided before a stage runs: images, checkpoints, and whether the test would be fair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from configs.schema import Experiment
from configs.settings import Settings
from storage.datasets import Manifest, load_manifest
from storage.errors import ConfigError, DataError, LeakError
from storage.weights import LocatedWeights, locate
from tasks.stage import Run

_SHIPPED_SAM = {"mini": "mini_sam"}
_SHIPPED_CLIP = {"mini": "mini_clip"}
_SHIPPED_ADAPTERS = {"mini": "april_gan_mini"}


@dataclass(frozen=True)
class Prepared:
    """A run that may start, and what has to be said about it."""

    run: Run
    leak: str | None
    warnings: tuple[str, ...]


def prepare(experiment: Experiment, store: Path, settings: Settings, *, allow_leak: bool = False) -> Prepared:
    """Find and verify images and checkpoints; nothing is written.

    Raises:
        ConfigError, DataError, WeightsError: see their messages.
        LeakError: the adapter was trained on the data it would be tested on, and ``allow_leak`` is false.
    """
    manifest = read_manifest(experiment)
    run = Run(experiment, manifest, store.resolve(), locate_weights(experiment, settings))
    leak = find_leak(experiment, manifest, run.weights["adapter"])
    if leak and not allow_leak:
        raise LeakError(f"{leak}; test on other data, use another adapter, or pass --allow-leak to have it marked")
    return Prepared(run, leak, tuple(_warnings(manifest)))


def read_manifest(experiment: Experiment) -> Manifest:
    """The images that the configuration selects. Raises ``DataError`` if there are none."""
    dataset = experiment.dataset
    if dataset.path is None:
        raise ConfigError("no dataset; give --dataset PATH, or set dataset.path")
    whole = load_manifest(dataset.path, dataset.layout, name=dataset.name)
    manifest = whole.select(dataset.categories, dataset.exclude, dataset.split)
    if not len(manifest):
        raise DataError(f"{dataset.path}: no image in split '{dataset.split}' of the chosen categories")
    return manifest


def locate_weights(experiment: Experiment, settings: Settings) -> dict[str, LocatedWeights]:
    """The verified checkpoints of a run by role: a path in the configuration, the weights folder, or the package."""
    embed = experiment.embed
    return {
        "sam": locate(
            embed.weights or _SHIPPED_SAM.get(embed.backbone, embed.backbone),
            folder=settings.weights,
            sha256=embed.sha256,
        ),
        "clip": locate_clip(experiment, settings),
        "adapter": _locate_adapter(experiment, settings),
    }


def locate_clip(experiment: Experiment, settings: Settings) -> LocatedWeights:
    """The CLIP checkpoint of an experiment."""
    localise = experiment.localise
    registered = _SHIPPED_CLIP.get(localise.backbone, f"{localise.backbone}/{localise.pretrained}")
    return locate(localise.weights or registered, folder=settings.weights, sha256=localise.sha256)


def adapter_training(located: LocatedWeights) -> dict[str, object]:
    """What one of our adapters says about its training; empty for a foreign one."""
    if located.path.suffix != ".safetensors":
        return {}
    with safe_open(located.path, framework="numpy") as file:
        metadata = file.metadata() or {}
    training: dict[str, object] = json.loads(metadata.get("training", "{}"))
    return training


def find_leak(experiment: Experiment, manifest: Manifest, adapter: LocatedWeights) -> str | None:
    """Why a test would be unfair: an image, a category or a dataset that the adapter was trained on."""
    training = adapter_training(adapter)
    trained_images = training.get("image_ids", [])
    assert isinstance(trained_images, list)
    shared = set(trained_images) & {record.image_id for record in manifest}
    if shared:
        return f"{adapter.path.name} was trained on {len(shared)} of the {len(manifest)} images of {manifest.name}"
    trained_categories = training.get("categories", [])
    assert isinstance(trained_categories, list)
    if training.get("dataset") == manifest.name:
        for category in sorted(set(trained_categories) & set(manifest.categories)):
            return f"{adapter.path.name} was trained on category '{category}' of {manifest.name}"
    named = {name.lower() for name in experiment.localise.adapter_trained_on}
    if manifest.name.lower() in named:
        return f"{adapter.path.name} was trained on {manifest.name}, says localise.adapter_trained_on"
    return None


def _locate_adapter(experiment: Experiment, settings: Settings) -> LocatedWeights:
    localise = experiment.localise
    name = localise.adapter or _SHIPPED_ADAPTERS.get(localise.backbone)
    if name is None:
        raise ConfigError(
            f"localise.adapter: april_gan on {localise.backbone} needs trained linear layers; "
            f"make them with `cascade train april_gan --dataset PATH`, or give the path of a checkpoint"
        )
    return locate(name, folder=settings.weights, sha256=localise.adapter_sha256)


def _warnings(manifest: Manifest) -> list[str]:
    lines = []
    for category in manifest.categories:
        labels = {record.label for record in manifest if record.category == category}
        if labels == {None}:
            lines.append(f"{category}: no labels; scores and maps are written, metrics stay empty")
        elif 1 not in labels:
            lines.append(f"{category}: no defective image; its metrics stay empty")
        elif any(r.label == 1 and r.mask_path is None for r in manifest if r.category == category):
            lines.append(f"{category}: a defective image has no mask; its pixel metrics stay empty")
        elif 0 not in labels:
            lines.append(f"{category}: no good image; its image metrics stay empty")
    return lines
