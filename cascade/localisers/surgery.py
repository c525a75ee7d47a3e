"""Feature surgery: how alike tokens and texts are, less what all texts have in common.

Source: Li et al., "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks", arXiv 2304.05653,
and Chen et al., "CLIP-AD", arXiv 2311.00453, and the public code of both.
"""

from __future__ import annotations

import torch


def feature_surgery(features: torch.Tensor, texts: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
    """[B, 1 + P, N] similarity of each token to each text; it sums to 0 over the texts.

    The class token says how much each text counts. Channel by channel, the mean over texts of the weighted products is
    taken from each; the sum over channels is the result, and comes to the mean of the weighted cosines.

    Args:
        features: [B, 1 + P, D] of length 1, class token first.
        texts: [B, D, N], columns of length 1.
        sharpness: factor of the cosine in the softmax over texts: 1 in CLIP-AD, 2 in CLIP Surgery.
    """
    cosines = features @ texts
    probability = (sharpness * cosines[:, :1]).softmax(dim=-1)
    weighted = cosines * probability / probability.mean(dim=-1, keepdim=True)
    return weighted - weighted.mean(dim=-1, keepdim=True)
