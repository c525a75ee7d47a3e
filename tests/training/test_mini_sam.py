"""The training of the SAM on the trunk: what it learns from, what it learns, and what it leaves as it is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cascade.backbones.sam.build import SAM_MODELS, build_sam, embedding_shape
from cascade.backbones.sam.pyramid import PyramidEncoder
from cascade.storage.errors import ConfigError
from cascade.tasks.execution.networks import trunk_state
from cascade.tasks.training.cascade_prompts import DrawnMap, draw_options, ppg_points, simulated_map
from cascade.tasks.training.decoder_start import part_channels, start_as_match
from cascade.tasks.training.mini_sam import (
    TARGETS,
    _hit,
    decoder_passes,
    embedding_loss,
    held_out_examples,
    pretrain_sam,
)
from cascade.tasks.training.photographs import load_pictures
from cascade.tasks.training.picture_regions import cut_outs, picture_regions
from cascade.tasks.training.sam_examples import KINDS, Example, View, _one_of, augment, make_example
from cascade.tasks.training.sam_objective import (
    Trainee,
    affinity_loss,
    coarse_target,
    decode,
    mask_losses,
    total_loss,
)
from cascade.tasks.training.session import optimiser
from cascade.tasks.training.simulated_prompts import boxes_of, correction, first_points
from tests.tiny import tiny_sam

SIDE = 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trainee() -> Trainee:
    torch.manual_seed(0)
    return Trainee(build_sam("mini", trunk_state("efficientnet_lite0")))


def view_of(shape: np.ndarray, *, damage: bool = True) -> View:
    """A dark view with one bright shape, which is what is asked for."""
    image = np.where(shape[..., None], 190, 60).astype(np.uint8).repeat(3, axis=2)
    return View(image, np.stack([shape] * TARGETS), shape if damage else None)


def disc(side: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2, np.bool_)


def steps(out: Path) -> list[int]:
    with (out / "log.csv").open() as file:
        return [int(float(row["step"])) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_training_resumes_and_exports(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"minutes": 5, "batch": 1, "validation_examples": 4}
    pretrain_sam(tmp_path, max_steps=2, **arguments)
    before = load_file(tmp_path / "mini_sam.safetensors")
    pretrain_sam(tmp_path, max_steps=0, **arguments)
    unchanged = load_file(tmp_path / "mini_sam.safetensors")
    assert all(torch.equal(unchanged[name], tensor) for name, tensor in before.items())
    facts = pretrain_sam(tmp_path, max_steps=1, **arguments)
    assert facts["steps"] == 3
    assert steps(tmp_path) == [2, 2, 3]
    after = load_file(tmp_path / "mini_sam.safetensors")
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(0 <= facts[f"val_damage_iou_{level}"] <= 1 for level in (1, 2, 3))
    build_sam("mini").load_state_dict(after, strict=True)
    with pytest.raises(ValueError, match="made with seed 0, not 1"):
        pretrain_sam(tmp_path, max_steps=1, seed=1, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        pretrain_sam(tmp_path / "out", minutes=1, device="cuda")
    assert not (tmp_path / "out").exists()


def test_the_network_runs_at_512_and_the_registry_sizes_match() -> None:
    sam = build_sam("mini")
    with torch.no_grad():
        embedding = sam.image_encoder(torch.zeros(1, 3, 512, 512))
        points = torch.tensor([[[100.0, 50.0]]]), torch.ones(1, 1)
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        low, iou = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    assert embedding.shape == (1, *embedding_shape("mini")) == (1, 64, 64, 64)
    assert low.shape == (1, 3, 256, 256)
    assert iou.shape == (1, 3)
    assert SAM_MODELS == ("vit_b", "vit_l", "vit_h", "mini")
    with pytest.raises(ValueError, match="unknown SAM model 'vit_x'"):
        build_sam("vit_x")


def test_vit_b_has_the_official_state_dict() -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        ours = build_sam("vit_b").state_dict()
        theirs = sam_model_registry["vit_b"]().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_trunk_is_frozen_and_in_no_state_dict(trainee: Trainee) -> None:
    assert not any("trunk" in name for name in trainee.state_dict())
    image = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    encoder = trainee.sam.image_encoder
    before = [level.clone() for level in encoder.levels(image)]
    optimizer = optimiser(trainee, 1e-3)
    loss, _ = decoder_passes(
        np.random.default_rng(0), trainee, [view_of(disc(SIDE, 30, 30, 12))], (0, 0), "cpu", passes=1, cascaded=False
    )
    loss.backward()
    gradients = {name: weight.grad for name, weight in trainee.named_parameters() if weight.grad is not None}
    assert all(any(name.startswith(f"sam.image_encoder.{part}") for name in gradients) for part in ("laterals", "fine"))
    optimizer.step()
    assert all(torch.equal(own, other) for own, other in zip(before, encoder.levels(image), strict=True))


def test_the_finest_cells_of_the_trunk_lie_in_the_channels_of_a_cell() -> None:
    encoder = PyramidEncoder(SIDE, 16, None)
    image = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        finest, *others = encoder.trunk(image)
        levels = encoder.levels(image)
    assert [tuple(level.shape[1:3]) for level in levels] == [(8, 8), (8, 8), (4, 4), (2, 2)]
    parts = levels[0][0, 3, 5].reshape(24, 2, 2)
    torch.testing.assert_close(parts, finest[0, :, 6:8, 10:12] / 8)
    for own, raw in zip(levels[1:], others, strict=True):
        scale = (raw / own.permute(0, 3, 1, 2)).nanmedian()
        torch.testing.assert_close(own.permute(0, 3, 1, 2) * scale, raw)


def test_training_embeds_what_the_network_does(trainee: Trainee) -> None:
    image = torch.rand(2, 3, SIDE, 2 * SIDE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(trainee.embed(image), trainee.sam.image_encoder(image))


def test_batched_decoder_equals_the_official_one_image_at_a_time() -> None:
    torch.manual_seed(0)
    sam = tiny_sam().eval()
    embeddings = torch.randn(3, 32, 4, 4)
    points = torch.rand(3, 2, 2) * 64, torch.tensor([[1.0, 0.0]] * 3)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0]] * 3)
    logits = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        masks, iou = decode(sam, embeddings, points, boxes, logits)
        for row in range(3):
            one = slice(row, row + 1)
            sparse, dense = sam.prompt_encoder((points[0][one], points[1][one]), boxes[one], logits[one])
            expected, quality = sam.mask_decoder.predict_masks(
                embeddings[one], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            torch.testing.assert_close(masks[one], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(iou[one], quality, atol=1e-5, rtol=1e-4)


def test_a_window_has_the_positions_of_its_place_in_the_input() -> None:
    torch.manual_seed(0)
    sam = tiny_sam()
    whole = torch.randn(1, 32, 4, 4)
    points = torch.tensor([[[40.0, 24.0]]]), torch.ones(1, 1)
    window = (points[0] - 16.0, points[1])
    with torch.no_grad():
        here, _ = decode(sam, whole, points, None, None)
        cut = whole[..., 1:3, 1:3]
        moved, _ = decode(sam, cut, window, None, None, (1, 1))
        elsewhere, _ = decode(sam, cut, window, None, None, (0, 0))
    assert here.shape[-1] == 16
    assert moved.shape[-1] == 8
    assert not torch.allclose(moved, elsewhere)


def embedding_of(things: np.ndarray) -> torch.Tensor:
    """Cells ``[1, 64, g, g]`` of one look for each number in ``things``, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(int(things.max()) + 1, 64, generator=generator)
    cells = looks[torch.from_numpy(things).long()] + 0.2 * torch.randn(*things.shape, 64, generator=generator)
    norm = nn.LayerNorm(64)
    part_channels(norm)
    with torch.no_grad():
        return norm(cells).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("x", "y", "thing"), [(100.0, 120.0, 1), (380.0, 300.0, 2)])
