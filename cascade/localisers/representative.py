"""The vector that stands for many sentences: CLIP-AD's representative vector selection.

Source: Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for Zero-Shot Anomaly Detection", arXiv
2311.00453, and its public code (``util/prompt_ensemble.py``). That rounds every choice but the mean to float16 before
it is normalised, in float16; so do we, and the result has length 1 within 3e-4.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Rule = Literal["mean", "dbscan", "pca", "kde", "mean_shift"]

_KDE_BANDWIDTH = 0.3
_SHIFT_BANDWIDTH = 2.0


def representative(sentences: torch.Tensor, rule: Rule, eps: float = 0.5, min_samples: int = 15) -> torch.Tensor:
    """[D] float32 for embeddings [n, D] of sentences, each of which is normalised before.

    Args:
        sentences: as the text tower gives them.
        rule: ``mean`` of all; mean of the largest cluster that DBSCAN (``dbscan``) or mean shift of bandwidth 2
            (``mean_shift``) finds, the first of equally large ones; mean weighted by a Gaussian density of bandwidth
            0.3 (``kde``); or the first principal component over sentences, with the dimensions as samples, on the side
            of the mean (``pca``).
        eps: of DBSCAN, the largest distance between neighbours. Unit vectors are at most 2 apart.
        min_samples: of DBSCAN, neighbours of a point in the core of a cluster, itself among them.

    Raises:
        ValueError: DBSCAN finds no cluster.
    """
    unit = functional.normalize(sentences.float(), dim=1)
    mean = unit.mean(dim=0)
    if rule == "mean":
        return functional.normalize(mean, dim=0)
    vectors = unit.cpu().numpy()
    found: NDArray[np.floating[Any]]
    if rule == "kde":
        found = _denser(vectors)
    elif rule == "pca":
        found = _component(vectors, mean.cpu().numpy())
    else:
        found = _largest(vectors, _clusters(vectors, rule, eps, min_samples))
    rounded = torch.from_numpy(np.asarray(found, np.float16)).to(sentences.device)
    length: torch.Tensor = torch.linalg.vector_norm(rounded)
    return (rounded / length).float()


def _denser(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    from sklearn.neighbors import KernelDensity

    logs = KernelDensity(kernel="gaussian", bandwidth=_KDE_BANDWIDTH).fit(vectors).score_samples(vectors)
    found: NDArray[np.float64] = np.average(vectors, axis=0, weights=np.exp(logs - logs.max()))
    return found


def _component(vectors: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA

    found: NDArray[np.float32] = PCA(1, svd_solver="full").fit_transform(vectors.T)[:, 0]
    return -found if found @ mean < 0 else found


def _clusters(
    vectors: NDArray[np.float32], rule: Literal["dbscan", "mean_shift"], eps: float, min_samples: int
) -> NDArray[np.int64]:
    """[n] the number of each vector's cluster, −1 for none."""
    from sklearn.cluster import DBSCAN, MeanShift

    method = DBSCAN(eps=eps, min_samples=min_samples) if rule == "dbscan" else MeanShift(bandwidth=_SHIFT_BANDWIDTH)
    labels: NDArray[np.int64] = method.fit(vectors).labels_
    if (labels < 0).all():
        raise ValueError(
            f"dbscan finds no cluster among {len(vectors)} sentences with dbscan_eps={eps} and "
            f"dbscan_min_samples={min_samples}; use a larger or a smaller one, or representative=mean"
        )
    return labels


def _largest(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = vectors[labels == np.bincount(labels[labels >= 0]).argmax()].mean(axis=0)
    return found
