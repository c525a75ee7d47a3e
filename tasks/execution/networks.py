"""Networks, built from verified checkpoints and kept once per process."""

from __future__ import annotations

import json
import os
import shutil
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import nn
from torch.compiler import config as compiler

from cascade.backbones.clip.backbone import (
    build_clip,
    compile_blocks,
    model_config,
    model_names,
    normalises_alike,
    unreadable,
)
from cascade.backbones.sam.absorbed import AbsorbedDecoder
from cascade.backbones.sam.build import build_sam
from cascade.backbones.sam.decoder import Decoder, decode
from cascade.configs.loader import MODELS
from cascade.configs.schema import LocaliseConfig
from cascade.localisers.april_gan import LinearAdapter, build_adapter
from cascade.storage.errors import ConfigError, WeightsError, nearest
from cascade.tasks.execution.checkpoints import load_state, read_state, require_finite
from cascade.tasks.execution.devices import claim_device
from cascade.tasks.stage import Run
from cascade.tasks.training.april_gan import adapter_training

_GRAPHS = 64
"""Graphs of one function, after which torch goes on without compiling; 8 by default. A network, a precision, a size of
the batch and each of the three passes has one of its own."""


def device_of(run: Run) -> torch.device:
    """The device that the configuration asks for. Raises ``ConfigError`` if there is no such device."""
    runtime = run.experiment.runtime
    wanted = claim_device(runtime.devices) if runtime.devices else str(runtime.device)
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"runtime.device is '{wanted}', but torch sees no GPU; use 'auto' or 'cpu'")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def compiles(run: Run) -> bool:
    """Whether networks are to be compiled; if so, torch is told to make as many graphs as that takes.

    Raises ``ConfigError`` if the compiler that this needs is not there.
    """
    if not run.experiment.runtime.compile:
        return False
    on_gpu = device_of(run).type == "cuda"
    chosen = os.environ.get("CC" if on_gpu else "CXX")
    compilers = [chosen] if chosen else ["gcc", "clang"] if on_gpu else ["g++"]
    if not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"runtime.compile: no {'C' if on_gpu else 'C++'} compiler ({' or '.join(compilers)}) on this machine; "
            "install one, or leave it off"
        )
    compiler.recompile_limit = _GRAPHS
    return True


def sam_of(run: Run) -> Sam:
    """The SAM of a run, on its device."""
    located = run.weights["sam"]
    return _sam(run.experiment.embed.backbone, located.path, located.sha256, device_of(run))


def decoder_of(run: Run) -> Decoder:
    """The decoder of a run's SAM, in the order of multiplication and the precision that the configuration asks for."""
    bf16 = run.experiment.refine.precision == "bf16"
    if run.experiment.refine.decoder == "plain":
        return partial(decode, sam_of(run), bf16=bf16)
    return _absorbed(sam_of(run), bf16, compiles(run) and device_of(run).type == "cuda")


def clip_of(run: Run, side: int | None = None) -> nn.Module:
    """The CLIP model of a run on its device, for inputs of ``side`` pixels or of ``localise.image_side``."""
    localise, located = run.experiment.localise, run.weights["clip"]
    quick = localise.activation == "quickgelu"
    pinned = located.source != "path" or localise.sha256 is not None
    side, device = side or localise.image_side, device_of(run)
    return _clip(localise.backbone, located.path, located.sha256, pinned, side, quick, device, compiles(run))


def adapter_of(run: Run) -> LinearAdapter:
    """The trained linear layers of a run, on its device. Raises ``WeightsError`` if they are another CLIP model's.

    Layers of the right shape that were trained on the tokens of other blocks would draw a map of nothing.
    """
    localise, located = run.experiment.localise, run.weights["adapter"]
    training = adapter_training(located)
    for field, chosen in (("backbone", localise.backbone), ("layers", list(localise.layers))):
        if training.get(field, chosen) != chosen:
            raise WeightsError(
                f"{located.path}: was trained with localise.{field} {training[field]}, not {chosen}; set that, or use "
                f"another adapter"
            )
    adapter = _adapter(located.path, located.sha256)
    clip = clip_config(localise.backbone)
    shapes = [tuple(value.shape) for name, value in adapter.state_dict().items() if name.endswith("weight")]
    wanted = [(clip["embed_dim"], clip["vision_cfg"]["width"])] * len(localise.layers)
    if shapes != wanted:
        raise WeightsError(
            f"{located.path}: linear layers of shapes {shapes} do not fit {localise.backbone} with localise.layers "
            f"{list(localise.layers)}, which needs {wanted}; use another adapter or other layers"
        )
    return adapter.to(device_of(run))


