"""Intervals of a whole table against re-summing histograms: 1,725 images in 15 categories, four steps, 1,000 resamples.

python -m benchmarks.bootstrap [--resamples 1000] [--json]

Both begin with the same histograms in memory. Ours has the jackknife of the BCa intervals in it. The naive way adds the
histograms of the drawn images and calls ``summary`` for each resample; it is timed on a few resamples of every step of
one category and scaled to all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from datetime import UTC, datetime
from importlib.metadata import version

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from cascade.metrics import (
    OccupiedBins,
    ScoreHistogram,
    draw_weights,
    left_out_weights,
    resampled_metrics,
    score_histogram,
    summary,
)

SIDE = 518
IMAGES, CATEGORIES, STEPS = 1725, 15, 4
GOOD = 467  # of the 1,725, as in the test split of MVTec AD
NAIVE_RESAMPLES = 5


def generated(count: int, good: int, seed: int) -> tuple[list[list[ScoreHistogram]], np.ndarray]:
    """Histograms by step and image, and labels: smooth maps that are right more often than wrong, each step more so."""
    rng = np.random.default_rng(seed)
    steps: list[list[ScoreHistogram]] = [[] for _ in range(STEPS)]
    for number in range(count):
        field = cv2.resize(rng.standard_normal((20, 20), np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        noise = rng.standard_normal((SIDE, SIDE), np.float32)
        mask = (field > 1.8) & (number >= good)
        for index, own in enumerate(steps):
            scores = 1 / (1 + np.exp(3 - (2 + 0.1 * index) * field - noise))
            own.append(score_histogram(scores.astype(np.float16), mask))
    return steps, (np.arange(count) >= good).astype(np.int64)


def occupied(histograms: list[ScoreHistogram]) -> list[OccupiedBins]:
    return [OccupiedBins.of(each.negatives, each.positives, each.regions) for each in histograms]


def summed(histograms: list[ScoreHistogram], weights: np.ndarray) -> ScoreHistogram:
    return ScoreHistogram(
        sum((int(times) * each.negatives for times, each in zip(weights, histograms, strict=True)), np.int64(0)),
        sum((int(times) * each.positives for times, each in zip(weights, histograms, strict=True)), np.int64(0)),
        sum((times * each.regions for times, each in zip(weights, histograms, strict=True)), np.float64(0)),
        sum(int(times) * each.n_regions for times, each in zip(weights, histograms, strict=True)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ours = ours_cpu = naive = 0.0
    largest, thresholds = 0.0, []
    for category, (count, good) in enumerate(_sizes()):
        steps, labels = generated(count, good, category)
        thresholds += [np.count_nonzero(sum(each.positives for each in own)) for own in steps]
        started, started_cpu = time.perf_counter(), time.process_time()
        drawn = draw_weights(labels, arguments.resamples, np.random.default_rng(category))
        weights = np.concatenate([drawn, left_out_weights(labels)])
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda own, w=weights: resampled_metrics(occupied(own), w), steps))
        ours += time.perf_counter() - started
        ours_cpu += time.process_time() - started_cpu
        if category == 0:
            started = time.perf_counter()
            direct = [[summary(summed(own, row)) for row in weights[:NAIVE_RESAMPLES]] for own in steps]
            naive = (time.perf_counter() - started) * arguments.resamples / NAIVE_RESAMPLES * IMAGES / count
            expected = np.array([[astuple(each) for each in own] for own in direct])
            largest = float(np.abs(expected - np.stack(found)[:, :NAIVE_RESAMPLES]).max())
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("numpy", "scipy")},
        "images": IMAGES,
        "categories": CATEGORIES,
        "steps": STEPS,
        "resamples": arguments.resamples,
        "thresholds_of_a_category": float(np.mean(thresholds)),
        "seconds": ours,
        "processor_seconds": ours_cpu,
        "naive_seconds_scaled": naive,
        "naive_resamples_timed": NAIVE_RESAMPLES,
        "largest_difference": largest,
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(
            f"{arguments.resamples} resamples of {IMAGES} images, {STEPS} steps: {ours:.1f} s "
            f"({ours_cpu:.1f} s of processor time) against {naive:.0f} s by re-summing (scaled from {NAIVE_RESAMPLES} "
            f"resamples of one category): {naive / ours:.0f} times faster; largest difference {largest:.1e}"
        )
    return 0


def _sizes() -> Iterator[tuple[int, int]]:
    """Images and good images of each category, as even as they can be."""
    for category in range(CATEGORIES):
        yield tuple((whole * (category + 1)) // CATEGORIES - whole * category // CATEGORIES for whole in (IMAGES, GOOD))


if __name__ == "__main__":
    sys.exit(main())
