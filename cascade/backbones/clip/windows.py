"""CLIP's feature of each window of an image: the tower run on the tokens inside it, and on none beside.

Source: Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023 (arXiv 2303.14814),
in the form of anomalib's code. A window is cut out of the tokens after patch and positional embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from cascade.backbones.clip.mini import MiniClip

_CELLS_AT_ONCE = 8192
"""Cells that go through the tower together: as many as in 32 whole images of ViT-B-16-plus-240."""


@dataclass(frozen=True)
class WindowFeatures:
    """Features of a batch of images, not normalised, float32.

    Attributes:
        pooled: [B, D], of the whole image.
        windows: by scale, [B, (grid − scale + 1)², D], row by row.
    """

    pooled: torch.Tensor
    windows: tuple[torch.Tensor, ...]


def window_cells(grid: int, scale: int) -> torch.Tensor:
    """The cells of every window of ``scale`` x ``scale`` cells, row by row: int64 [(grid − scale + 1)², scale²]."""
    cells = torch.arange(grid * grid).reshape(grid, grid)
    return cells.unfold(0, scale, 1).unfold(1, scale, 1).reshape(-1, scale * scale)


@torch.inference_mode()
def window_features(
    model: nn.Module, images: torch.Tensor, scales: Sequence[int], *, bf16: bool = False
) -> WindowFeatures:
    """The features of whole images and of all their windows.

    Args:
        model: an open_clip model, or the mini CLIP, whose learned questions are put to a window's cells alone.
        images: [B, 3, side, side], normalised for CLIP.
        scales: sides of the windows in cells.
        bf16: under autocast to bfloat16.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        tokens, pooled = _mini(model, images) if isinstance(model, MiniClip) else _open_clip(model, images)
        prefix = 0 if isinstance(model, MiniClip) else 1
        grid = round((tokens.shape[1] - prefix) ** 0.5)
        windows = [_features(tokens, window_cells(grid, scale).to(images.device), prefix, pooled) for scale in scales]
        return WindowFeatures(pooled(tokens).float(), tuple(windows))


_Pool = Callable[[torch.Tensor], torch.Tensor]
"""From tokens [N, n, width] to features [N, D]."""


def _open_clip(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, _Pool]:
    """The tokens that enter the first block, class token first, and the tower from there on.

    The layer norm before the blocks sees one token at a time, so that it may come before the cut.
    """
    visual = cast("Any", model.visual)

    def pooled(tokens: torch.Tensor) -> torch.Tensor:
        feature = visual._pool(visual.transformer(tokens))[0]
        return cast("torch.Tensor", feature if visual.proj is None else feature @ visual.proj)

    return visual._embeds(images), pooled


def _mini(model: MiniClip, images: torch.Tensor) -> tuple[torch.Tensor, _Pool]:
    return model.cells(images), model.visual.pooled


def _features(tokens: torch.Tensor, cells: torch.Tensor, prefix: int, pooled: _Pool) -> torch.Tensor:
    """[B, windows, D] float32 of tokens [B, prefix + grid², width], a bounded number of windows at a time."""
    batch, width = tokens.shape[0], tokens.shape[2]
    length = prefix + cells.shape[1]
    at_once = max(1, _CELLS_AT_ONCE // (batch * length))
    first = tokens[:, None, :prefix]
    found = []
    for start in range(0, len(cells), at_once):
        part = cells[start : start + at_once]
        inside = tokens[:, prefix:][:, part]
        sequences = torch.cat([first.expand(-1, len(part), -1, -1), inside], dim=2)
        found.append(pooled(sequences.reshape(-1, length, width)).float().reshape(batch, len(part), -1))
    return torch.cat(found, dim=1)
