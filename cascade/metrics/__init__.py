"""Segmentation metrics, exact for float16 scores, from histograms that add."""

from cascade.metrics.bootstrap import (
    OccupiedBins,
    bins_of_scores,
    draw_weights,
    influences,
    left_out_weights,
    resampled_metrics,
)
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
from cascade.metrics.operating import best_f1_thresholds, quantile_threshold
from cascade.metrics.regions import region_weights
from cascade.metrics.significance import (
    Estimate,
    Verdict,
    adjusted_p_values,
    bca_intervals,
    correctable,
    p_values,
    verdict,
)

__all__ = [
    "N_BINS",
    "Estimate",
    "ImageMetrics",
    "OccupiedBins",
    "PixelMetrics",
    "ScoreHistogram",
    "Verdict",
    "adjusted_p_values",
    "aupro",
    "auroc",
    "average_precision",
    "bca_intervals",
    "best_f1_thresholds",
    "bin_values",
    "bins_of_scores",
    "correctable",
    "distinct_histogram",
    "draw_weights",
    "f1_max",
    "image_metrics",
    "influences",
    "left_out_weights",
    "p_values",
    "quantile_threshold",
    "region_weights",
    "resampled_metrics",
    "score_histogram",
    "summary",
    "verdict",
]
