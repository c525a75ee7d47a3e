"""Losses of the CLIP methods, in the forms that their public code uses."""

from __future__ import annotations

import torch

_SMOOTH = 1e-5


def focal_loss(probabilities: torch.Tensor, target: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Multi-class focal loss on probabilities, mean over pixels (APRIL-GAN's ``FocalLoss`` with alpha 1).

    Args:
        probabilities: [B, C, H, W], summing to 1 over C.
        target: [B, H, W] class indices.
        gamma: focus on hard pixels.
    """
    classes = probabilities.shape[1]
    one_hot = torch.nn.functional.one_hot(target.long(), classes).movedim(-1, 1).to(probabilities.dtype)
    one_hot = one_hot.clamp(_SMOOTH / (classes - 1), 1.0 - _SMOOTH)
    p = (one_hot * probabilities).sum(dim=1) + _SMOOTH
    return (-((1 - p) ** gamma) * p.log()).mean()


def dice_loss(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − Dice coefficient with 1 added above and below, mean over images; both [B, H, W] (APRIL-GAN's form)."""
    p, y = probability.flatten(1), target.flatten(1).to(probability.dtype)
    return 1 - ((2 * (p * y).sum(dim=1) + 1) / (p.sum(dim=1) + y.sum(dim=1) + 1)).mean()


def segmentation_loss(layer_maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Focal loss on both channels plus Dice loss on the abnormal one, summed over blocks.

    Args:
        layer_maps: [B, L, H, W] probability of "abnormal".
        mask: [B, H, W], 1 where defective.
    """
    terms = [
        focal_loss(torch.stack([1 - own, own], dim=1), mask) + dice_loss(own, mask) for own in layer_maps.unbind(dim=1)
    ]
    return torch.stack(terms).sum()


def glocal_loss(image_logits: torch.Tensor, layer_maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """AnomalyCLIP's loss: cross entropy of the image, and four times focal and both Dice losses, summed over layers.

    Args:
        image_logits: [B, 2], normal first.
        layer_maps: [B, L, 2, H, W] probabilities, normal first.
        mask: [B, H, W], true where defective; an image is, if any pixel of it is.
    """
    terms = [
        focal_loss(own, mask) + dice_loss(own[:, 1], mask) + dice_loss(own[:, 0], ~mask.bool())
        for own in layer_maps.unbind(dim=1)
    ]
    labels = mask.bool().flatten(1).any(dim=1).long()
    return torch.nn.functional.cross_entropy(image_logits, labels) + 4 * torch.stack(terms).sum()


def binary_focal_loss(probability: torch.Tensor, target: torch.Tensor, gamma: float = 4.0) -> torch.Tensor:
    """Cross entropy times (1 − probability of the target)^gamma, mean; both of one shape (AF-CLIP's form, no alpha)."""
    p, y = probability.float(), target.float()
    with torch.autocast(p.device.type, enabled=False):  # which refuses cross entropies of probabilities
        entropy = torch.nn.functional.binary_cross_entropy(p, y, reduction="none")
    return (entropy * (1 - (p * y + (1 - p) * (1 - y))) ** gamma).mean()


def patch_alignment_loss(cells: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How much more alike cells of opposite kinds are than cells of one kind, or 0 (AF-CLIP).

    The mean cosine over all pairs in an image of a normal and a defective cell, less that over all pairs of one kind, a
    cell with itself among them; pairs of all images count together. Sums of cosines are products of sums, so that no
    pair is looked at by itself.

    Args:
        cells: [B, n, D] unit vectors.
        target: [B, n], 1 for defective and 0 for normal cells; any other value is neither.
    """
    defective, normal = (target == 1).float(), (target == 0).float()
    with torch.autocast(cells.device.type, enabled=False):  # the difference is small beside the means
        sums = [torch.einsum("bn,bnd->bd", kind, cells.float()) for kind in (defective, normal)]
    counts = [kind.sum(dim=1) for kind in (defective, normal)]
    apart, among = (sums[0] * sums[1]).sum(), sums[0].square().sum() + sums[1].square().sum()
    pairs_apart, pairs_among = (counts[0] * counts[1]).sum(), counts[0].square().sum() + counts[1].square().sum()
    return (apart / pairs_apart.clamp(min=1) - among / pairs_among.clamp(min=1)).clamp(min=0)