def test_the_decoder_starts_as_a_match_of_looks_and_place(x: float, y: float, thing: int) -> None:
    """Two things, and one that looks like the first but lies far off."""
    torch.manual_seed(0)
    sam = build_sam("mini")
    start_as_match(sam)
    things = np.zeros((64, 64), np.int64)
    first = disc(64, 15, 12, 6)
    things[first] = things[disc(64, 55, 56, 3)] = 1
    second = disc(64, 37, 47, 8)
    things[second] = 2
    wanted = torch.from_numpy(np.kron(first if thing == 1 else second, np.ones((4, 4), np.bool_)))
    with torch.no_grad():
        logits, _ = decode(sam, embedding_of(things), (torch.tensor([[[x, y]]]), torch.ones(1, 1)), None, None)
    drawn = logits[0, 0] > 0
    assert ((drawn & wanted).sum() / (drawn | wanted).sum()).item() > 0.7


def test_every_kind_of_example_shows_something_to_segment() -> None:
    examples = [make_example(seed, SIDE, None) for seed in range(40, 40 + len(KINDS))]
    assert [example.damage for example in examples] == [kind == "scene" for kind in KINDS]
    for example in examples:
        assert 0 <= example.wanted <= example.count
        assert all(example.mask(index).any() for index in range(example.count))
    assert all(example.wanted for example in examples if not example.damage)


