"""Histograms of scores that are on a device already, for callers who keep their maps there; the stages use arrays.

Apart from its package, so that a run that finds its histograms in the store does not load torch.
"""

from __future__ import annotations

import torch

from cascade.metrics.histogram import N_BINS, ScoreHistogram, histogram_of_counts
from cascade.metrics.regions import region_weights


def tensor_histogram(
    scores: torch.Tensor, mask: torch.Tensor, region_weight: torch.Tensor | None = None
) -> ScoreHistogram:
    """:func:`cascade.metrics.score_histogram` of tensors; both count alike.

    With ``region_weight`` three arrays of 65,536 numbers leave the device, and no pixel does.

    On a GPU ``torch.bincount`` adds in no fixed order, so ``regions`` may differ in the last bits; the counts never do.

    Args:
        scores: float16 [H, W], finite, on any device.
        mask: bool [H, W] on the same device.
        region_weight: float64 [H, W] of ``region_weights``, on the same device; found on the CPU when None, from a
            copy of the mask.

    Raises:
        TypeError: ``scores`` is not float16 or ``mask`` is not bool.
        ValueError: shapes differ, a score is NaN or infinite, or the weights of the mask do not sum to an integer.
    """
    if scores.dtype != torch.float16 or mask.dtype != torch.bool:
        raise TypeError(f"scores have to be float16 and a mask bool, not {scores.dtype} and {mask.dtype}")
    if region_weight is None:
        region_weight = torch.from_numpy(region_weights(mask.cpu().numpy())[0]).to(mask.device)
    if not scores.shape == mask.shape == region_weight.shape:
        shapes = ", ".join(str(tuple(own.shape)) for own in (scores, mask, region_weight))
        raise ValueError(f"scores, mask and region weights of shapes {shapes} do not match")
    patterns = scores.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    anomalous, weight = patterns[mask], region_weight[mask]
    return histogram_of_counts(
        everything=torch.bincount(patterns.flatten(), minlength=N_BINS).cpu().numpy(),
        positives=torch.bincount(anomalous, minlength=N_BINS).cpu().numpy(),
        regions=torch.bincount(anomalous, weights=weight, minlength=N_BINS).double().cpu().numpy(),  # int if empty
        weight=float(weight.sum()),
    )
