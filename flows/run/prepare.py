"""Everything that is decided before a stage runs: images, checkpoints, and whether the test would be fair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cascade.configs.schema import Experiment
from cascade.configs.settings import Settings
from cascade.flows.run.reading import Images, lines_of, read_images
from cascade.storage.datasets import Manifest
from cascade.storage.errors import ConfigError, DataError, LeakError, PipelineError, WeightsError, nearest
from cascade.storage.weights import REGISTRY, LocatedWeights, locate
from cascade.tasks.aggregate import definable
from cascade.tasks.stage import Run
from cascade.tasks.training.april_gan import adapter_training

_SHIPPED_SAM = {"mini": "mini_sam"}
_SHIPPED_CLIP = {"mini": "mini_clip"}
_SHIPPED_ADAPTERS = {"mini": "april_gan_mini"}


@dataclass(frozen=True)
class Prepared:
    """A run that may start, and what has to be said about it."""

    run: Run
    leak: str | None
    images: Images

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each; those of a kind beyond the first few are counted."""
        return lines_of(self.images.report.warnings)


def prepare(
    experiment: Experiment,
    store: Path,
    settings: Settings,
    *,
    allow_leak: bool = False,
    skip_bad: bool = False,
    images: Images | None = None,
) -> Prepared:
    """Find and verify images and checkpoints; nothing is written.

    ``images`` is what :func:`cascade.flows.run.reading.read_images` returned for the same dataset, so that several runs
    read it once; without it, they are read, and with ``skip_bad`` those that cannot be used are left out.

    Raises:
        ConfigError, DataError, WeightsError: see their messages.
        LeakError: the adapter was trained on the data it would be tested on, and ``allow_leak`` is false.
    """
    images = images or read_images(experiment, store, skip_bad=skip_bad)
    manifest = images.manifest
    run = Run(experiment, manifest, store.resolve(), locate_weights(experiment, settings))
    leak = find_leak(experiment, manifest, run.weights["adapter"])
    if leak and not allow_leak:
        raise LeakError(f"{leak}; test on other data, use another adapter, or pass --allow-leak to have it marked")
    return Prepared(run, leak, images)


def require_metrics(manifest: Manifest, purpose: str) -> None:
    """Raise ``DataError`` if labels and masks allow no metric in any category; ``purpose`` is what needs one."""
    categories = {name: [each for each in manifest if each.category == name] for name in manifest.categories}
    if not any(definable(records) for records in categories.values()):
        known = Counter(record.label for record in manifest)
        masks = sum(record.mask_path is not None for record in manifest)
        raise DataError(
            f"{manifest.root}: {purpose} needs metrics, and none is defined: {len(manifest)} images, of which "
            f"{known[0]} are labelled good and {known[1]} defective ({masks} with a mask); it takes both kinds in one "
            f"category, or a mask for every defective image"
        )


def locate_weights(experiment: Experiment, settings: Settings) -> dict[str, LocatedWeights]:
    """The verified checkpoints of a run by role: a path in the configuration, the weights folder, or the package."""
    found, faults = _look_for_weights(experiment, settings)
    if len(faults) > 1:
        lines = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults.values(), 1))
        kind = ConfigError if all(isinstance(each, ConfigError) for each in faults.values()) else WeightsError
        raise kind(f"{len(faults)} checkpoints cannot be used: {lines}")
    for fault in faults.values():
        raise fault
    return found


def missing_weights(experiment: Experiment, settings: Settings) -> dict[str, str]:
    """By role, what is wrong with each checkpoint that a run could not use, and what to do; empty if none is."""
    return {role: str(fault) for role, fault in _look_for_weights(experiment, settings)[1].items()}


def _look_for_weights(
    experiment: Experiment, settings: Settings
) -> tuple[dict[str, LocatedWeights], dict[str, PipelineError]]:
    """The checkpoints that were found and the faults of the others, by role."""
    found: dict[str, LocatedWeights] = {}
    faults: dict[str, PipelineError] = {}
    for role, find in _ROLES.items():
        try:
            found[role] = find(experiment, settings)
        except PipelineError as error:
            faults[role] = error
    return found, faults


def _locate_sam(experiment: Experiment, settings: Settings) -> LocatedWeights:
    embed = experiment.embed
    name = embed.weights or _SHIPPED_SAM.get(embed.backbone, embed.backbone)
    return locate(name, folder=settings.weights, sha256=embed.sha256)


def locate_clip(experiment: Experiment, settings: Settings) -> LocatedWeights:
    """The CLIP checkpoint of an experiment."""
    localise = experiment.localise
    plain = localise.backbone.removesuffix("-quickgelu")
    registered = _SHIPPED_CLIP.get(localise.backbone, f"{plain}/{localise.pretrained}")
    if localise.weights is None and registered not in REGISTRY:
        from cascade.tasks.execution.networks import clip_config  # brings torch along

        clip_config(localise.backbone)
        known = [name.partition("/")[0] for name in REGISTRY if "/" in name] + list(_SHIPPED_CLIP)
        raise ConfigError(
            f"localise.backbone: no weights are registered for '{localise.backbone}' with tag '{localise.pretrained}'; "
            f"{nearest(localise.backbone, known)}, or give localise.weights=PATH"
        )
    return locate(localise.weights or registered, folder=settings.weights, sha256=localise.sha256)


def find_leak(experiment: Experiment, manifest: Manifest, adapter: LocatedWeights) -> str | None:
    """Why a test would be unfair: an image, a category or a dataset that the adapter was trained on.

    An adapter that was trained from another one has also seen what that one was trained on.
    """
    training = adapter_training(adapter)
    while training:
        shared = set(training.get("image_ids", [])) & {record.digest for record in manifest}
        if shared:
            return f"{adapter.path.name} was trained on {len(shared)} of the {len(manifest)} images of {manifest.name}"
        if training.get("dataset") == manifest.name:
            for category in sorted(set(training.get("categories", [])) & set(manifest.categories)):
                return f"{adapter.path.name} was trained on category '{category}' of {manifest.name}"
        training = training.get("start", {})
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


_ROLES = {"sam": _locate_sam, "clip": locate_clip, "adapter": _locate_adapter}
