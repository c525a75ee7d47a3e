"""Segmentation metrics, exact for float16 scores, from histograms that add."""

from cascade.metrics.bootstrap import OccupiedBins, bins_of_scores, draw_weights, resampled_metrics
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
from cascade.metrics.histogram import N_BINS, ScoreHistogram, bin_values, distinct_histogram, score_histogram
from cascade.metrics.regions import region_weights
from cascade.metrics.significance import adjusted_p_values, p_value, percentile_intervals

__all__ = [
    "N_BINS",
    "ImageMetrics",
    "OccupiedBins",
    "PixelMetrics",
    "ScoreHistogram",
    "adjusted_p_values",
    "aupro",
    "auroc",
    "average_precision",
    "bin_values",
    "bins_of_scores",
    "distinct_histogram",
    "draw_weights",
    "f1_max",
    "image_metrics",
    "p_value",
    "percentile_intervals",
    "region_weights",
    "resampled_metrics",
    "score_histogram",
    "summary",
]