def test_held_out_examples_come_from_other_seeds_and_show_something_wanted() -> None:
    examples = held_out_examples(3, SIDE, None)
    assert len(examples) == 3
    trained = make_example(1_000_000, SIDE, None)
    assert not any(np.array_equal(example.image, trained.image) for example in examples)
    assert all(example.wanted for example in examples)


def test_regions_of_a_picture_differ_from_what_is_around_them() -> None:
    pictures = load_pictures(None, held_out=False)
    found = [picture_regions(seed, 128, pictures) for seed in range(6)]
    assert sum(len(own.masks) for own in found) > 6
    for own in found:
        assert own.image.shape == (128, 128, 3)
        assert all(mask.shape == (128, 128) and 0.001 < mask.mean() < 0.6 for mask in own.masks)


def test_cut_outs_do_not_overlap_and_their_borders_are_in_the_picture() -> None:
    pictures = load_pictures(None, held_out=False)
    found = [cut_outs(seed, 128, pictures) for seed in range(12)]
    masks = [mask for own in found for mask in own.masks]
    assert len(masks) >= 12
    assert all(np.sum(own.masks, axis=0).max() == 1 for own in found if own.masks)
    steeper = []
    for own in found:
        grey = own.image.astype(float).mean(axis=2)
        slope = np.hypot(*np.gradient(grey))
        for mask in own.masks:
            border = mask & ~(np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1))
            steeper.append(slope[border].mean() > slope[mask & ~border].mean() if (mask & ~border).any() else True)
    assert np.mean(steeper) > 0.6


@pytest.mark.parametrize("side", [48, 96])
def test_targets_stay_aligned_with_the_image(side: int) -> None:
    rng = np.random.default_rng(0)
    shape = disc(96, 30, 50, 20)
    picture = np.full((96, 96, 3), 60, np.uint8)
    picture[shape] = 200
    example = Example(picture, np.packbits(shape.ravel())[None], 1, 1, damage=True)
    for _ in range(20):
        view = augment(rng, example, 3, side)
        assert view.image.shape == (side, side, 3)
        assert view.targets.shape == (3, side, side)
        assert view.damage is not None
        assert (view.damage == view.targets[0]).all()
        values = view.image.max(axis=2).astype(float)
        bright = values > (values.min() + values.max()) / 2
        assert (bright ^ view.damage).sum() <= 0.15 * view.damage.sum()


def test_a_mask_of_four_times_the_area_is_asked_for_twice_as_often() -> None:
    large, small = np.zeros((2, 64, 64), np.bool_)
    large[4:44, 4:44] = True
    small[44:64, 44:64] = True
    rng = np.random.default_rng(0)
    drawn = [_one_of(rng, [small, large]) is large for _ in range(2000)]
    assert abs(np.mean(drawn) - 2 / 3) < 0.03


def test_a_simulated_map_finds_most_damage_and_errs_elsewhere() -> None:
    rng = np.random.default_rng(0)
    damage = disc(256, 60, 80, 25) | disc(256, 180, 200, 10)
    maps = [simulated_map(rng, damage) for _ in range(60)]
    assert all(0 <= own.values.min() <= own.values.max() <= 1 for own in maps)
    peaks = np.array([damage.ravel()[own.margin.argmax()] for own in maps])
    assert 0.5 < peaks.mean() < 1
    assert np.mean([own.values[damage].mean() > 2 * own.values[~damage].mean() for own in maps]) > 0.8


