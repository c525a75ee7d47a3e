"""Vision towers of open_clip that are networks of timm: which have blocks of tokens, of what size, at which inputs.

Nothing is downloaded and no weight is allocated: a tower is asked for its dimensions on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import timm

from cascade.backbones.features.timm_network import Unsuitable, check_side, levels_of

_PLAIN = ("eva", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vitamin")
"""Modules of timm whose networks are a row of equal blocks on one grid of tokens."""


class Tower(NamedTuple):
    """Dimensions of a vision tower.

    Attributes:
        width: of a token.
        depth: blocks.
        patch: side of a patch in pixels.
    """

    width: int
    depth: int
    patch: int


def tower_of(config: Mapping[str, Any]) -> Tower:
    """The dimensions of the vision tower of an open_clip configuration, its own or one of timm's.

    Raises ``Unsuitable`` if timm has no such network, or it is no row of equal blocks on one grid.
    """
    vision = config["vision_cfg"]
    name = vision.get("timm_model_name")
    if name is None:
        return Tower(vision["width"], vision["layers"], vision["patch_size"])
    widths, strides = levels_of(name)
    if len(set(zip(widths, strides, strict=True))) != 1:
        raise Unsuitable(f"'{name}' of timm has stages of several sizes in place of equal blocks")
    return Tower(widths[0], len(widths), strides[0])


@lru_cache(maxsize=1)
def plain_towers() -> frozenset[str]:
    """Names of timm's networks that are a row of equal blocks on one grid of tokens; nothing is built."""
    return frozenset(name for module in _PLAIN for name in timm.list_models(module=module))


@lru_cache(maxsize=16)
def refused_side(name: str, side: int) -> str | None:
    """Why a tower of timm cannot look at square images of ``side`` pixels; ``None`` if it can."""
    try:
        check_side(name, side)
    except Unsuitable as error:
        return str(error)
    return None
