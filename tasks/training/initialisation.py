"""Starting weights that let a small vision transformer learn from few images.

A transformer that starts from noise needs many images before it looks at edges and at neighbours. These
weights start from what such networks are known to arrive at; everything stays trainable.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

_OPPONENT = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))


@torch.no_grad()
def whiten_patches(projection: nn.Conv2d) -> None:
    """Fills a patch embedding with cosine waves of lightness and of two opponent colours.

    Two thirds of the channels take the lowest waves of lightness. Gains grow with the frequency, as the spectrum
    of photographs falls with it, so that a scratch is not drowned by the patch's mean colour.
    """
    width, _, side, _ = projection.weight.shape
    ramp = (np.arange(side) + 0.5) / side
    order = sorted(((u, v) for u in range(side) for v in range(side)), key=lambda wave: (math.hypot(*wave), wave))
    shares = (width - 2 * (width // 6), width // 6, width // 6)
    kernels = []
    for axis, share in zip(_OPPONENT, shares, strict=True):
        tint = np.array(axis) / np.linalg.norm(axis)
        for u, v in order[:share]:
            wave = np.outer(np.cos(np.pi * u * ramp), np.cos(np.pi * v * ramp))
            gain = min(math.hypot(u, v), 12.0) / 4 if u or v else 1 / side
            kernels.append(gain * tint[:, None, None] * wave / np.linalg.norm(wave))
    projection.weight.copy_(torch.from_numpy(np.stack(kernels)))
    if projection.bias is not None:
        projection.bias.zero_()


def wave_positions(rows: int, columns: int, width: int, scale: float = 0.7) -> Tensor:
    """Sine and cosine position embedding ``[rows * columns, width]``; half of the channels per axis."""
    count = width // 4
    rates = torch.logspace(math.log10(math.pi / 2), math.log10(math.pi / 2 / max(rows, columns)), count)
    y = torch.arange(rows)[:, None] * rates
    x = torch.arange(columns)[:, None] * rates
    by_row = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(rows, columns, -1)
    by_column = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(rows, columns, -1)
    return scale * torch.cat([by_row, by_column], dim=2).reshape(rows * columns, 4 * count)


@torch.no_grad()
def compare_with_neighbours(joint: Tensor, output: nn.Linear) -> None:
    """Starts self attention as "subtract what lies near and looks alike".

    Queries equal keys, and the values return with a negative sign, as in the mimetic initialisation of Trockman
    and Kolter (2023). What remains of a token is how it differs from its surroundings.

    Args:
        joint: weight ``[3 D, D]`` of the joint projection to queries, keys and values.
        output: the projection that follows the heads.
    """
    width = joint.shape[1]
    mix = torch.empty(width, width)
    query, key, value = joint.chunk(3)
    query.copy_(nn.init.orthogonal_(mix))
    key.copy_(query)
    value.copy_(nn.init.orthogonal_(mix))
    output.weight.copy_(-0.4 * value.T)
