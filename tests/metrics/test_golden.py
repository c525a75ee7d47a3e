"""Values that public evaluation code returned for three sets of six maps (see the array names for their sources)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade.metrics import (
    ScoreHistogram,
    distinct_histogram,
    image_metrics,
    region_weights,
    score_histogram,
    summary,
)

FILE = Path(__file__).parents[1] / "golden" / "clip" / "metrics_caseA.npz"
SETS = ["binary_like", "smooth", "regions"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FILE) as arrays:
        return dict(arrays)


def maps_and_masks(golden: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    masks = golden[f"{name}.masks"].astype(bool)
    weights = np.stack([region_weights(mask)[0] for mask in masks])
    return golden[f"{name}.maps"], masks, weights


@pytest.mark.parametrize("name", SETS)
def test_pixel_ranking_metrics(golden: dict[str, np.ndarray], name: str) -> None:
    metrics = summary(distinct_histogram(*maps_and_masks(golden, name)))
    assert metrics.auroc == pytest.approx(golden[f"{name}.auroc_px"].item(), abs=1e-9)
    assert metrics.average_precision == pytest.approx(golden[f"{name}.ap_px"].item(), abs=1e-9)
    assert metrics.f1_max == pytest.approx(golden[f"{name}.f1max_px"].item(), abs=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_aupro_of_the_exact_sweep(golden: dict[str, np.ndarray], name: str) -> None:
    metrics = summary(distinct_histogram(*maps_and_masks(golden, name)))
    assert metrics.aupro == pytest.approx(golden[f"{name}.aupro_anomalib_2026"].item(), abs=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_aupro_of_the_dataset_authors(golden: dict[str, np.ndarray], name: str) -> None:
    """Their code keeps 1000 thresholds of all.

    With about 300 points below the limit, the trapezoids under a monotone curve are within half a step (1.7e-3) of the
    exact area, and much closer where the curve is smooth.
    """
    metrics = summary(distinct_histogram(*maps_and_masks(golden, name)))
    assert metrics.aupro == pytest.approx(golden[f"{name}.aupro_mvtec_reference_1000"].item(), abs=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_image_metrics(golden: dict[str, np.ndarray], name: str) -> None:
    metrics = image_metrics(
        golden[f"{name}.image_score"].astype(np.float64), golden[f"{name}.image_label"].astype(bool)
    )
    expected = golden[f"{name}.image_auroc_ap_f1max"]
    found = [metrics.auroc, metrics.average_precision, metrics.f1_max]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_rounding_scores_to_float16_moves_auroc_by_its_ties_at_most(golden: dict[str, np.ndarray], name: str) -> None:
    """Rounding is monotone: it only merges scores, and a merged pair changes from won or lost to half."""
    maps, masks, weights = maps_and_masks(golden, name)
    exact = summary(distinct_histogram(maps, masks, weights))
    images = zip(maps.astype(np.float16), masks, weights, strict=True)
    pooled = sum((score_histogram(*image) for image in images), ScoreHistogram.empty())
    tied = int(pooled.positives @ pooled.negatives) / (int(masks.sum()) * int((~masks).sum()))
    rounded = summary(pooled)
    assert 0 < abs(rounded.auroc - exact.auroc) <= tied / 2
    for metric, value in vars(exact).items():
        assert getattr(rounded, metric) == pytest.approx(value, abs=5e-3), metric
