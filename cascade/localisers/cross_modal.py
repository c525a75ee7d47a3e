"""Strips and pooled scales of a grid of tokens, each in attention with the words: our reading of ClipSAM's UMCI.

ClipSAM ("CLIP and SAM Collaboration for Zero-Shot Anomaly Segmentation", arXiv 2401.12665) describes a unified
multi-scale cross-modal interaction and published no code. Its abstract says that language and visual features meet
along rows and columns and at several scales, in each of a few stages of CLIP. All that goes beyond that sentence, the
layers, their order and their widths, was chosen here; a result of it is no result of ClipSAM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SCALES = (3, 9)
"""Sides, in cells, of the squares over which a grid is averaged."""

_HEADS = 8


class _Stage(nn.Module):
    """One block of CLIP: two logits for each cell.

    Tokens are projected to the width of the words. Rows and columns are averaged, seen beside their neighbours by a
    convolution, and attend to the words; so do the averages of each scale. All of it is brought back to the grid,
    joined with what the cells were, and read by a perceptron.
    """

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dimension)
        self.rows = nn.Conv1d(dimension, dimension, 3, padding=1)
        self.columns = nn.Conv1d(dimension, dimension, 3, padding=1)
        heads = _HEADS if dimension % _HEADS == 0 else 1
        self.strip_attention = nn.MultiheadAttention(dimension, heads, batch_first=True)
        self.scale_attention = nn.MultiheadAttention(dimension, heads, batch_first=True)
        self.join = nn.Conv2d((2 + len(SCALES)) * dimension, dimension, 1)
        self.norm = nn.LayerNorm(dimension)
        self.read = nn.Sequential(nn.Linear(dimension, dimension), nn.GELU(), nn.Linear(dimension, 2))

    def forward(self, tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """[B, 2, grid, grid] of tokens [B, 1 + grid², width] and words [B, 2, D]."""
        side = round((tokens.shape[1] - 1) ** 0.5)
        cells = self.project(tokens[:, 1:]).transpose(1, 2).reshape(len(tokens), -1, side, side)
        strips = [
            _attended(self.strip_attention, self.rows(cells.mean(dim=3))[..., None], words),
            _attended(self.strip_attention, self.columns(cells.mean(dim=2))[:, :, None], words),
        ]
        parts = [cells, strips[0] + strips[1]]
        for scale in SCALES:
            pooled = functional.avg_pool2d(cells, min(scale, side), ceil_mode=True, count_include_pad=False)
            attended = _attended(self.scale_attention, pooled, words)
            parts.append(functional.interpolate(attended, (side, side), mode="bilinear", align_corners=False))
        joined = cells + self.join(torch.cat(parts, dim=1))
        logits: torch.Tensor = self.read(self.norm(joined.flatten(2).transpose(1, 2)))
        return logits.transpose(1, 2).reshape(len(tokens), 2, side, side)


class CrossModal(nn.Module):
    """A stage for each chosen block; state-dict names ``stages.<i>.<part>``."""

    def __init__(self, layers: int, width: int, dimension: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_Stage(width, dimension) for _ in range(layers))

    def forward(self, blocks: Sequence[torch.Tensor], texts: torch.Tensor) -> torch.Tensor:
        """[B, L, 2, grid, grid] float32 logits, normal first.

        Args:
            blocks: [B, 1 + grid², width] for each stage.
            texts: [B, D, 2] unit columns, normal and abnormal.
        """
        words = texts.transpose(1, 2)
        found = [stage(tokens, words) for stage, tokens in zip(self.stages, blocks, strict=True)]
        return torch.stack(found, dim=1).float()


def _attended(attention: nn.Module, cells: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """[B, D, h, w]: each cell with what it takes from the words, which have as many channels."""
    asked = cells.flatten(2).transpose(1, 2)
    answered = attention(asked, words, words, need_weights=False)[0]
    mixed: torch.Tensor = (asked + answered).transpose(1, 2).reshape(cells.shape)
    return mixed


def build_cross_modal(state: Mapping[str, torch.Tensor]) -> CrossModal:
    """The stages that a state dict describes. Raises ``ValueError`` if it describes none."""
    layers = len({name.split(".")[1] for name in state if name.startswith("stages.") and name.count(".") > 1})
    wanted = set(CrossModal(max(layers, 1), 1, 1).state_dict())
    if set(state) != wanted:
        odd = [*sorted(set(state) - wanted), *(f"{name} missing" for name in sorted(wanted - set(state)))]
        raise ValueError(
            f"not the weights of clipsam_umci: expected stages.<i>.<part>; found {', '.join(odd[:3])}"
            f"{' and more' if len(odd) > 3 else ''}"
        )
    shape = tuple(state["stages.0.project.weight"].shape)
    if len(shape) != 2:
        raise ValueError(f"weights of clipsam_umci whose projection has shape {shape}; expected [D, width]")
    stages = CrossModal(layers, shape[1], shape[0])
    try:
        stages.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"weights that do not fit each other ({' '.join(str(error).split())[:200]})") from error
    return stages.eval()


def misfit(stages: CrossModal, clip_config: Mapping[str, Any], layers: Sequence[int]) -> str:
    """Why stages cannot work on blocks of a CLIP model; empty if they can."""
    own = [tuple(value.shape) for name, value in stages.state_dict().items() if name.endswith("project.weight")]
    wanted = [(clip_config["embed_dim"], clip_config["vision_cfg"]["width"])] * len(layers)
    if own == wanted:
        return ""
    return (
        f"projections of shapes {own} do not fit localise.layers {list(layers)} of this CLIP model, which need "
        f"{wanted}; use other weights or other layers"
    )
