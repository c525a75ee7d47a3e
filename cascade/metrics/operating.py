"""From image scores to yes or no: the threshold from which on an image is called defective."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_f1_thresholds(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The threshold of the best F1 in each of R weighted samples: float64 [R].

    An image is called defective from the threshold on. Of equal F1 the fewest images are called so. The threshold lies
    halfway between the lowest score that is and the next lower one that occurs; at the lowest score if all are.

    Args:
        scores: float64 [N], one for each image; higher is more anomalous.
        labels: bool [N], True for a defective image.
        weights: float64 [R, N], how often each image counts; a defective one has to in every row.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    cuts = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last of images with equal scores
    counted = weights[:, order]
    hits = np.cumsum(counted * labels[order], axis=1)[:, cuts]
    called = np.cumsum(counted, axis=1)[:, cuts]
    # precision and recall have one numerator, so that F1 is 2 TP / (called + defective)
    best = np.argmax(2 * hits / (called + hits[:, -1:]), axis=1)
    distinct = ordered[cuts]
    below = np.append(distinct[1:], distinct[-1])
    found: NDArray[np.float64] = (distinct[best] + below[best]) / 2
    return found


def quantile_threshold(good: NDArray[np.float64], quantile: float) -> float:
    """The threshold below which at least a share of the good images lies.

    Halfway between the smallest score that has this share at or below it and the next larger one that occurs; the next
    number after it if none does.

    Args:
        good: float64 [N], scores of good images.
        quantile: the share, in (0, 1].
    """
    distinct, counts = np.unique(good, return_counts=True)
    # less the rounding of a product such as 0.7 * 10
    place = int(np.argmax(np.cumsum(counts) >= quantile * good.size - 1e-9))
    if place + 1 == distinct.size:
        return float(np.nextafter(distinct[place], np.inf))
    return float((distinct[place] + distinct[place + 1]) / 2)
