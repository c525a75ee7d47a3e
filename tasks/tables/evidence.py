"""What the metrics of a category rest on: the histograms of its images, and how to draw the images anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cascade.metrics import (
    Estimate,
    OccupiedBins,
    bins_of_scores,
    draw_weights,
    influences,
    left_out_weights,
    resampled_metrics,
)
from cascade.storage.artefacts import Artefact
from cascade.tasks import score
from cascade.tasks.aggregate import METRICS, PIXEL_METRICS

_N_PIXEL = len(PIXEL_METRICS)
_UNKNOWN = -1


@dataclass(frozen=True)
class ScoredImage:
    """An image of a run: where it belongs, and the name of its histograms in the store."""

    category: str
    image_id: str
    path: str
    label: int | None
    item: str


@dataclass(frozen=True, eq=False)
class Draws:
    """Which images of a category count how often.

    Attributes:
        strata: int64 [N], what is drawn apart.
        drawn: float64 [1 + R, N], the sample itself first; see ``draw_weights``.
        left_out: float64 [J, N]; see ``left_out_weights``.
    """

    strata: NDArray[np.int64]
    drawn: NDArray[np.float64]
    left_out: NDArray[np.float64]


def category_draws(category: str, strata: NDArray[np.int64], resamples: int, seed: int) -> Draws:
    """The draws of one category: they depend on the seed, its name and its images, not on what else is in the run."""
    rng = np.random.default_rng([seed, *category.encode()])
    return Draws(strata, draw_weights(strata, resamples, rng), left_out_weights(strata))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the metrics of one category's N images rest on.

    Attributes:
        labels: int64 [N], 0 good, 1 defective, -1 not known.
        has_truth: bool [N], whether the pixels of an image could be compared; only those are counted.
        pixels: by step, the histogram of each image that has truth.
        image_scores: float64 [steps, N].
    """

    labels: NDArray[np.int64]
    has_truth: NDArray[np.bool_]
    pixels: tuple[tuple[OccupiedBins, ...], ...]
    image_scores: NDArray[np.float64]

    def resampled(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metrics of images that are weighted by ``weights`` [R, N]: [steps, R, metrics].

        NaN where the table's cell would be empty; see ``cascade.tasks.aggregate`` for when that is.
        """
        # each step keeps a core busy; threads of the matrix product would only wait for each other
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(lambda step: self._of_step(step, weights), range(len(self.pixels)))))

    def estimates(self, draws: Draws) -> list[Estimate]:
        """The metrics of each step, NaN where :meth:`resampled` has NaN, and how they vary with the images."""
        resamples = len(draws.drawn)
        rows = self.resampled(np.concatenate([draws.drawn, draws.left_out]))
        return [
            Estimate(own[0], own[1:resamples], influences(own[resamples:], draws.left_out, draws.strata))
            for own in rows
        ]

    def pixel_counts(self) -> NDArray[np.int64]:
        """Normal and anomalous pixels of each image, [N, 2]; 0 where the truth is not known."""
        counts = np.zeros((self.labels.size, 2), np.int64)
        for place, each in zip(np.flatnonzero(self.has_truth), self.pixels[0], strict=True):
            counts[place] = each.negatives.sum(), each.positives.sum()
        return counts

    def average_precision(self, step: int) -> NDArray[np.float64]:
        """Pixel AP of each image alone, [N]; NaN for an image without defect or truth."""
        alone = np.full(self.labels.size, np.nan)
        if self.has_truth.any():
            alone[self.has_truth] = resampled_metrics(self.pixels[step], np.eye(len(self.pixels[step])))[:, 2]
        return alone

    def _of_step(self, step: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = np.full((len(weights), len(METRICS)), np.nan)
        pixels, known = self.pixels[step], self.labels != _UNKNOWN
        complete = (self.has_truth | ~known).all()
        both = any(each.positives.any() for each in pixels) and any(each.negatives.any() for each in pixels)
        if complete and both:
            rows[:, :_N_PIXEL] = resampled_metrics(pixels, weights[:, self.has_truth])
        if len(set(self.labels[known])) > 1:
            images = bins_of_scores(self.image_scores[step, known], self.labels[known] == 1)
            rows[:, _N_PIXEL:] = resampled_metrics(images, weights[:, known])[:, : len(METRICS) - _N_PIXEL]
        return rows


def read_evidence(scores: Artefact, images: Sequence[ScoredImage], steps: Sequence[int]) -> Evidence:
    """The evidence of one category's images for some steps, by their places among those of the run.

    Raises ``StoreError`` if an image's histograms are not in the store, ``CorruptItem`` if they are damaged.
    """
    pixels: list[list[OccupiedBins]] = [[] for _ in steps]
    has_truth, image_scores = [], []
    for image in images:
        item = scores.read(image.item, only=score.HISTOGRAMS)
        has_truth.append(item.record["truth"])
        image_scores.append([item.record["image_score"][index] for index in steps])
        if has_truth[-1]:
            for own, index in zip(pixels, steps, strict=True):
                own.append(OccupiedBins.of(*(item.arrays[name][index] for name in score.HISTOGRAMS)))
    return Evidence(
        labels=labels_of(images),
        has_truth=np.array(has_truth),
        pixels=tuple(map(tuple, pixels)),
        image_scores=np.array(image_scores).T,
    )


def labels_of(images: Sequence[ScoredImage]) -> NDArray[np.int64]:
    """0 good, 1 defective, -1 not known, [N]: the strata of a category."""
    return np.array([_UNKNOWN if image.label is None else image.label for image in images])
