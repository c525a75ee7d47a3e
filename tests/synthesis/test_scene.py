from __future__ import annotations

import hashlib
import multiprocessing as mp

import numpy as np
import pytest

from cascade.synthesis.captions import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES
from cascade.synthesis.defects import DEFECTS, apply_defect
from cascade.synthesis.layout import Layout
from cascade.synthesis.scene import AREA_RANGE, CATEGORIES, Scene, generate_scene

SIZE = 128


def digest(seed: int) -> str:
    scene = generate_scene(seed, SIZE)
    parts = [scene.image.tobytes(), scene.mask.tobytes(), *(mask.tobytes() for mask in scene.segments)]
    return hashlib.sha256(b"".join(parts) + scene.caption.encode()).hexdigest()


def test_same_seed_gives_same_bytes_in_another_process() -> None:
    seeds = list(range(6))
    with mp.get_context("spawn").Pool(1) as pool:
        assert pool.map(digest, seeds) == [digest(seed) for seed in seeds]


def test_different_seeds_give_different_scenes() -> None:
    assert len({digest(seed) for seed in range(20)}) == 20


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_keeps_the_contract(category: str) -> None:
    for seed, defective in ((1, True), (2, False)):
        scene = generate_scene(seed, SIZE, category, defective)
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert scene.image.std() > 0
        assert scene.mask.shape == (SIZE, SIZE)
        assert scene.mask.dtype == np.bool_
        assert all(segment.shape == scene.mask.shape and segment.dtype == np.bool_ for segment in scene.segments)
        assert all(segment.any() for segment in scene.segments)
        assert scene.category == category
        assert category in scene.caption


def test_normal_scene_has_an_empty_mask_and_a_normal_caption() -> None:
    states = [state.replace("{}", "").strip() for state in ABNORMAL_STATES]
    for seed in range(20):
        scene = generate_scene(seed, SIZE, defective=False)
        assert not scene.mask.any()
        assert scene.defect is None
        assert not any(state in scene.caption for state in states)


def test_defective_scene_has_a_mask_within_the_area_range() -> None:
    scenes = [generate_scene(seed, SIZE, defective=True) for seed in range(60)]
    damaged = [scene for scene in scenes if scene.defect is not None]
    assert len(damaged) >= 58
    areas = np.array([scene.mask.mean() for scene in damaged])
    assert areas.min() > 0
    # Three defects may add up, and ragged outlines may exceed their ellipse.
    assert areas.max() < 3 * AREA_RANGE[1]
    assert np.quantile(areas, 0.2) < 0.02
    assert {scene.defect for scene in damaged} <= set(DEFECTS)


def test_mask_is_the_union_of_the_defect_segments() -> None:
    for seed in range(30):
        scene = generate_scene(seed, SIZE, defective=True)
        inside = [segment for segment in scene.segments if not (segment & ~scene.mask).any()]
        assert scene.mask.any()
        assert (np.any(inside, axis=0) == scene.mask).all()


@pytest.mark.parametrize("kind", DEFECTS)
def test_defect_changes_the_picture_inside_its_mask_and_hardly_outside(kind: str) -> None:
    size = 256
    field = np.random.default_rng(7).uniform(0.45, 0.55, (size, size, 3)).astype(np.float32)
    field[:, ::16] += 0.2
    layout = Layout(field, np.ones((size, size), np.bool_), (), np.zeros_like(field))
    checked = 0
    for seed in range(6):
        image, mask = apply_defect(np.random.default_rng(seed), layout, kind, 0.02)
        change = np.abs(image - field).max(axis=2)
        if not mask.any():
            assert not change.any()
            continue
        checked += 1
        assert change[mask].mean() > 0.03
        far = change[~mask]
        assert far.mean() < 0.02
        assert (far > 0.25).mean() < 0.02
    assert checked >= 4


def test_defect_stays_on_the_object() -> None:
    size = 128
    region = np.zeros((size, size), np.bool_)
    region[40:90, 40:90] = True
    image = np.where(region[..., None], np.float32(0.7), np.float32(0.2)).repeat(3, axis=2)
    layout = Layout(image, region, (region,), np.full_like(image, 0.2))
    for kind in DEFECTS:
        _, mask = apply_defect(np.random.default_rng(3), layout, kind, 0.02)
        if kind != "fibre":
            assert not (mask & ~region).any(), kind


def test_some_scenes_are_grey_and_some_are_coloured() -> None:
    grey = [bool((np.ptp(generate_scene(seed, 64).image, axis=2) == 0).all()) for seed in range(60)]
    assert 5 < sum(grey) < 40


def test_captions_use_the_ensemble_wording() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 35
    assert len(NORMAL_STATES) == 7
    assert len(ABNORMAL_STATES) == 5
    assert all(template.count("{}") == 1 and template.endswith(".") for template in TEMPLATES)
    assert "a photo of the large {}." in TEMPLATES
    for seed in range(30):
        caption = generate_scene(seed, 64).caption
        assert any(caption.startswith(template.split("{}")[0]) for template in TEMPLATES)


def test_size_scales_the_scene() -> None:
    assert generate_scene(5, 96).image.shape == (96, 96, 3)
    assert isinstance(generate_scene(5, 64), Scene)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        generate_scene(0, 32)
    with pytest.raises(ValueError, match="unknown category 'unicorn'"):
        generate_scene(0, 64, "unicorn")
