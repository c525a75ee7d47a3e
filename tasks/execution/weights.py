"""The checkpoints of an experiment: a path in the configuration, the weights folder, or the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cascade.configs.localisers import TrainedClip, of_clip, of_features
from cascade.configs.schema import Experiment
from cascade.localisers import make_localiser
from cascade.refiners import refiner_class
from cascade.storage.errors import ConfigError, PipelineError, WeightsError, nearest
from cascade.storage.weights import REGISTRY, LocatedWeights, locate

PACKAGED_FEATURES = "efficientnet_lite0"
"""The network of features whose weights come with a package."""

_SHIPPED_SAM = {"mini": "mini_sam"}
_SHIPPED_CLIP = {"mini": "mini_clip"}
_SHIPPED_ADAPTERS = {("april_gan", "mini"): "april_gan_mini"}
"""By the method that is trained, and the backbone."""


def roles_of(experiment: Experiment) -> list[str]:
    """The roles of the checkpoints that an experiment needs."""
    sam = ["sam"] if refiner_class(experiment.refine.method).STEPS else []
    return [*sam, *make_localiser(experiment.localise.method, experiment.localise).roles]


def locate_weights(experiment: Experiment, folder: Path) -> dict[str, LocatedWeights]:
    """The verified checkpoints of a run by role: a path in the configuration, the weights folder, or the package."""
    return _all_found(*_look_for_weights(experiment, folder, roles_of(experiment)))


def locate_frozen(experiment: Experiment, folder: Path, trained: str) -> dict[str, LocatedWeights]:
    """The verified checkpoints by role of what a localiser is given for a training, without the role ``trained``."""
    every = make_localiser(experiment.localise.method, experiment.localise).roles
    roles = [role for role in every if role != trained]
    return _all_found(*_look_for_weights(experiment, folder, roles))


def _all_found(found: dict[str, LocatedWeights], faults: dict[str, PipelineError]) -> dict[str, LocatedWeights]:
    if len(faults) > 1:
        lines = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults.values(), 1))
        kind = ConfigError if all(isinstance(each, ConfigError) for each in faults.values()) else WeightsError
        raise kind(f"{len(faults)} checkpoints cannot be used: {lines}")
    for fault in faults.values():
        raise fault
    return found


def missing_weights(experiment: Experiment, folder: Path) -> dict[str, str]:
    """By role, what is wrong with each checkpoint that a run could not use, and what to do; empty if none is."""
    _, faults = _look_for_weights(experiment, folder, roles_of(experiment))
    return {role: str(fault) for role, fault in faults.items()}


def _look_for_weights(
    experiment: Experiment, folder: Path, roles: Sequence[str]
) -> tuple[dict[str, LocatedWeights], dict[str, PipelineError]]:
    """The checkpoints that were found and the faults of the others, by role."""
    found: dict[str, LocatedWeights] = {}
    faults: dict[str, PipelineError] = {}
    for role in roles:
        try:
            found[role] = _ROLES[role](experiment, folder)
        except PipelineError as error:
            faults[role] = error
    return found, faults


def _locate_sam(experiment: Experiment, folder: Path) -> LocatedWeights:
    embed = experiment.embed
    name = embed.weights or _SHIPPED_SAM.get(embed.backbone, embed.backbone)
    return locate(name, folder=folder, sha256=embed.sha256)


def locate_clip(experiment: Experiment, folder: Path) -> LocatedWeights:
    """The CLIP checkpoint of an experiment."""
    localise = of_clip(experiment.localise)
    plain = localise.backbone.removesuffix("-quickgelu")
    registered = _SHIPPED_CLIP.get(localise.backbone, f"{plain}/{localise.pretrained}")
    if localise.weights is None and registered not in REGISTRY:
        from cascade.backbones.clip.backbone import origin  # brings torch along
        from cascade.tasks.execution.networks import check_words, clip_config

        check_words(localise, clip_config(localise.backbone))
        url = origin(localise.backbone, localise.pretrained)
        known = [name.partition("/")[0] for name in REGISTRY if "/" in name] + list(_SHIPPED_CLIP)
        raise ConfigError(
            f"localise.backbone: no weights are registered for '{localise.backbone}' with tag '{localise.pretrained}'; "
            f"{nearest(localise.backbone, known)}, or give localise.weights=PATH"
            f"{f' (open_clip has them from {url})' if url else ''}"
        )
    return locate(localise.weights or registered, folder=folder, sha256=localise.sha256)


def _locate_adapter(experiment: Experiment, folder: Path) -> LocatedWeights:
    localise = cast(TrainedClip, experiment.localise)
    name = localise.adapter or _SHIPPED_ADAPTERS.get((localise.trained_by, localise.backbone))
    if name is None:
        raise ConfigError(
            f"localise.adapter: {localise.method} on {localise.backbone} needs trained weights; make them with "
            f"`cascade train {localise.trained_by} --dataset PATH`, or give the path of a checkpoint"
        )
    return locate(name, folder=folder, sha256=localise.adapter_sha256)


def _locate_features(experiment: Experiment, folder: Path) -> LocatedWeights:
    place, localise = of_features(experiment.localise)
    if localise.weights is None and localise.backbone != PACKAGED_FEATURES:
        from cascade.backbones.features.timm_network import Unsuitable, require_name  # brings torch along

        try:
            require_name(localise.backbone)
        except Unsuitable as error:
            raise ConfigError(f"{place}.backbone: {error}; {PACKAGED_FEATURES} needs no weights") from error
        raise ConfigError(
            f"{place}.backbone: '{localise.backbone}' of timm has no weights here, and none are downloaded; give its "
            f"checkpoint by {place}.weights=PATH, or use {PACKAGED_FEATURES}"
        )
    return locate(localise.weights or PACKAGED_FEATURES, folder=folder, sha256=localise.sha256)


_ROLES = {"sam": _locate_sam, "clip": locate_clip, "adapter": _locate_adapter, "features": _locate_features}
