"""Networks, built from verified checkpoints and kept once per process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from segment_anything.modeling import Sam
from torch import nn
from torch.compiler import config as compiler

from cascade.backbones.clip.backbone import (
    Normalisation,
    Positions,
    build_clip,
    compile_blocks,
    model_config,
    model_names,
    normalisation,
    unreadable,
    wordless,
)
from cascade.backbones.clip.dpam import without_plain_attention
from cascade.backbones.clip.timm_tower import refused_side, tower_of
from cascade.backbones.features.efficientnet import STRIDES, Trunk
from cascade.backbones.features.timm_network import TimmNetwork, Unsuitable, check_side, levels_of
from cascade.backbones.sam.absorbed import AbsorbedDecoder
from cascade.backbones.sam.build import build_sam, trunk_of
from cascade.backbones.sam.decoder import Decoder, decode
from cascade.configs.loader import MODELS
from cascade.configs.localisers import (
    ClipBlocks,
    ClipLocaliser,
    LocaliseConfig,
    Mutual,
    UniAdet,
    WinClip,
    of_clip,
    of_features,
)
from cascade.configs.schema import Experiment, RuntimeConfig
from cascade.localisers.protocol import Features
from cascade.storage.errors import ConfigError, WeightsError, nearest
from cascade.storage.weights import SHIPPED_FOLDER, LocatedWeights, locate
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.execution.checkpoints import load_state, read_state, require_finite
from cascade.tasks.execution.devices import claim_device
from cascade.tasks.execution.weights import PACKAGED_FEATURES

_GRAPHS = 64
"""Graphs of one function, after which torch goes on without compiling; 8 by default. A network, a precision, a size of
the batch and each of the three passes has one of its own."""

Weights = Mapping[str, LocatedWeights]
"""Verified checkpoints by role."""
Module = TypeVar("Module", bound=nn.Module)


def device_of(runtime: RuntimeConfig) -> torch.device:
    """The device that the configuration asks for. Raises ``ConfigError`` if there is no such device."""
    wanted = claim_device(runtime.devices) if runtime.devices else str(runtime.device)
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"runtime.device is '{wanted}', but torch sees no GPU; use 'auto' or 'cpu'")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def compiles(runtime: RuntimeConfig) -> bool:
    """Whether networks are to be compiled. Raises ``ConfigError`` if the compiler that this needs is not there."""
    if not runtime.compile:
        return False
    on_gpu = device_of(runtime).type == "cuda"
    chosen = os.environ.get("CC" if on_gpu else "CXX")
    compilers = [chosen] if chosen else ["gcc", "clang"] if on_gpu else ["g++"]
    if not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"runtime.compile: no {'C' if on_gpu else 'C++'} compiler ({' or '.join(compilers)}) on this machine; "
            "install one, or leave it off"
        )
    return True


def sam_of(experiment: Experiment, weights: Weights) -> Sam:
    """The SAM of an experiment, on its device."""
    located, device = weights["sam"], device_of(experiment.runtime)
    return _sam(experiment.embed.backbone, located.path, located.sha256, device)


def decoder_of(experiment: Experiment, weights: Weights) -> Decoder:
    """The decoder of an experiment's SAM, in the order of multiplication and the precision that it asks for."""
    refine, runtime, sam = experiment.refine, experiment.runtime, sam_of(experiment, weights)
    bf16 = getattr(refine, "precision", "fp32") == "bf16"
    if getattr(refine, "decoder", "plain") == "plain":
        return partial(decode, sam, bf16=bf16)
    return _absorbed(sam, bf16, compiles(runtime) and device_of(runtime).type == "cuda")


@dataclass(frozen=True)
class Networks:
    """The networks of a localiser, loaded when it first asks for them, and kept once per process.

    Attributes:
        config: the localiser's options.
        weights: by role.
        device: where they are.
        compiled: whether CLIP's blocks are compiled.
    """

    config: LocaliseConfig
    weights: Weights
    device: torch.device
    compiled: bool

    @property
    def clip_config(self) -> dict[str, Any]:
        """open_clip's configuration of the CLIP model. Raises ``ConfigError`` if options do not fit it."""
        options = of_clip(self.config)
        config = clip_config(options.backbone)
        check_vision(options, config)
        return config

    def clip(self, side: int) -> nn.Module:
        """The CLIP model for square inputs of ``side`` pixels."""
        localise, located = of_clip(self.config), self.weights["clip"]
        quick = localise.activation == "quickgelu"
        pinned = located.source != "path" or localise.sha256 is not None
        positions = getattr(localise, "positions", "bicubic")
        normalised = normalisation(localise.backbone, localise.pretrained)
        shape = (side, quick, positions, normalised, self.device, self.compiled)
        return _clip(localise.backbone, located.path, located.sha256, pinned, *shape)

    def features(self) -> Features:
        """The frozen network of features. Raises ``ConfigError`` if options do not fit it."""
        located, (place, options) = self.weights["features"], of_features(self.config)
        check_levels(place, options)
        network = _features(place, options.backbone, located.path, located.sha256, options.image_side, self.device)
        return cast("Features", network)

    def trained(
        self, role: str, build: Callable[[Mapping[str, torch.Tensor]], Module], fault: Callable[[Module], str]
    ) -> Module:
        """What ``build`` makes of the checkpoint of a role. Raises ``WeightsError`` if it is another model's.

        Layers of the right shape that were trained on the tokens of other blocks, or of the same blocks with another
        activation, would draw a map of nothing.
        """
        located = self.weights[role]
        training = adapter_training(located)
        method = getattr(self.config, "trained_by", self.config.method)
        if training.get("method", method) != method:
            raise WeightsError(
                f"{located.path}: was trained as {training['method']}, not as {method}; use another {role}, or set "
                f"localise.method={training['method']}"
            )
        for name in ("tower", "backbone", "layers", "activation", "aliased"):
            chosen = getattr(self.config, name, None)
            chosen = list(chosen) if isinstance(chosen, tuple) else chosen
            if training.get(name, chosen) != chosen:
                raise WeightsError(
                    f"{located.path}: was trained with localise.{name} {training[name]}, not {chosen}; set that, or "
                    f"use another {role}"
                )
        module = cast("Module", _trained(located.path, located.sha256, build))
        if wrong := fault(module):
            raise WeightsError(f"{located.path}: {wrong}")
        return module.to(self.device)


