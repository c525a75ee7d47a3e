from dataclasses import replace

import numpy as np
import pytest

from cascade.fusion import FusionOptions, fuse, smooth

DEFAULT = FusionOptions("blend", 0.5, "agreement", "chosen", "damp", 0.0)


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    return rng.random((20, 30)).astype(np.float32), rng.normal(0, 4, (3, 20, 30)).astype(np.float32)


def test_blend_by_hand(scene):
    """A = (1−w)·M + w·g·σ(Z), g = mean of M inside the mask times the predicted IoU."""
    anomaly, logits = scene
    iou = np.array([0.2, 0.7, 0.9], np.float32)
    scores = fuse(anomaly, logits, iou, 1, replace(DEFAULT, weight=0.3))
    total, count = 0.0, 0
    for y in range(20):
        for x in range(30):
            if logits[1, y, x] > 0:
                total, count = total + float(anomaly[y, x]), count + 1
    gain = total / count * 0.7
    expected = 0.7 * anomaly + 0.3 * gain / (1 + np.exp(-logits[1].astype(float)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.dtype == np.float32


def test_hard_mask_sum_and_strict_gain(scene):
    anomaly, logits = scene
    iou, hard = np.ones(3, np.float32), logits[0] > 0
    strict = replace(DEFAULT, gain="one")
    np.testing.assert_allclose(
        fuse(anomaly, logits, iou, 0, replace(strict, fusion="mask")), 0.5 * anomaly + 0.5 * hard, rtol=1e-6
    )
    np.testing.assert_allclose(fuse(anomaly, logits, iou, 0, replace(DEFAULT, fusion="sum")), anomaly + hard, rtol=1e-6)
    only = fuse(anomaly, logits, iou, 0, replace(strict, weight=1.0))
    np.testing.assert_allclose(only, 1 / (1 + np.exp(-logits[0])), rtol=1e-5)


def test_all_masks_are_averaged(scene):
    anomaly, logits = scene
    iou = np.array([0.5, 0.6, 0.7], np.float32)
    parts = [fuse(anomaly, logits, iou, index, DEFAULT) for index in range(3)]
    together = fuse(anomaly, logits, iou, 0, replace(DEFAULT, masks="all"))
    np.testing.assert_allclose(together, np.mean(parts, axis=0), rtol=1e-5)


def test_image_without_prompt(scene):
    anomaly, _ = scene
    none = np.zeros(0, np.float32)
    np.testing.assert_allclose(fuse(anomaly, None, none, 0, DEFAULT), 0.5 * anomaly)
    np.testing.assert_array_equal(fuse(anomaly, None, none, 0, replace(DEFAULT, no_prompt="map")), anomaly)


def test_empty_mask_adds_nothing(scene):
    anomaly, logits = scene
    scores = fuse(anomaly, -np.abs(logits), np.ones(3, np.float32), 0, DEFAULT)
    np.testing.assert_allclose(scores, 0.5 * anomaly, rtol=1e-6)


def test_predicted_iou_outside_its_range_is_clipped(scene):
    anomaly, logits = scene
    for iou in (-3.0, 4.0):
        scores = fuse(anomaly, logits, np.full(3, iou, np.float32), 0, DEFAULT)
        assert scores.min() >= 0
        assert scores.max() <= 1


def test_smoothing_keeps_the_mean():
    anomaly = np.zeros((41, 41), np.float32)
    anomaly[20, 20] = 1
    assert smooth(anomaly, DEFAULT) is anomaly
    smoothed = smooth(anomaly, replace(DEFAULT, smoothing=4.0))
    assert smoothed.sum() == pytest.approx(1, abs=1e-3)
    assert smoothed[20, 20] == pytest.approx(1 / (2 * np.pi * 16), rel=0.02)