def test_ppg_points_lie_on_the_map_and_beside_it() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((512, 512), np.float32)
    values[100:140, 200:260] = 0.9
    maps = [DrawnMap(values, values)] * 2
    for _ in range(10):
        options = draw_options(rng)
        points, labels = ppg_points(rng, maps, torch.randn(2, 8, 64, 64), options)
        assert points.shape == (2, options.positives + options.negatives, 2)
        assert labels.sum(dim=1).tolist() == [options.positives] * 2
        inside = torch.from_numpy(values)[points[..., 1].long(), points[..., 0].long()] > 0
        assert (inside == (labels > 0)).all()


def test_a_map_without_a_ring_repeats_its_positive_points() -> None:
    rng = np.random.default_rng(0)
    full = DrawnMap(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))
    options = draw_options(rng)
    points, labels = ppg_points(rng, [full], torch.randn(1, 8, 8, 8), options)
    assert points.shape == (1, options.positives + options.negatives, 2)
    assert labels.all()


def test_points_that_miss_all_damage_ask_for_nothing() -> None:
    masks = np.stack([disc(64, 20, 20, 8)] * 3)
    points = torch.tensor([[[20.0, 20.0], [60.0, 60.0]], [[50.0, 50.0], [20.0, 20.0]], [[31.0, 20.0], [60.0, 60.0]]])
    labels = torch.tensor([[1.0, 0.0]] * 3)
    assert _hit(masks, points, labels).ravel().tolist() == [True, False, True]


def test_an_embedding_learns_without_the_decoder(trainee: Trainee) -> None:
    trainee.zero_grad(set_to_none=True)
    views = [view_of(disc(SIDE, 30, 30, radius)) for radius in (9, 14)]
    embedding_loss(np.random.default_rng(0), trainee, views, "cpu").backward()
    assert trainee.sam.image_encoder.laterals[0].weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in trainee.sam.mask_decoder.parameters())


@pytest.mark.parametrize("damage", [True, False])
def test_a_cascaded_step_learns_through_all_three_passes(trainee: Trainee, damage: bool) -> None:
    trainee.zero_grad(set_to_none=True)
    views = [view_of(disc(SIDE, 30, 30, radius), damage=damage) for radius in (9, 14)]
    loss, ious = decoder_passes(np.random.default_rng(0), trainee, views, (0, 0), "cpu", passes=3, cascaded=True)
    loss.backward()
    assert len(ious) == 3
    assert all(0 <= value <= 1 for value in ious)
    for part in (
        trainee.sam.mask_decoder.iou_prediction_head.layers[0],
        trainee.sam.prompt_encoder.mask_downscaling[0],
    ):
        assert part.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_four_shapes_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    trainee = Trainee(build_sam("mini", trunk_state("efficientnet_lite0")))
    views = [view_of(disc(128, *place)) for place in ((40, 50, 14), (80, 30, 22), (60, 90, 30), (90, 90, 9))]
    rng, optimizer = np.random.default_rng(0), optimiser(trainee, 1e-3)
    found: list[list[float]] = []
    for number in range(120):
        passes = 3 if number >= 80 else 1
        loss, ious = decoder_passes(rng, trainee, views, (0, 0), "cpu", passes=passes, cascaded=False)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        found.append(ious)
    assert np.mean(found[-8:]) > 0.9


def test_a_window_that_is_the_whole_input_changes_nothing() -> None:
    torch.manual_seed(0)
    sam = tiny_sam()
    embedded = torch.randn(2, 32, 4, 4)
    points = torch.rand(2, 3, 2) * 64, torch.ones(2, 3)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0]] * 2)
    with torch.no_grad():
        masks, _ = decode(sam, embedded, points, boxes, None)
        sparse, dense = sam.prompt_encoder(points, boxes, None)
        for row in range(2):
            expected, _ = sam.mask_decoder.predict_masks(
                embedded[row : row + 1],
                sam.prompt_encoder.get_dense_pe(),
                sparse[row : row + 1],
                dense[row : row + 1],
            )
            torch.testing.assert_close(masks[row : row + 1], expected, atol=1e-5, rtol=1e-4)