def networks_of(experiment: Experiment, weights: Weights) -> Networks:
    """The networks of an experiment's localiser."""
    runtime = experiment.runtime
    return Networks(experiment.localise, weights, device_of(runtime), compiles(runtime))


def clip_config(backbone: str) -> dict[str, Any]:
    """The open_clip configuration of a backbone, with the dimensions of its tower also where timm knows them.

    These are ``width``, ``layers`` and ``patch_size`` of ``vision_cfg``. Raises ``ConfigError`` naming the nearest
    model that can be read.
    """
    ours = {path.stem.removesuffix("_clip"): path for path in MODELS.glob("*_clip.json")}
    known = json.loads(ours[backbone].read_text(encoding="utf-8")) if backbone in ours else model_config(backbone)
    if known is None:
        raise ConfigError(f"localise.backbone: no model '{backbone}'; {nearest(backbone, readable())}")
    reason = unreadable(known)
    try:
        width, layers, patch = tower_of(known) if reason is None else (0, 0, 0)
    except Unsuitable as error:
        reason = str(error)
    if reason is not None:
        raise ConfigError(f"localise.backbone: '{backbone}' cannot be read: {reason}; {nearest(backbone, readable())}")
    config: dict[str, Any] = known
    config["vision_cfg"] |= {"width": width, "layers": layers, "patch_size": patch}
    return config


def readable() -> list[str]:
    """Names of the CLIP models that can be read, words included."""
    return [*model_names(), *(path.stem.removesuffix("_clip") for path in MODELS.glob("*_clip.json"))]


def trunk_state(name: str) -> dict[str, torch.Tensor]:
    """The weights of a frozen trunk, which come with a package. Raises ``WeightsError`` if that is not installed."""
    located = locate(name, folder=SHIPPED_FOLDER)
    return read_state(located.path, located.sha256)


def check_levels(place: str, localise: Mutual | UniAdet) -> None:
    """Raise ``ConfigError`` if a network of features is none, lacks a level, or cannot cut up its input."""
    name = localise.backbone
    try:
        strides = STRIDES if name == PACKAGED_FEATURES else levels_of(name)[1]
    except Unsuitable as error:
        raise ConfigError(f"{place}.backbone: {error}") from error
    coarsest = max(strides)
    if localise.image_side % coarsest:
        below = localise.image_side // coarsest * coarsest
        raise ConfigError(
            f"{place}.image_side {localise.image_side}: must be a multiple of the coarsest stride of {name}, "
            f"{coarsest}; for example {below} or {below + coarsest}"
        )
    if localise.layers is not None:
        if max(localise.layers) > len(strides):
            raise ConfigError(f"{place}.layers {list(localise.layers)}: {name} has levels 1 to {len(strides)}")
    elif isinstance(localise, Mutual) and not set(localise.strides) <= set(strides):
        raise ConfigError(
            f"{place}.strides {list(localise.strides)}: the levels of {name} have strides "
            f"{', '.join(map(str, sorted(set(strides))))}; choose among them, or choose levels by {place}.layers "
            f"(1 to {len(strides)})"
        )