def clip_config(backbone: str) -> dict[str, Any]:
    """The open_clip configuration of a backbone. Raises ``ConfigError`` naming the nearest one that can be read."""
    ours = {path.stem.removesuffix("_clip"): path for path in MODELS.glob("*_clip.json")}
    if backbone in ours:
        config: dict[str, Any] = json.loads(ours[backbone].read_text(encoding="utf-8"))
        return config
    known = model_config(backbone)
    if known is None:
        raise ConfigError(f"localise.backbone: no model '{backbone}'; {nearest(backbone, [*model_names(), *ours])}")
    if (reason := unreadable(known)) is not None:
        raise ConfigError(
            f"localise.backbone: '{backbone}' cannot be read: {reason}; {nearest(backbone, [*model_names(), *ours])}"
        )
    return known


def check_vision(localise: LocaliseConfig, config: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if a configuration does not fit the vision tower.

    It may ask for a block that is not there, an input that cannot be cut into patches, another activation than the name
    says, or weights whose images were normalised otherwise.
    """
    if config.get("quick_gelu") and localise.activation != "quickgelu":
        raise ConfigError(
            f"localise.backbone: '{localise.backbone}' has quickgelu in its name, but localise.activation is "
            f"'{localise.activation}'; set localise.activation=quickgelu, or leave it out of the name"
        )
    if not normalises_alike(localise.backbone, localise.pretrained):
        raise ConfigError(
            f"localise.pretrained: '{localise.pretrained}' of {localise.backbone} was trained on images that were "
            f"normalised otherwise than here; use another tag"
        )
    depth = config["vision_cfg"]["layers"]
    if any(layer < 1 or layer > depth for layer in localise.layers):
        raise ConfigError(f"localise.layers {list(localise.layers)}: {localise.backbone} has blocks 1 to {depth}")
    patch = config["vision_cfg"]["patch_size"]
    for number, side in enumerate(localise.sides):
        if side < patch or side % patch:
            below = side // patch * patch
            raise ConfigError(
                f"localise.{'more_sides' if number else 'image_side'} {side}: must be a multiple of the patch side of "
                f"{localise.backbone}, {patch}; for example {max(below, patch)} or {below + patch}"
            )


@lru_cache(maxsize=1)
def _sam(backbone: str, path: Path, sha256: str, device: torch.device) -> Sam:
    sam = build_sam(backbone)
    load_state(sam, read_state(path, sha256), path, f"SAM '{backbone}'")
    require_finite(sam, path)
    return sam.requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def _absorbed(sam: Sam, bf16: bool, compiled: bool) -> AbsorbedDecoder:
    return AbsorbedDecoder(sam, bf16=bf16, compiled=compiled)


@lru_cache(maxsize=4)  # one for each side of the input
def _clip(
    backbone: str,
    path: Path,
    sha256: str,
    pinned: bool,
    side: int,
    quick_gelu: bool,
    device: torch.device,
    compiled: bool,
) -> nn.Module:
    state = read_state(path, sha256, pinned=pinned)
    try:
        clip = build_clip(clip_config(backbone), state, side, quick_gelu=quick_gelu)
    except ConfigError:
        raise
    except ValueError as error:
        raise WeightsError(f"{path}: does not fit CLIP '{backbone}' ({error})") from error
    require_finite(clip, path)
    clip = clip.to(device)
    if compiled:
        compile_blocks(clip)
    return clip


@lru_cache(maxsize=1)
def _adapter(path: Path, sha256: str) -> LinearAdapter:
    try:
        adapter = build_adapter(read_state(path, sha256)).requires_grad_(False)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    require_finite(adapter, path)
    return adapter