def test_mask_losses_against_a_direct_count() -> None:
    target = torch.zeros(1, 8, 8)
    target[0, :4] = 1
    logits = torch.full((1, 4, 8, 8), -9.0)
    logits[0, 0, :4] = 9
    logits[0, 1, :2] = 9
    logits[0, 2, 4:] = 9
    losses, iou = mask_losses(logits, target)
    assert iou[0].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert losses[0, 0] < losses[0, 1] < losses[0, 2]


def test_affinity_wants_cells_of_a_target_alike_and_others_not() -> None:
    targets = torch.zeros(1, 1, 32, 32)
    targets[..., 8:16, 8:16] = 1
    apart = torch.zeros(1, 2, 8, 8)
    apart[:, 0] = 1
    apart[0, :, 2:4, 2:4] = torch.tensor([0.0, 1.0])[:, None, None]
    generator = torch.Generator().manual_seed(0)
    right, alike = (affinity_loss(maps, targets, generator).item() for maps in (apart, torch.ones(1, 2, 8, 8)))
    assert right < 0.01
    # One half of the weight is on the 60 cells outside, which are as alike as can be: log(1 + e^6) each.
    assert alike == pytest.approx(0.5 * np.log1p(np.exp(6)) + 0.5 * np.log1p(np.exp(-6)), rel=1e-4)


def test_the_best_mask_has_to_have_the_highest_predicted_iou() -> None:
    target = torch.zeros(1, 8, 8)
    target[0, :4] = 1
    logits = torch.full((1, 4, 8, 8), -9.0)
    logits[0, 1, :2] = 9
    logits[0, 2, :4] = 9
    rising, falling = torch.tensor([[0.5, 0.4, 0.9, 0.1]]), torch.tensor([[0.5, 0.9, 0.4, 0.1]])
    (good, chosen), (bad, other) = (total_loss(logits, predicted, target) for predicted in (rising, falling))
    assert good < bad
    assert (chosen.item(), other.item()) == (1.0, 0.5)


def test_thin_threads_survive_the_coarse_grid() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 10, 5:60] = True
    low = coarse_target(mask, 16)
    assert low.shape == (1, 16, 16)
    assert low[0, 2].sum() >= 12
    assert low.sum() == low[0, 2].sum()


def test_prompts_lie_where_they_claim() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 64, 64), np.bool_)
    masks[:, 20:40, 10:30] = True
    hits = 0
    for _ in range(20):
        points, labels = first_points(rng, masks, 2, 3)
        assert points.shape == (3, 5, 2)
        assert labels.tolist() == [[1, 1, 0, 0, 0]] * 3
        for row in points.round().long():
            hits += sum(bool(masks[0, y, x]) == (index < 2) for index, (x, y) in enumerate(row.tolist()))
    assert hits > 0.9 * 20 * 15
    assert boxes_of(masks, 64)[0].tolist() == [10, 20, 29, 39]
    assert boxes_of(np.zeros((1, 8, 8), np.bool_), 64)[0].tolist() == [0, 0, 63, 63]
    target = torch.from_numpy(masks[:, ::4, ::4]).float()
    missed, kind = correction(rng, torch.full((3, 1, 16, 16), -1.0), target, 64)
    assert kind.tolist() == [[1.0]] * 3
    assert all(masks[0, int(y), int(x)] for x, y in missed[:, 0].tolist())


def test_where_there_is_nothing_to_segment_only_predicted_iou_learns() -> None:
    empty = coarse_target(torch.zeros(1, 64, 64, dtype=torch.bool), 16)
    assert not empty.any()
    logits = torch.randn(1, 4, 16, 16, requires_grad=True)
    predicted = torch.full((1, 4), 0.5, requires_grad=True)
    loss, _ = total_loss(logits, predicted, empty)
    loss.backward()
    assert not logits.grad.any()
    assert (predicted.grad[0, 0] > 0).all()