def check_words(localise: ClipLocaliser, config: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if a model cannot be asked in words, and the localiser does so."""
    if localise.SPEAKS and (reason := wordless(config)) is not None:
        raise ConfigError(
            f"localise.backbone: {localise.method} asks CLIP in words, and '{localise.backbone}' cannot be asked: "
            f"{reason}; use localise.method=uniadet, or another model: {nearest(localise.backbone, readable())}"
        )


def check_vision(localise: ClipLocaliser, config: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if a configuration does not fit the vision tower.

    It may ask for a block that is not there, or for what only another tower or text has, for an input that cannot be
    cut into patches, or for another activation than the name says.
    """
    quick, tower = bool(config.get("quick_gelu")), config["vision_cfg"].get("timm_model_name")
    if quick and localise.activation != "quickgelu":
        raise ConfigError(
            f"localise.backbone: '{localise.backbone}' has quickgelu in its name, but localise.activation is "
            f"'{localise.activation}'; set localise.activation=quickgelu, or leave it out of the name"
        )
    if tower is not None and not quick and localise.activation != "gelu":
        raise ConfigError(
            f"localise.activation: '{localise.backbone}' has the activation with which it was trained, which is not "
            f"'{localise.activation}'; set localise.activation=gelu"
        )
    check_words(localise, config)
    if localise.OWN_TOWER and tower is not None:
        raise ConfigError(
            f"localise.backbone: {localise.method} goes through the layers of CLIP's image tower one by one, and that "
            f"of '{localise.backbone}' is one of timm's; use a ViT of open_clip, such as ViT-L-14-336"
        )
    if localise.ATTENTION and (reason := without_plain_attention(config)) is not None:
        raise ConfigError(
            f"localise.backbone: {localise.method} reads the attention of CLIP's blocks, and '{localise.backbone}' "
            f"cannot be read so: {reason}; use a ViT of open_clip, such as ViT-L-14-336"
        )
    depth = config["vision_cfg"]["layers"]
    if isinstance(localise, ClipBlocks) and any(layer < 1 or layer > depth for layer in localise.layers):
        raise ConfigError(f"localise.layers {list(localise.layers)}: {localise.backbone} has blocks 1 to {depth}")
    patch = config["vision_cfg"]["patch_size"]
    for number, side in enumerate(localise.sides):
        if side < patch or side % patch:
            below = side // patch * patch
            raise ConfigError(
                f"localise.{'more_sides' if number else 'image_side'} {side}: must be a multiple of the patch side of "
                f"{localise.backbone}, {patch}; for example {max(below, patch)} or {below + patch}"
            )
        if tower is not None and (reason := refused_side(tower, side)) is not None:
            raise ConfigError(
                f"localise.{'more_sides' if number else 'image_side'} {side}: {reason}; use its native side, or "
                f"another backbone"
            )
    if isinstance(localise, WinClip) and max(localise.scales) > localise.image_side // patch:
        raise ConfigError(
            f"localise.scales {list(localise.scales)}: an input of {localise.image_side} pixels has "
            f"{localise.image_side // patch} cells along a side; choose smaller windows"
        )


@lru_cache(maxsize=1)
def _sam(backbone: str, path: Path, sha256: str, device: torch.device) -> Sam:
    trunk = trunk_of(backbone)
    sam = build_sam(backbone, None if trunk is None else trunk_state(trunk))
    load_state(sam, read_state(path, sha256), path, f"SAM '{backbone}'")
    require_finite(sam, path)
    return sam.requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def _absorbed(sam: Sam, bf16: bool, compiled: bool) -> AbsorbedDecoder:
    if compiled:
        _allow_graphs()
    return AbsorbedDecoder(sam, bf16=bf16, compiled=compiled)


@lru_cache(maxsize=4)  # one for each side of the input
def _clip(
    backbone: str,
    path: Path,
    sha256: str,
    pinned: bool,
    side: int,
    quick_gelu: bool,
    positions: Positions,
    normalised: Normalisation,
    device: torch.device,
    compiled: bool,
) -> nn.Module:
    state, config = read_state(path, sha256, pinned=pinned), clip_config(backbone)
    trunk = trunk_state(config["vision_cfg"]["trunk"]) if "trunk" in config["vision_cfg"] else None
    try:
        clip = build_clip(
            config, state, side, quick_gelu=quick_gelu, trunk=trunk, positions=positions, normalised=normalised
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise WeightsError(f"{path}: does not fit CLIP '{backbone}' ({error})") from error
    require_finite(clip, path)
    clip = clip.to(device)
    if compiled:
        _allow_graphs()
        compile_blocks(clip)
    return clip


@lru_cache(maxsize=1)
def _features(place: str, backbone: str, path: Path, sha256: str, side: int, device: torch.device) -> nn.Module:
    try:
        if backbone == PACKAGED_FEATURES:
            return Trunk(read_state(path, sha256)).to(device)
        check_side(backbone, side)  # before the weights are read
        network = TimmNetwork(backbone, read_state(path, sha256), side)
    except Unsuitable as error:
        raise ConfigError(f"{place}.image_side {side}: {error}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    require_finite(network, path)
    return network.to(device)


@lru_cache(maxsize=2)
def _trained(path: Path, sha256: str, build: Callable[[Mapping[str, torch.Tensor]], nn.Module]) -> nn.Module:
    try:
        module = build(read_state(path, sha256)).requires_grad_(False)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    require_finite(module, path)
    return module


def _allow_graphs() -> None:
    """Let torch make as many graphs as the networks here take; it is one setting for the whole process."""
    compiler.recompile_limit = max(compiler.recompile_limit, _GRAPHS)
