"""PPG against a slow reference that follows the equations on full-size arrays."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from cascade.configs.schema import PromptConfig
from cascade.frames import InputFrame
from cascade.prompts.ppg import PromptOptions, generate_prompts
from cascade.tasks.prompt import prompt_options
from tests.test_dilation import kernel_of

SIDE, GRID = 96, 12
FRAME = InputFrame(192, (192, 192))


@pytest.fixture
def options() -> PromptOptions:
    return prompt_options(PromptConfig())


@pytest.fixture
def scene():
    """Two soft bumps of different height, and features that differ inside and around them."""
    y, x = np.mgrid[:SIDE, :SIDE]
    bumps = 0.95 * np.exp(-((x - 30) ** 2 + (y - 40) ** 2) / 200) + 0.9 * np.exp(-((x - 75) ** 2 + (y - 20) ** 2) / 60)
    anomaly = np.clip(bumps, 0, 1).astype(np.float32)
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((16, GRID, GRID)).astype(np.float32))
    return anomaly, anomaly * 10, features


def _reference_negatives(anomaly, features, threshold, size, count, raw):
    """Equations 3, 5, 6 and 7 with the default choices: prototype of S_a, map upsampled, rank stride."""
    region = anomaly >= threshold
    ring = ndimage.binary_dilation(region, kernel_of("ellipse", size)) & ~region
    unit = functional.normalize(features, dim=0)
    share = region.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean(axis=(1, 3))
    averaged = features if raw else unit
    prototype = functional.normalize((averaged * torch.from_numpy(share).float()).sum(dim=(1, 2)), dim=0)
    grid_map = torch.einsum("c,chw->hw", prototype, unit)
    whole = functional.interpolate(grid_map[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    candidates = sorted((float(whole[y, x]), y, x) for y, x in zip(*np.nonzero(ring), strict=True))
    stride = 400 if len(candidates) > 400 * (count - 1) else max(1, len(candidates) // count)
    return np.array([[x, y] for _, y, x in candidates[::stride][:count]], dtype=float)


@pytest.mark.parametrize("prototype", ["raw", "unit"])
def test_default_choices_follow_the_equations(scene, options, prototype):
    anomaly, margin, features = scene
    features = features * torch.from_numpy(np.random.default_rng(1).uniform(0.1, 10, (GRID, GRID))).float()
    prompts = generate_prompts(anomaly, margin, features, FRAME, replace(options, prototype_features=prototype))
    assert prompts.threshold == pytest.approx(0.8 * anomaly.max())
    (own,) = prompts.sets
    region = anomaly >= prompts.threshold
    assert own.area == region.sum()

    ranked = sorted((-float(anomaly[y, x]), y, x) for y, x in zip(*np.nonzero(region), strict=True))
    stride = max(1, len(ranked) // 3)
    positives = np.array([[x, y] for _, y, x in ranked[::stride][:3]], dtype=float)
    np.testing.assert_array_equal(own.points[own.labels == 1], positives)
    negatives, others = (
        _reference_negatives(anomaly, features, prompts.threshold, 25, 3, raw)
        for raw in (prototype == "raw", prototype != "raw")
    )
    assert not np.array_equal(negatives, others)
    np.testing.assert_allclose(own.points[own.labels == 0], negatives)
    assert own.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_saturated_map_is_ranked_by_the_margin_then_row_major(options):
    """A6: where probabilities are equal, the logits decide; where these are equal too, the first pixel."""
    anomaly = np.zeros((SIDE, SIDE), np.float32)
    anomaly[10:30, 10:30] = 1.0
    margin = np.zeros_like(anomaly)
    margin[25, 17] = 3.0
    features = torch.randn(16, GRID, GRID)
    own = generate_prompts(anomaly, margin, features, FRAME, replace(options, positives=2)).sets[0]
    assert own.points[0].tolist() == [17, 25]
    flat = generate_prompts(anomaly, np.zeros_like(anomaly), features, FRAME, replace(options, positives=2)).sets[0]
    assert flat.points[0].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("rule", "expected"), [("absolute", 0.3), ("relative", 0.6 * 0.9), ("quantile", None), ("max", 0.6 * 0.9)]
)
def test_thresholds(options, rule, expected):
    anomaly = np.linspace(0, 0.9, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    chosen = replace(
        options, threshold_rule=rule, threshold_absolute=0.3, threshold_relative=0.6, threshold_quantile=0.95
    )
    prompts = generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, chosen)
    assert prompts.threshold == pytest.approx(np.quantile(anomaly, 0.95) if expected is None else expected, rel=1e-6)


def test_image_below_the_threshold_gets_no_prompt(options):
    anomaly = np.full((SIDE, SIDE), 0.2, np.float32)
    anomaly[:4, :4] = 0.9  # 16 pixels, fewer than min_area
    floor = replace(options, threshold_rule="max")
    assert generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, floor).sets == ()


def test_a_narrow_peak_takes_the_pixels_around_it_into_the_region(options):
    """Without a floor S_a has at least min_area pixels: the highest, and all that equal the last of them."""
    anomaly = np.random.default_rng(0).uniform(0, 0.1, (SIDE, SIDE)).astype(np.float32)
    anomaly[10, 10:13] = 0.4
    prompts = generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, options)
    assert prompts.threshold == np.sort(anomaly, axis=None)[-options.min_area]
    assert prompts.sets[0].area == options.min_area
    assert prompts.sets[0].points[0].tolist() == [10, 10]


def test_rank_spacing_keeps_its_stride_when_there_is_room(options):
    anomaly = np.linspace(1, 0, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    chosen = replace(options, threshold_rule="absolute", threshold_absolute=0.5)
    own = generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, chosen).sets[0]
    ranks = (own.points[:3, 1] * SIDE + own.points[:3, 0]).astype(int).tolist()
    assert ranks == [0, 400, 800]


@pytest.mark.parametrize(("rule", "apart"), [("radius", 20.0), ("distance", 400 * SIDE / 1024)])
def test_greedy_spacing_keeps_its_distance(scene, options, rule, apart):
    anomaly, margin, features = scene
    chosen = replace(
        options, spacing_rule=rule, threshold_rule="absolute", threshold_absolute=0.1, positives=10, negatives=10
    )
    own = generate_prompts(anomaly, margin, features, FRAME, chosen).sets[0]
    for label in (0, 1):
        points = own.points[own.labels == label]
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[~np.eye(len(points), dtype=bool)]
        assert len(points) >= 2
        assert gaps.min() >= apart - 1e-9
    assert own.points[0].tolist() == [30, 40]


def test_fewer_candidates_than_points(options):
    anomaly = np.zeros((SIDE, SIDE), np.float32)
    anomaly[5, 5:27] = 0.9
    own = generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, replace(options, positives=40)).sets[0]
    assert (own.labels == 1).sum() == 22
    assert len({tuple(point) for point in own.points[own.labels == 1]}) == 22


def test_ring_guard_can_empty_the_ring(scene, options):
    anomaly, margin, features = scene
    own = generate_prompts(anomaly, margin, features, FRAME, replace(options, ring_limit=0.5)).sets[0]
    rows, columns = own.points[own.labels == 0].astype(int).T[::-1]
    assert (anomaly[rows, columns] < 0.5 * 0.8 * anomaly.max()).all()
    none = generate_prompts(anomaly, margin, features, FRAME, replace(options, ring_limit=0.0)).sets[0]
    assert none.empty_ring
    assert none.labels.tolist() == [1, 1, 1]


def test_a_negative_from_the_whole_image_is_the_least_similar_pixel_outside(scene, options):
    """PerSAM's negative: the smallest cosine to the prototype, wherever it is."""
    anomaly, margin, features = scene
    chosen = replace(options, positives=1, negatives=1, negatives_from="image")
    own = generate_prompts(anomaly, margin, features, FRAME, chosen).sets[0]
    region = anomaly >= 0.8 * anomaly.max()
    share = region.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean(axis=(1, 3))
    prototype = functional.normalize((features * torch.from_numpy(share).float()).sum(dim=(1, 2)), dim=0)
    cosine = torch.einsum("c,chw->hw", prototype, functional.normalize(features, dim=0))
    whole = functional.interpolate(cosine[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    lowest = np.where(region, np.inf, whole.numpy())
    y, x = np.unravel_index(lowest.argmin(), lowest.shape)
    assert own.points.tolist() == [[30, 40], [x, y]]
    assert not ndimage.binary_dilation(region, kernel_of("ellipse", 25))[y, x], "the scene's lowest is in the ring"


def test_the_box_of_a_region_is_its_own_or_that_of_its_ring(scene, options):
    anomaly, margin, features = scene
    rows, columns = np.nonzero(anomaly >= 0.8 * anomaly.max())
    own = generate_prompts(anomaly, margin, features, FRAME, replace(options, box_of="region")).sets[0]
    assert own.box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
    ring = generate_prompts(anomaly, margin, features, FRAME, options).sets[0]
    assert (ring.box[:2] < own.box[:2]).all()
    assert (ring.box[2:] > own.box[2:]).all()


def test_whole_image_anomalous_has_no_ring(options):
    anomaly = np.ones((SIDE, SIDE), np.float32)
    own = generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, options).sets[0]
    assert own.empty_ring


def test_components_get_their_own_points(scene, options):
    anomaly, margin, features = scene
    chosen = replace(options, grouping="component", threshold_rule="absolute", threshold_absolute=0.5)
    sets = generate_prompts(anomaly, margin, features, FRAME, chosen).sets
    parts, count = ndimage.label(anomaly >= 0.5, np.ones((3, 3)))
    assert len(sets) == count == 2
    for number, own in enumerate(sets, start=1):
        columns, rows = own.points[own.labels == 1].astype(int).T
        assert set(parts[rows, columns]) == {number}


def test_components_that_touch_at_a_corner_are_one(options):
    anomaly = np.zeros((SIDE, SIDE), np.float32)
    anomaly[10:20, 10:20] = anomaly[20:30, 20:30] = 0.9
    anomaly[60:63, 60:63] = 0.9  # fewer than min_area pixels: no set of its own
    chosen = replace(options, grouping="component")
    (own,) = generate_prompts(anomaly, anomaly, torch.randn(16, GRID, GRID), FRAME, chosen).sets
    assert own.area == 200


@pytest.mark.parametrize("side", [420, 518, 640, 840])
def test_a_cell_that_only_rounding_covers_is_not_covered(options, side):
    """A7: the best match of every ring pixel, over the cells that exact arithmetic says S_a touches."""
    grid = 64
    frame = InputFrame(1024, (1024, 1024))
    anomaly = np.zeros((side, side), np.float32)
    first, last = side // 4, side // 2  # edges of S_a: of cells too, where the side divides
    anomaly[first:last, first:last] = 0.9
    touched = [
        cell
        for cell in range(grid)
        if Fraction(cell + 1, grid) > Fraction(first, side) and Fraction(cell, grid) < Fraction(last, side)
    ]
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((4, grid, grid)).astype(np.float32))
    chosen = replace(options, similarity="max", negatives=1)
    own = generate_prompts(anomaly, anomaly, features, frame, chosen).sets[0]
    unit = functional.normalize(features, dim=0)
    inside = unit[:, touched][:, :, touched].reshape(4, -1)
    best = torch.einsum("cn,chw->nhw", inside, unit).amax(dim=0)
    whole = functional.interpolate(best[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
    ring = ndimage.binary_dilation(anomaly > 0, kernel_of("ellipse", 25)) & (anomaly == 0)
    assert own.values[own.labels == 0][0] == pytest.approx(float(whole[torch.from_numpy(ring)].min()), abs=1e-5)


@pytest.mark.parametrize("similarity", ["prototype", "max", "mean"])
@pytest.mark.parametrize("weight", ["area", "area_score"])
@pytest.mark.parametrize("raw", [True, False])
def test_pixel_features_against_the_full_array(scene, options, similarity, weight, raw):
    """A7, A8: the similarity of features that were upsampled to every pixel, computed the long way."""
    anomaly, margin, features = scene
    features = features * torch.from_numpy(np.random.default_rng(1).uniform(0.1, 10, (GRID, GRID))).float()
    chosen = replace(
        options,
        features="pixel",
        similarity=similarity,
        prototype_weight=weight,
        prototype_features="raw" if raw else "unit",
        negatives=1,
    )
    prompts = generate_prompts(anomaly, margin, features, FRAME, chosen)
    region = torch.from_numpy(anomaly >= prompts.threshold)
    ring = ndimage.binary_dilation(region, kernel_of("ellipse", 25)) & ~region.numpy()
    unit = functional.normalize(features, dim=0)[None]
    dense = functional.interpolate(unit, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    dense = functional.normalize(dense, dim=0)
    inside = dense[:, region]
    if similarity == "prototype":
        weights = torch.from_numpy(anomaly)[region] if weight == "area_score" else torch.ones(int(region.sum()))
        as_they_are = functional.interpolate(features[None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        averaged = as_they_are[:, region] if raw else inside
        whole = torch.einsum("c,chw->hw", functional.normalize((averaged * weights).sum(dim=1), dim=0), dense)
    else:
        pairs = torch.einsum("cn,chw->nhw", inside, dense)
        whole = pairs.amax(dim=0) if similarity == "max" else pairs.mean(dim=0)
    value = prompts.sets[0].values[prompts.sets[0].labels == 0][0]
    assert value == pytest.approx(float(whole[torch.from_numpy(ring)].min()), abs=1e-5)
