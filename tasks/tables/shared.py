"""The metrics of two runs on the images that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.metrics import Estimate
from cascade.tasks.aggregate import IMAGE_METRICS, PIXEL_METRICS
from cascade.tasks.tables.evidence import Evidence, ScoredImage, category_draws
from cascade.tasks.tables.intervals import compared_images, mean_of
from cascade.tasks.tables.matching import truth_of


@dataclass(frozen=True, eq=False)
class Shared:
    """Two runs on the images of a category that both have, or on those of several.

    Attributes:
        sides: the metrics of the run and of the baseline; NaN where either has none.
        parts: the differences of each category, and ``compared`` int64 [K, metrics] the images that each rests on.
        same: bool [metrics], whether both runs put all scores in the same order.
        images: how many there are.
        other_truth: how many of them have another ground truth in the baseline: another mask or label, or another count
            of defective pixels in the evaluation frame.
    """

    sides: tuple[Estimate, Estimate]
    parts: tuple[Estimate, ...]
    compared: NDArray[np.int64]
    same: NDArray[np.bool_]
    images: int
    other_truth: int


def shared_metrics(
    category: str,
    pairs: Sequence[tuple[ScoredImage, ScoredImage]],
    run: Evidence,
    baseline: Evidence,
    resamples: int,
    seed: int,
) -> Shared:
    """The metrics of one category's shared ``pairs``, with their evidence in the run and in the baseline."""
    draws = category_draws(category, 3 * run.labels + baseline.labels, resamples, seed)
    (own,), (other,) = run.estimates(draws), baseline.estimates(draws)
    other_name = np.array([truth_of(image) != truth_of(before) for image, before in pairs])
    undefined = np.isnan(own.value) | np.isnan(other.value)
    sides = own.where(~undefined), other.where(~undefined)
    return Shared(
        sides=sides,
        parts=(sides[0] - sides[1],),
        compared=np.minimum(compared_images(run.labels), compared_images(baseline.labels))[None],
        same=_same(run, baseline),
        images=len(pairs),
        other_truth=int((other_name | (run.pixel_counts() != baseline.pixel_counts()).any(axis=1)).sum()),
    )


def mean_of_shared(categories: Sequence[Shared]) -> Shared:
    """The means over categories, the images of each drawn apart."""
    own, other = (mean_of([each.sides[side] for each in categories]) for side in (0, 1))
    same = [each.same | np.isnan(each.parts[0].value) for each in categories]
    return Shared(
        sides=(own, other),
        parts=tuple(part for each in categories for part in each.parts),
        compared=np.concatenate([each.compared for each in categories]),
        same=np.all(same, axis=0),
        images=sum(each.images for each in categories),
        other_truth=sum(each.other_truth for each in categories),
    )


def _same(run: Evidence, baseline: Evidence) -> NDArray[np.bool_]:
    """By metric, whether two runs put all scores in the same order, and the same is held to be true of them.

    Of pixels only equal scores are looked for; metrics of images depend on the order of their scores alone.
    """
    labels = bool((run.labels == baseline.labels).all())
    pixels = all(own.same(other) for own, other in zip(run.pixels[0], baseline.pixels[0], strict=False))
    pixels &= bool((run.has_truth == baseline.has_truth).all())
    own, other = (np.unique(side.image_scores, return_inverse=True)[1] for side in (run, baseline))
    images = np.array_equal(own, other)
    return np.array([labels & pixels] * len(PIXEL_METRICS) + [labels & images] * len(IMAGE_METRICS))
