"""Tokens of CLIP blocks through linear layers, compared with two text features: the arithmetic of APRIL-GAN.

Source: Chen, Han, Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method", arXiv
2305.17382, and its public code. Two orders matter and are easily swapped: the two *logits* are upsampled with
``align_corners=True``, and the softmax comes after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cascade.frames import Size

TEMPERATURE = 100.0


class LinearAdapter(nn.Module):
    """One linear layer for each chosen block; state-dict names ``fc.<i>.weight`` [D, width] and ``fc.<i>.bias`` [D]."""

    def __init__(self, layers: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(layers))

    def forward(self, blocks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Patch tokens [B, P, D] for each block, from tokens [B, 1 + P, width] whose class token is dropped."""
        return [layer(tokens[:, 1:]) for layer, tokens in zip(self.fc, blocks, strict=True)]


def build_adapter(state: Mapping[str, torch.Tensor]) -> LinearAdapter:
    """The adapter that a state dict describes. Raises ``ValueError`` if it is not one."""
    expected = {f"fc.{index}.{part}" for index in range(max(1, len(state) // 2)) for part in ("weight", "bias")}
    if expected != set(state):
        listed = {"has": sorted(set(state) - expected)[:4], "lacks": sorted(expected - set(state))[:4]}
        faults = "; ".join(f"{verb} {', '.join(names)}" for verb, names in listed.items() if names)
        raise ValueError(f"not linear layers of blocks: expected fc.<i>.weight and fc.<i>.bias, and it {faults}")
    if state["fc.0.weight"].ndim != 2:
        raise ValueError("not linear layers of blocks: fc.0.weight is no matrix")
    embed_dim, width = state["fc.0.weight"].shape
    adapter = LinearAdapter(len(state) // 2, width, embed_dim)
    try:
        adapter.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"linear layers that do not fit each other ({' '.join(str(error).split())[:200]})") from error
    return adapter.eval()


def misfit(adapter: LinearAdapter, clip_config: Mapping[str, Any], layers: Sequence[int]) -> str:
    """Why linear layers cannot work on blocks of a CLIP model; empty if they can."""
    shapes = [tuple(value.shape) for name, value in adapter.state_dict().items() if name.endswith("weight")]
    wanted = [(clip_config["embed_dim"], clip_config["vision_cfg"]["width"])] * len(layers)
    if shapes == wanted:
        return ""
    return (
        f"linear layers of shapes {shapes} do not fit localise.layers {list(layers)} of this CLIP model, which need "
        f"{wanted}; use another adapter or other layers"
    )


def grid_logits(adapter: LinearAdapter, blocks: Sequence[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
    """Two logits for each patch and block.

    Args:
        adapter: L linear layers.
        blocks: L tensors [B, 1 + grid², width].
        text: [B, D, 2] unit columns, normal and abnormal.

    Returns:
        [B, L, 2, grid, grid] float32: 100 · cosine, normal first.
    """
    stacked = torch.stack(adapter(blocks), dim=1).float()
    logits = TEMPERATURE * functional.normalize(stacked, dim=-1) @ text[:, None]
    grid = round(logits.shape[2] ** 0.5)
    return logits.transpose(2, 3).reshape(*logits.shape[:2], 2, grid, grid)


def mean_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of grid logits of the same images at several input sizes.

    A patch of a larger input sees less of the object and more of its surface. Not part of APRIL-GAN, which looks once.

    Args:
        logits: [B, L, 2, g, g] each, with g of its own.

    Returns:
        [B, L, 2, G, G] on the finest grid, the others upsampled to it bilinearly with aligned corners.
    """
    if len(logits) == 1:
        return logits[0]
    grid = max(each.shape[-1] for each in logits)
    finest = [
        functional.interpolate(each.flatten(0, 1), (grid, grid), mode="bilinear", align_corners=True) for each in logits
    ]
    return torch.stack(finest).mean(dim=0).reshape(*logits[0].shape[:2], 2, grid, grid)


def layer_maps(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """Probability of "abnormal" for each block: [B, L, height, width] in [0, 1] from [B, L, 2, grid, grid]."""
    return _upsample(logits, size).softmax(dim=2)[:, :, 1]


def anomaly_map(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """The map [B, height, width]: mean over blocks, in [0, 1].

    APRIL-GAN sums its four maps; the mean ranks alike and has one range for any number of blocks.
    """
    return layer_maps(logits, size).mean(dim=1)


def logit_margin(logits: torch.Tensor, size: Size) -> torch.Tensor:
    """Abnormal minus normal logit, upsampled and summed over blocks: [B, height, width].

    It orders pixels whose probability is saturated at the same float (A6).
    """
    upsampled = _upsample(logits, size)
    return (upsampled[:, :, 1] - upsampled[:, :, 0]).sum(dim=1)


def image_score(pooled: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Probability [B] that an image shows a defect: softmax of 100 · cosine of the pooled feature and both texts."""
    unit = functional.normalize(pooled.float(), dim=-1)
    return (TEMPERATURE * unit[:, None] @ text).softmax(dim=-1)[:, 0, 1]


def _upsample(logits: torch.Tensor, size: Size) -> torch.Tensor:
    batch, layers = logits.shape[:2]
    flat = functional.interpolate(logits.flatten(0, 1), size, mode="bilinear", align_corners=True)
    return flat.reshape(batch, layers, 2, *size)
