"""MMR's merged mask: what it is of SAM's three, and which prompts lead to them."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import expit

from cascade.backbones.sam.decoder import Decoded, decode
from cascade.frames import InputFrame
from cascade.refiners.levels import merged_levels
from cascade.refiners.mmr import Mmr
from cascade.refiners.protocol import Row
from tests.tiny import tiny_sam

ROWS = [
    Row(InputFrame(64, (64, 48)), (80, 60), np.array([5.0, 6.0, 20.0, 30.0])),
    Row(InputFrame(64, (32, 64)), (50, 100), np.array([10.0, 0.0, 99.0, 49.0])),
]


@pytest.fixture(scope="module")
def decoder():
    return partial(decode, tiny_sam())


def test_the_pass_has_points_and_box_and_no_logits(decoder):
    calls = []

    def watched(embeddings, points, labels, **prompts):
        calls.append((points, labels, prompts))
        return decoder(embeddings, points, labels, **prompts)

    generator = torch.Generator().manual_seed(0)
    embeddings, points = torch.randn(2, 32, 4, 4, generator=generator), torch.rand(2, 3, 2, generator=generator) * 40
    found = Mmr().refine(watched, embeddings, points, torch.ones(2, 3, dtype=torch.int64), ROWS)
    ((_, _, prompts),) = calls
    assert set(prompts) == {"boxes", "multimask"}
    assert prompts["multimask"]
    scaled = np.array([[5 * 0.8, 6 * 0.8, 20 * 0.8, 30 * 0.8], [6.4, 0, 99 * 0.64, 49 * 0.64]])
    np.testing.assert_allclose(prompts["boxes"], scaled, rtol=1e-6)

    for row, (number, refined) in zip(ROWS, enumerate(found), strict=True):
        best, merged = refined.steps
        alone = decoder(
            embeddings[[number]], points[[number]], torch.ones(1, 3), boxes=prompts["boxes"][[number]], multimask=True
        )
        np.testing.assert_allclose(best.logits, alone.low_res_logits[0], atol=1e-5)
        assert best.chosen == int(alone.predicted_iou[0].argmax())
        assert [step.boxes[0].tolist() for step in refined.steps] == [row.region_box.tolist()] * 2
        weights = np.clip(best.predicted_iou, 0, 1)
        share = np.tensordot(weights / weights.sum(), expit(best.logits), 1)
        np.testing.assert_allclose(expit(merged.logits[0]), share, atol=1e-6)
        assert merged.predicted_iou[0] == pytest.approx(best.predicted_iou.mean())


def test_pixels_of_more_levels_score_higher():
    """Three discs in one another, as SAM's whole, part and part of a part."""
    y, x = np.mgrid[:32, :32] - 15.5
    radii = np.array([14.0, 9.0, 4.0])
    logits = torch.from_numpy(10 * (radii[:, None, None] - np.hypot(x, y))).float()[None]
    merged = merged_levels(Decoded(logits, torch.tensor([[0.9, 0.6, 0.5]])))
    share = merged.low_res_logits[0, 0].sigmoid().numpy()
    away = np.hypot(x, y)
    rings = [share[(away > inner) & (away < outer)] for inner, outer in ((0, 3), (5, 8), (10, 13))]
    np.testing.assert_allclose([ring.mean() for ring in rings], [1, 0.75, 0.45], atol=1e-3)
    assert ((merged.low_res_logits[0, 0] > 0).numpy() == (np.hypot(x, y) < 9)).all(), "two of three by their weights"


def test_without_any_predicted_iou_the_levels_count_alike():
    logits = torch.tensor([8.0, -8.0, -8.0]).reshape(1, 3, 1, 1)
    share = merged_levels(Decoded(logits, torch.tensor([[-0.2, 0.0, -1.0]]))).low_res_logits.sigmoid()
    assert float(share) == pytest.approx(1 / 3, abs=1e-3)
