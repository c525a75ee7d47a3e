"""Pixel metrics against scikit-learn, and against torchmetrics, ADEval and anomalib where they are installed.

    python -m benchmarks.metrics [--megapixels 10] [--json]
    python -m benchmarks.metrics --gigapixel            # peak memory of a thousand images of 1 Mpx, one after another

The same float16 scores for all. A peer is named with the metrics it computes; ours are always AUROC, AP, F1-max and
AUPRO. A mask's regions are found once, whatever is scored against it later; where the peer finds them too, ours finds
them again in every round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from benchmarks.paired import compare, publish
from cascade.metrics import PixelMetrics, ScoreHistogram, region_weights, score_histogram, summary
from cascade.metrics.tensors import tensor_histogram

SIDE = 500


def generated(images: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Float16 scores in [0, 1] and masks ``[images, side, side]``: smooth maps that are right more often than wrong."""
    rng = np.random.default_rng(0)
    scores, masks = [], []
    for _ in range(images):
        field = cv2.resize(rng.standard_normal((20, 20), dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
        noise = rng.standard_normal((side, side), dtype=np.float32)
        masks.append(field > 1.8)
        scores.append((1 / (1 + np.exp(3 - 2 * field - noise))).astype(np.float16))
    return np.stack(scores), np.stack(masks)


def peers(scores: np.ndarray, masks: np.ndarray) -> Iterator[tuple[str, bool, Callable[[], object]]]:
    """Name, whether it finds regions, and call of each peer that is installed."""
    values = torch.from_numpy(scores.astype(np.float32))
    labels = torch.from_numpy(masks)
    try:
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision
    except ImportError:
        pass
    else:
        flat, true = values.flatten(), labels.flatten().int()
        name = f"torchmetrics {version('torchmetrics')}: AUROC, AP"
        yield name, False, lambda: (binary_auroc(flat, true), binary_average_precision(flat, true))
    try:
        import adeval
    except ImportError:
        pass
    else:
        vars(np).setdefault("trapz", np.trapezoid)  # ADEval 1.1 calls it by the name that it had in NumPy 1
        name = f"ADEval {version('adeval')}: AUROC, AUPR, AUPRO of 1000 bins"
        maps, truth = list(values.numpy()), list(masks.astype(np.uint8))
        yield name, True, lambda: adeval.auroc_aupr_aupro(maps, truth)
    try:
        from anomalib.metrics.aupro import _AUPRO
    except ImportError:
        pass
    else:

        def aupro() -> object:
            metric = _AUPRO()
            metric.update(values, labels.int())
            return metric.compute()

        yield f"anomalib {version('anomalib')}: AUPRO", True, aupro


def on_gpu(scores: np.ndarray, masks: np.ndarray, weights: Sequence[np.ndarray], rounds: int) -> dict[str, object]:
    """Counting scores that are on the GPU: there, against copying them and counting on the CPU."""
    own = [torch.from_numpy(each).cuda() for each in scores]
    truth = [torch.from_numpy(each).cuda() for each in masks]
    shares = [torch.from_numpy(each).cuda() for each in weights]

    def there() -> None:
        for score, mask, share in zip(own, truth, shares, strict=True):
            tensor_histogram(score, mask, share)

    def copied() -> None:
        for score, mask, share in zip(own, masks, weights, strict=True):
            score_histogram(score.cpu().numpy(), mask, share)

    found = compare("histograms", "copied to the CPU", "megapixel", there, copied, scores.size / 1e6, rounds)
    return asdict(found)


def memory() -> dict[str, float]:
    """Peak resident memory in MB above that of a process which has only imported this, over 1 Gpx."""
    imported = _peak_kib()
    scores, masks = generated(4, 1000)
    total = ScoreHistogram.empty()
    for number in range(1000):
        total = total + score_histogram(scores[number % 4], masks[number % 4])
    summary(total)
    counted = int(total.negatives.sum() + total.positives.sum())
    return {"gigapixels": counted / 1e9, "peak_growth_mb": (_peak_kib() - imported) * 1024 / 1e6}


def _peak_kib() -> int:
    """Linux' own count; that of ``getrusage`` begins with the peak of the process that started this one."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigapixel", action="store_true", help="only the memory of 1 Gpx")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.gigapixel:
        print(json.dumps(memory()))
        return 0
    scores, masks = generated(max(1, round(arguments.megapixels * 1e6 / SIDE**2)))
    weights = [region_weights(mask)[0] for mask in masks]

    def ours() -> PixelMetrics:
        total = ScoreHistogram.empty()
        for own, mask, weight in zip(scores, masks, weights, strict=True):
            total = total + score_histogram(own, mask, weight)
        return summary(total)

    def ours_with_regions() -> PixelMetrics:
        total = ScoreHistogram.empty()
        for own, mask in zip(scores, masks, strict=True):
            total = total + score_histogram(own, mask)
        return summary(total)

    def scikit_learn() -> tuple[float, float, float]:
        labels, values = masks.ravel(), scores.ravel().astype(np.float32)
        precision, recall, _ = precision_recall_curve(labels, values)
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        return roc_auc_score(labels, values), average_precision_score(labels, values), float(f1.max())

    found, expected = ours(), scikit_learn()
    errors = [abs(a - b) for a, b in zip((found.auroc, found.average_precision, found.f1_max), expected, strict=True)]
    comparisons = []
    for peer, with_regions, call in [
        ("scikit-learn: AUROC, AP, F1-max", False, scikit_learn),
        *peers(scores, masks),
    ]:
        name = "AUROC, AP, F1-max and AUPRO" + (", regions found anew" if with_regions else "")
        way = ours_with_regions if with_regions else ours
        comparisons.append(compare(name, peer, "megapixel", way, call, scores.size / 1e6, arguments.rounds))
    apart = subprocess.run(
        [sys.executable, "-m", "benchmarks.metrics", "--gigapixel"], check=True, capture_output=True, text=True
    )
    streamed = json.loads(apart.stdout)
    gpu = on_gpu(scores, masks, weights, arguments.rounds) if torch.cuda.is_available() else "not measured"
    facts = {"megapixels": scores.size / 1e6, "rounds": arguments.rounds, "largest_difference": max(errors), "gpu": gpu}
    publish(comparisons, facts | {"streamed": streamed}, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
