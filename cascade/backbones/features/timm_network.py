"""Any network of timm as a frozen network of features: blocks of a transformer, stages of a convolutional network.

Nothing is downloaded: weights are a state dict that somebody already has.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import nn

_NEAR = 6


class Unsuitable(ValueError):
    """The network itself cannot be used as asked, whatever its weights are."""


def require_name(name: str) -> None:
    """Raise ``Unsuitable`` unless timm has a network of that name; ``.`` and the tag of its weights may follow it."""
    if not timm.is_model(name):
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=_NEAR, cutoff=0.4)
        raise Unsuitable(f"timm has no network '{name}'{'; near: ' if near else ''}{', '.join(near)}")


@lru_cache(maxsize=4)
def levels_of(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of a network's levels, found without its weights.

    Args:
        name: of timm; a tag behind it says how images are normalised.

    Raises:
        Unsuitable: there is no such network or tag, or it has no levels.
    """
    with torch.device("meta"):
        network = _created(name)
    if not hasattr(network, "forward_intermediates"):
        raise Unsuitable(f"'{name}' of timm does not give what its blocks put out; use another network")
    return _declared(network)


def _declared(network: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    told: Any = network.feature_info
    levels = getattr(told, "info", told)
    return tuple(each["num_chs"] for each in levels), tuple(each["reduction"] for each in levels)


def check_side(name: str, side: int) -> None:
    """Raise ``Unsuitable`` if a network cannot look at square images of ``side`` pixels; weights are not needed."""
    with torch.device("meta"), torch.inference_mode():
        network = _created(name)
        channels, strides = _declared(network)
        told: Any = network.pretrained_cfg
        try:
            set_side(network, side)
            found = _intermediates(network, torch.empty(1, 3, side, side), range(len(strides)))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise Unsuitable(f"'{name}' of timm looks at {' x '.join(map(str, told['input_size']))} alone") from error
    expected = [(1, width, side // stride, side // stride) for width, stride in zip(channels, strides, strict=True)]
    if [tuple(level.shape) for level in found] != expected:
        raise Unsuitable(f"the levels of '{name}' of timm do not cover an image evenly; use another network")


class TimmNetwork(nn.Module):
    """A frozen network of timm.

    Attributes:
        channels: of each level.
        strides: of each level, pixels per cell; the same for all blocks of a plain transformer.

    Args:
        name: see :func:`levels_of`, which says what is refused.
        state: its weights, as timm names them or as the network's authors do where timm knows how to read that; what
            belongs to its classifier is left out.
        side: of the square images; :func:`check_side` says whether it can be.

    Raises:
        ValueError: the weights are another network's.
    """

    def __init__(self, name: str, state: Mapping[str, torch.Tensor], side: int) -> None:
        super().__init__()
        self.channels, self.strides = levels_of(name)
        self.network = _created(name)
        _load(self.network, state, name)
        set_side(self.network, side)
        told: Any = self.network.pretrained_cfg
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(told["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(told["std"]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, levels: Sequence[int]) -> list[torch.Tensor]:
        """``[B, channels[i], side / strides[i], side / strides[i]]`` for each i of ``levels``.

        The tokens of a transformer that belong to no cell (class, registers) are left out.

        Args:
            images: ``[B, 3, side, side]`` RGB in [−1, 1]; they are normalised here as the network was trained.
            levels: which, counted from 0; nothing behind the last of them is computed.
        """
        normalised = ((images + 1) / 2 - self.mean) / self.std
        wanted = sorted(set(levels))
        found = dict(zip(wanted, _intermediates(self.network, normalised, wanted), strict=True))
        return [found[level] for level in levels]


def _created(name: str) -> nn.Module:
    """The network without a classifier and with random weights."""
    require_name(name)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise Unsuitable(f"timm cannot make '{name}': {' '.join(str(error).split())[:200]}") from error
    return network.eval()


def set_side(network: nn.Module, side: int) -> None:
    """Let a network that knows the size of its images take others; its positions are interpolated."""
    if hasattr(network, "set_input_size"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how timm's interpolation uses torch
            network.set_input_size(img_size=(side, side))  # type: ignore[operator]


def _intermediates(network: nn.Module, images: torch.Tensor, levels: Sequence[int]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = network.forward_intermediates(  # type: ignore[operator]
        images, indices=list(levels), norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return found


def _load(network: nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    told: Any = network.pretrained_cfg
    classifiers = (told["classifier"],) if isinstance(told["classifier"], str) else tuple(told["classifier"] or ())
    heads = tuple(f"{classifier}." for classifier in classifiers)
    weights = {
        key: value.float() if value.is_floating_point() else value
        for key, value in state.items()
        if not key.startswith(heads)
    }
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        if weights.keys() != network.state_dict().keys() and translate is not None:
            translated = translate(weights, network)  # a CLIP's projection becomes a classifier
            weights = {key: value for key, value in translated.items() if not key.startswith(heads)}
        network.load_state_dict(weights)
    except Exception as error:  # what timm translates may be of any form, and goes wrong in as many ways
        raise ValueError(f"does not fit '{name}' of timm ({' '.join(str(error).split())[:200]})") from error
