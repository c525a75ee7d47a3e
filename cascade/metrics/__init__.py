"""Segmentation metrics, exact for float16 scores, from histograms that add."""

from cascade.metrics.curves import (
    ImageMetrics,
    PixelMetrics,
    aupro,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    summary,
)
from cascade.metrics.histogram import ScoreHistogram, bin_values, distinct_histogram, score_histogram
from cascade.metrics.regions import region_weights

__all__ = [
    "ImageMetrics",
    "PixelMetrics",
    "ScoreHistogram",
    "aupro",
    "auroc",
    "average_precision",
    "bin_values",
    "distinct_histogram",
    "f1_max",
    "image_metrics",
    "region_weights",
    "score_histogram",
    "summary",
]
