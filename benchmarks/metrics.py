"""Pixel metrics against scikit-learn on the same float16 scores: AUROC, AP and F1-max; ours also give AUPRO.

python -m benchmarks.metrics [--megapixels 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys

import cv2
import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from benchmarks.paired import compare, report, show
from cascade.metrics import PixelMetrics, ScoreHistogram, region_weights, score_histogram, summary

SIDE = 500


def generated(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Float16 scores in [0, 1] and masks ``[images, SIDE, SIDE]``: smooth maps that are right more often than wrong."""
    rng = np.random.default_rng(0)
    scores, masks = [], []
    for _ in range(images):
        field = cv2.resize(rng.standard_normal((20, 20), dtype=np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        noise = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
        masks.append(field > 1.8)
        scores.append((1 / (1 + np.exp(3 - 2 * field - noise))).astype(np.float16))
    return np.stack(scores), np.stack(masks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scores, masks = generated(max(1, round(arguments.megapixels * 1e6 / SIDE**2)))
    weights = [region_weights(mask)[0] for mask in masks]  # once per mask, whatever is scored against it later

    def ours() -> PixelMetrics:
        total = ScoreHistogram.empty()
        for own, mask, weight in zip(scores, masks, weights, strict=True):
            total = total + score_histogram(own, mask, weight)
        return summary(total)

    def scikit_learn() -> tuple[float, float, float]:
        labels, values = masks.ravel(), scores.ravel().astype(np.float32)
        precision, recall, _ = precision_recall_curve(labels, values)
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        return roc_auc_score(labels, values), average_precision_score(labels, values), float(f1.max())

    found, expected = ours(), scikit_learn()
    errors = [abs(a - b) for a, b in zip((found.auroc, found.average_precision, found.f1_max), expected, strict=True)]
    comparison = compare(
        "AUROC, AP, F1-max and AUPRO",
        "scikit-learn, without AUPRO",
        "megapixel",
        ours,
        scikit_learn,
        scores.size / 1e6,
        arguments.rounds,
    )
    if arguments.json:
        facts = {"megapixels": scores.size / 1e6, "rounds": arguments.rounds, "largest_difference": max(errors)}
        print(json.dumps(report([comparison], facts), indent=2))
    else:
        show([comparison])
        print(f"largest difference of the three metrics: {max(errors):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
