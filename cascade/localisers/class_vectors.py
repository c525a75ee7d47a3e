"""Two pairs of learned vectors for each layer, one for the image and one for its cells: the arithmetic of UniADet.

Source: "UniADet", arXiv 2601.05552, of which no official code was published. What it leaves open is decided here: the
vectors start as noise with a deviation of 0.02, an upsampled cell lies at its centre (``align_corners=False``), and the
loss is a mean over layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from cascade.frames import Size
from cascade.localisers.learned_prompts import cosine_logits, on_grid
from cascade.losses import dice_loss, focal_loss

_DEVIATION = 0.02
_KINDS = ("classification", "segmentation")


class ClassVectors(nn.Module):
    """Vectors [2, width] for each layer, normal first; state-dict names ``classification.<i>``, ``segmentation.<i>``.

    Args:
        widths: of the layers.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.classification, self.segmentation = (
            nn.ParameterList(_DEVIATION * torch.randn(2, width) for width in widths) for _ in _KINDS
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the layers."""
        return tuple(vectors.shape[1] for vectors in self.segmentation)


def build_vectors(state: Mapping[str, torch.Tensor]) -> ClassVectors:
    """The vectors that a state dict holds. Raises ``ValueError`` if it holds others, or more."""
    layers = max(1, sum(name.startswith(f"{_KINDS[1]}.") for name in state))
    expected = {f"{kind}.{index}" for kind in _KINDS for index in range(layers)}
    if expected != set(state):
        missing, beside = sorted(expected - set(state)), sorted(set(state) - expected)
        found = [*(f"no {name}" for name in missing[:3]), *(f"{name} beside" for name in beside[:3])]
        raise ValueError(
            f"not UniADet's vectors: expected classification.<i> and segmentation.<i> of each layer; found "
            f"{', '.join(found)}"
        )
    shapes = [[tuple(state[f"{kind}.{index}"].shape) for index in range(layers)] for kind in _KINDS]
    if shapes[0] != shapes[1] or any(len(shape) != 2 or shape[0] != 2 for shape in shapes[0]):
        raise ValueError(f"not UniADet's vectors: shapes {shapes[0]} and {shapes[1]}, not twice [2, width] for a layer")
    vectors = ClassVectors([shape[1] for shape in shapes[0]])
    vectors.load_state_dict({name: value.float() for name, value in state.items()})
    return vectors.eval()


def misfit(vectors: ClassVectors, widths: Sequence[int], layers: Sequence[int]) -> str:
    """Why vectors cannot be held against layers of these widths; empty if they can."""
    if vectors.widths == tuple(widths):
        return ""
    return (
        f"vectors of widths {list(vectors.widths)} do not fit localise.layers {list(layers)} of this network, whose "
        f"widths are {list(widths)}; use other weights, or other layers"
    )


def cell_logits(vectors: ClassVectors, cells: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[B, 2, grid, grid] float32 for each layer, cosine / 0.07, of cells [B, grid², width]."""
    return [
        on_grid(cosine_logits(own, functional.normalize(pair, dim=1).T))
        for own, pair in zip(cells, vectors.segmentation, strict=True)
    ]


def image_logits(vectors: ClassVectors, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, L, 2] float32, cosine / 0.07, of one vector [B, width] of the image for each layer."""
    found = [
        cosine_logits(own, functional.normalize(pair, dim=1).T)
        for own, pair in zip(images, vectors.classification, strict=True)
    ]
    return torch.stack(found, dim=1)


def layer_maps(logits: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
    """[B, L, 2, height, width] probabilities, normal first: the logits are upsampled bilinearly, then softmax."""
    return torch.stack([_upsampled(own, size).softmax(dim=1) for own in logits], dim=1)


def mean_margin(logits: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
    """[B, height, width]: abnormal less normal logit, a mean over layers; it orders what is saturated (A6)."""
    upsampled = torch.stack([_upsampled(own, size) for own in logits])
    return (upsampled[:, :, 1] - upsampled[:, :, 0]).mean(dim=0)


def decoupled_loss(images: torch.Tensor, maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the image, focal loss on both channels and Dice loss on each; all means over layers.

    Args:
        images: [B, L, 2] logits, normal first.
        maps: [B, L, 2, H, W] probabilities, normal first.
        masks: [B, H, W] bool; an image is defective if any pixel of it is.
    """
    labels = masks.flatten(1).any(dim=1).long()
    terms = []
    for logits, probabilities in zip(images.unbind(dim=1), maps.unbind(dim=1), strict=True):
        cells = focal_loss(probabilities, masks)
        dice = dice_loss(probabilities[:, 1], masks) + dice_loss(probabilities[:, 0], ~masks)
        terms.append(functional.cross_entropy(logits, labels) + cells + dice)
    return torch.stack(terms).mean()


def _upsampled(logits: torch.Tensor, size: Size) -> torch.Tensor:
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)
