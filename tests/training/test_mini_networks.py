from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import PatchEmbed
from torch.nn import functional as F

from cascade.backbones.clip.backbone import build_clip, image_tokens, mean_text_feature
from cascade.backbones.clip.mini import SHARES, TOLD, MiniClip, seen_levels
from cascade.backbones.features.efficientnet import CHANNELS, Trunk
from cascade.backbones.sam.build import SAM_MODELS, build_sam
from cascade.configs.loader import load_experiment
from cascade.storage.errors import ConfigError, WeightsError
from cascade.storage.weights import locate
from cascade.synthesis.scene import generate_scene
from cascade.tasks.execution.networks import trunk_state
from cascade.tasks.training.cascade_prompts import DrawnMap, MapDrawer, draw_options, ppg_points
from cascade.tasks.training.clip_examples import example_stream, make_examples
from cascade.tasks.training.clip_objective import dense_loss, image_loss, state_gap_loss
from cascade.tasks.training.initialisation import compare_with_neighbours, wave_positions, whiten_patches
from cascade.tasks.training.mini_clip import CONFIG, pretrain_clip
from cascade.tasks.training.mini_sam import TARGETS, _drawn, decoder_passes, pretrain_sam
from cascade.tasks.training.photographs import load_pictures
from cascade.tasks.training.sam_examples import Example, _one_of, augment, make_example, make_mixed
from cascade.tasks.training.sam_objective import (
    Trainee,
    affinity_loss,
    attend_by_position,
    coarse_target,
    decode,
    mask_losses,
    total_loss,
)
from cascade.tasks.training.scene_pool import VALIDATION_SEEDS, ScenePool, training_seed
from cascade.tasks.training.simulated_prompts import boxes_of, correction, first_points

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "trunk": "efficientnet_lite0",
        "image_size": 64,
        "patch_size": 8,
        "neck": 16,
        "width": 16,
        "layers": 2,
        "queries": 2,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_sam() -> Sam:
    dim = 32
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, out_chans=dim, use_rel_pos=True,
            window_size=2, global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(dim, (4, 4), (64, 64), 4),
        mask_decoder=MaskDecoder(
            transformer_dim=dim, transformer=TwoWayTransformer(2, dim, 2, 32), iou_head_hidden_dim=16
        ),
    )  # fmt: skip


def steps(out: Path) -> list[int]:
    with (out / "log.csv").open() as file:
        return [int(float(row["step"])) for row in csv.DictReader(file)]


def test_clip_training_resumes_and_exports(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"batch": 4, "config": TINY_CLIP, "images": 10, "validation_images": 12}
    pretrain_clip(tmp_path, minutes=5, max_steps=2, **arguments)
    facts = pretrain_clip(tmp_path, minutes=5, max_steps=1, **arguments)
    assert facts["steps"] == 3
    assert facts["images"] == 12
    assert steps(tmp_path) == [2, 2, 3, 3]  # the last row of a session has the metrics
    assert facts["first_scene_seed"] not in VALIDATION_SEEDS
    weights = load_file(tmp_path / "mini_clip.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    MiniClip(TINY_CLIP, Trunk()).load_state_dict(weights, strict=True)
    layers = load_file(tmp_path / "april_gan_mini.safetensors")
    assert sorted(layers) == sorted(f"fc.{i}.{kind}" for i in range(2) for kind in ("weight", "bias"))
    assert layers["fc.0.weight"].shape == (16, 16)
    with safe_open(tmp_path / "mini_clip.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "3"
    with pytest.raises(ConfigError, match="examples of another recipe; use another folder"):
        pretrain_clip(tmp_path, minutes=0, **arguments | {"images": 11})


def test_sam_training_resumes_and_exports(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"minutes": 5, "batch": 2, "validation_scenes": 2}
    pretrain_sam(tmp_path, max_steps=2, network=tiny_sam(), **arguments)
    facts = pretrain_sam(tmp_path, max_steps=1, network=tiny_sam(), **arguments)
    assert facts["steps"] == 3
    assert steps(tmp_path) == [2, 3]
    assert all(0 <= facts[f"val_iou_{level}"] <= 1 for level in (1, 2, 3))
    tiny_sam().load_state_dict(load_file(tmp_path / "mini_sam.safetensors"), strict=True)
    with pytest.raises(ValueError, match="made with seed 0, not 1"):
        pretrain_sam(tmp_path, max_steps=1, seed=1, network=tiny_sam(), **arguments)


def test_sam_training_can_start_from_trained_weights(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = tiny_sam().state_dict()
    save_file(given, tmp_path / "given.safetensors")
    start = locate(str(tmp_path / "given.safetensors"), folder=tmp_path)
    facts = pretrain_sam(tmp_path, minutes=0, batch=2, network=tiny_sam(), start=start, validation_scenes=1)
    assert (facts["steps"], facts["start_sha256"]) == (0, start.sha256)
    trained = load_file(tmp_path / "mini_sam.safetensors")
    assert all(torch.equal(trained[name], tensor.half()) for name, tensor in given.items() if tensor.ndim)

    resumed = pretrain_sam(tmp_path, minutes=0, batch=2, network=tiny_sam(), validation_scenes=1)
    assert resumed["start_sha256"] == start.sha256
    save_file({name: tensor + 1 for name, tensor in given.items()}, tmp_path / "other.safetensors")
    other = locate(str(tmp_path / "other.safetensors"), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"did not start from .*other\.safetensors; use another folder"):
        pretrain_sam(tmp_path, minutes=0, batch=2, network=tiny_sam(), start=other, validation_scenes=1)


def test_sam_training_cannot_start_from_another_network(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "layers.safetensors")
    start = locate(str(tmp_path / "layers.safetensors"), folder=tmp_path)
    with pytest.raises(WeightsError, match="does not fit the mini SAM"):
        pretrain_sam(tmp_path, minutes=0, network=tiny_sam(), start=start)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        pretrain_sam(tmp_path / "out", minutes=1, device="cuda")
    assert not (tmp_path / "out").exists()


def test_zero_minutes_trains_nothing(tmp_path: Path) -> None:
    facts = pretrain_clip(tmp_path, minutes=0, config=TINY_CLIP, images=2, validation_images=12)
    assert facts["steps"] == 0


def test_mini_sam_runs_at_512_and_the_registry_sizes_match() -> None:
    sam = build_sam("mini")
    assert isinstance(sam.image_encoder.patch_embed, PatchEmbed)
    with torch.no_grad():
        embedding = sam.image_encoder(torch.zeros(1, 3, 512, 512))
        points = torch.tensor([[[100.0, 50.0]]]), torch.ones(1, 1)
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        low, iou = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    assert embedding.shape == (1, 128, 32, 32)
    assert low.shape == (1, 3, 128, 128)
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


def test_batched_decoder_equals_the_official_one_image_at_a_time() -> None:
    torch.manual_seed(0)
    sam = tiny_sam().eval()
    attend_by_position(sam)
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


def test_a_cell_is_told_how_unlike_the_rest_of_its_image_it_is() -> None:
    """Against loops in NumPy: cosines of deviations to the coarse cells that do not touch, and distance to the mean."""
    torch.manual_seed(0)
    level = torch.randn(1, CHANNELS[1], 64, 64)
    trunk = cast(Trunk, lambda _: [torch.rand(1, CHANNELS[0], 128, 128), level])
    seen = seen_levels(trunk, torch.zeros(1))[1][0].double().numpy()
    assert len(seen) == CHANNELS[1] + TOLD
    unit, told = seen[: CHANNELS[1]], seen[CHANNELS[1] :]
    np.testing.assert_allclose(np.linalg.norm(unit, axis=0), 1, atol=1e-6)
    mean = unit.mean(axis=(1, 2))
    deviation = unit - mean[:, None, None]
    coarse = deviation.reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4))
    for row, column in ((0, 0), (30, 41), (63, 7)):
        cell = deviation[:, row, column]
        far = [
            cell @ coarse[:, r, c] / (np.linalg.norm(cell) * np.linalg.norm(coarse[:, r, c]))
            for r in range(16)
            for c in range(16)
            if max(abs(r - row // 4), abs(c - column // 4)) > 1
        ]
        nearest = np.sort(far)[::-1]
        means = [nearest[: max(1, int(share * 256))].mean() for share in SHARES]
        distance = 1 - unit[:, row, column] @ mean / np.linalg.norm(mean)
        np.testing.assert_allclose(told[:, row, column], [3 * distance, *(2 * np.array(means) - 0.5)], atol=1e-5)


def test_tokens_depend_on_their_own_cell_alone_once_it_is_seen() -> None:
    torch.manual_seed(0)
    tower = MiniClip(TINY_CLIP, Trunk()).eval().visual
    levels = [torch.randn(1, channels + TOLD, 8, 8) for channels in CHANNELS]
    turned = [level.flip(-1) for level in levels]
    with torch.no_grad():
        after, pooled = tower(levels)
        mirrored, same = tower(turned)
    for own, other in zip(after, mirrored, strict=True):
        torch.testing.assert_close(own.view(1, 8, 8, -1).flip(2), other.view(1, 8, 8, -1))
    torch.testing.assert_close(pooled, same)


def test_an_image_has_the_tokens_that_training_saw() -> None:
    torch.manual_seed(0)
    clip = MiniClip(TINY_CLIP, Trunk()).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        after, pooled = clip.visual(seen_levels(clip.trunk, 2 * pixels - 1))
    tokens = image_tokens(clip, (pixels - clip.mean) / clip.std, [1, 2])
    for own, seen in zip(tokens.blocks, after, strict=True):
        torch.testing.assert_close(own[:, 1:], seen, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.pooled, pooled, atol=1e-4, rtol=1e-4)


def test_words_choose() -> None:
    """Sentences of the two states, about things that no training knew, lie apart and on their own side."""
    config, weights = json.loads(CONFIG.read_text()), locate("mini_clip", folder=Path())
    clip = build_clip(
        config, load_file(weights.path), 64, quick_gelu=False, trunk=trunk_state(config["vision_cfg"]["trunk"])
    )
    normal, flawless, broken, scratched = (
        mean_text_feature(clip, [sentence])
        for sentence in (
            "a photo of a zebra",
            "a flawless brake disc",
            "a broken brake disc",
            "a photo of a damaged zebra",
        )
    )
    assert min(normal @ flawless, broken @ scratched) > max(normal @ broken, flawless @ scratched)


def test_a_window_is_a_part_of_the_input_with_its_own_positions() -> None:
    torch.manual_seed(0)
    trainee = Trainee(tiny_sam().eval())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = trainee.embed(images, (0, 0))
        torch.testing.assert_close(whole, trainee.sam.image_encoder(images))
        points = torch.tensor([[[40.0, 24.0]]]), torch.ones(1, 1)
        window = (points[0] - 16.0 * torch.tensor([1.0, 1.0]), points[1])
        here, _ = decode(trainee.sam, whole, points, None, None)
        cut = whole[..., 1:3, 1:3]
        moved, _ = decode(trainee.sam, cut, window, None, None, (1, 1))
        elsewhere, _ = decode(trainee.sam, cut, window, None, None, (0, 0))
    assert here.shape[-1] == 16
    assert moved.shape[-1] == 8
    assert not torch.allclose(moved, elsewhere)


def test_a_window_that_is_the_whole_input_changes_nothing() -> None:
    torch.manual_seed(0)
    trainee = Trainee(tiny_sam().eval())
    embedded = torch.randn(2, 32, 4, 4)
    points = torch.rand(2, 3, 2) * 64, torch.ones(2, 3)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0]] * 2)
    with torch.no_grad():
        masks, _ = decode(trainee.sam, embedded, points, boxes, None)
        sparse, dense = trainee.sam.prompt_encoder(points, boxes, None)
        for row in range(2):
            expected, _ = trainee.sam.mask_decoder.predict_masks(
                embedded[row : row + 1],
                trainee.sam.prompt_encoder.get_dense_pe(),
                sparse[row : row + 1],
                dense[row : row + 1],
            )
            torch.testing.assert_close(masks[row : row + 1], expected, atol=1e-5, rtol=1e-4)


def test_held_out_pictures_are_never_trained_on() -> None:
    trained, held_out = (load_pictures(None, held_out) for held_out in (False, True))
    assert trained
    assert held_out
    assert not any(np.array_equal(one, other) for one in trained for other in held_out)


def test_pictures_of_a_folder_join_those_of_the_packages(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (210, 220, 3), np.uint8)
    for name in ("wall/red.png", "wall/red_nm.png", "small.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise[:100] if name == "small.png" else noise).save(tmp_path / name)
    (added,) = [
        picture
        for held_out in (False, True)
        for picture in load_pictures(tmp_path, held_out)
        if picture.shape == noise.shape
    ]
    assert np.array_equal(added, noise)


def test_an_intact_example_shows_what_the_damaged_one_shows() -> None:
    pairs = [make_examples(seed, 64, None, held_out=False) for seed in range(1, 15, 2)]
    assert all(not intact.mask.any() for _, intact in pairs)
    assert sum(bool(damaged.mask.any()) for damaged, _ in pairs) > len(pairs) / 2
    alike = [np.corrcoef(damaged.image.ravel(), intact.image.ravel())[0, 1] for damaged, intact in pairs]
    assert np.median(alike) > 0.5


def test_a_stream_goes_on_where_it_was_left() -> None:
    with closing(example_stream(40, 64, None)) as stream:
        whole = list(itertools.islice(stream, 5))
    with closing(example_stream(40, 64, None, skip=3)) as stream:
        rest = list(itertools.islice(stream, 2))
    assert all(np.array_equal(own.image, other.image) for own, other in zip(rest, whole[3:], strict=True))


def test_an_image_is_damaged_if_any_of_it_is() -> None:
    states = torch.eye(2)[None].expand(2, -1, -1)
    mask = torch.zeros(2, 4, 4)
    mask[1, 0, 0] = 1
    right, wrong = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert image_loss(right, states, mask) < 0.01 < image_loss(wrong, states, mask)


def test_dense_loss_counts_cells_as_if_drawn() -> None:
    """Against a sum over cells: 260 of all, at most 160 of the damaged, each of which weighs three times."""
    torch.manual_seed(0)
    margin, share = torch.randn(2, 16, 16), torch.zeros(2, 16, 16)
    share[0, 4:8, 4:8] = 1
    share[0, 0, 0] = 0.4
    share[1] = 1
    total, weights = 0.0, 0.0
    for image in range(2):
        damaged = share[image] > 0.4
        count = int(damaged.sum())
        for own, hit in zip(margin[image].flatten(), damaged.flatten(), strict=True):
            weight = 260 / 256 + (min(count, 160) / count if hit else 0)
            chance = torch.sigmoid(own).item()
            total += weight * (-3 * np.log(chance) if hit else -np.log(1 - chance))
            weights += weight
    assert dense_loss(margin, share).item() == pytest.approx(total / weights, rel=1e-5)


def test_state_gap_vanishes_once_the_states_differ() -> None:
    apart = torch.tensor([[[1.0, 0.0], [0.9, np.sqrt(1 - 0.81)]]])
    assert state_gap_loss(apart.float()).item() == 0
    assert state_gap_loss(torch.ones(1, 2, 1)).item() == pytest.approx(1)


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


@pytest.mark.parametrize("side", [48, 96])
def test_sam_targets_stay_aligned_with_the_image(side: int) -> None:
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-30:66, -50:46]) < 20
    picture = np.full((96, 96, 3), 60, np.uint8)
    picture[disc] = 200
    example = Example(picture, np.packbits(disc.ravel())[None], 1, 1, "bean")
    for _ in range(20):
        view = augment(rng, example, 3, side)
        assert view.image.shape == (side, side, 3)
        assert view.targets.shape == (3, side, side)
        assert (view.damage == view.targets[0]).all()
        bright = view.image.max(axis=2) > 130
        assert ((bright ^ view.damage).sum()) <= 0.1 * view.damage.sum()


def test_a_mask_of_four_times_the_area_is_asked_for_twice_as_often() -> None:
    large, small = np.zeros((2, 64, 64), np.bool_)
    large[4:44, 4:44] = True
    small[44:64, 44:64] = True
    rng = np.random.default_rng(0)
    drawn = [_one_of(rng, [small, large]) is large for _ in range(2000)]
    assert abs(np.mean(drawn) - 2 / 3) < 0.03


def test_half_of_the_examples_are_patchworks_and_clip_sees_none_of_them() -> None:
    examples = [make_mixed(seed, 64) for seed in range(40, 46)]
    assert [bool(example.category) for example in examples] == [True, False] * 3
    for example in examples[1::2]:
        assert 0 < example.defects <= example.count
        assert all(example.mask(index).any() for index in range(example.count))

    class Pool:
        def draw(self, rng: np.random.Generator, count: int) -> list[Example]:
            return [examples[int(index)] for index in rng.integers(len(examples), size=count)]

    rng = np.random.default_rng(0)
    assert all(example.category for example in _drawn(Pool(), rng, 50, scenes=True))
    assert not all(example.category for example in _drawn(Pool(), rng, 50, scenes=False))


def test_ppg_points_lie_on_the_map_and_beside_it() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((512, 512), np.float32)
    values[100:140, 200:260] = 0.9
    maps = [DrawnMap(values, values)] * 2
    for _ in range(10):
        options = draw_options(rng)
        points, labels = ppg_points(rng, maps, torch.randn(2, 8, 32, 32), options)
        assert points.shape == (2, options.positives + options.negatives, 2)
        assert labels.sum(dim=1).tolist() == [options.positives] * 2
        inside = torch.from_numpy(values)[points[..., 1].long(), points[..., 0].long()] > 0
        assert (inside == (labels > 0)).all()


def test_a_map_without_a_ring_repeats_its_positive_points() -> None:
    rng = np.random.default_rng(0)
    full = DrawnMap(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))
    options = draw_options(rng)
    points, labels = ppg_points(rng, [full], torch.randn(1, 8, 4, 4), options)
    assert points.shape == (1, options.positives + options.negatives, 2)
    assert labels.all()


def test_the_small_clip_draws_one_map_for_each_repeat_with_noise_of_its_own() -> None:
    scene = generate_scene(5, 256, "metal plate", True)
    drawer = MapDrawer("cpu")
    maps = drawer(np.random.default_rng(0), np.stack([scene.image] * 2), ["metal plate", "bolt"], 3)
    assert len(maps) == 6
    assert all(own.values.shape == (256, 256) and 0 <= own.values.min() <= own.values.max() <= 1 for own in maps)
    assert not np.array_equal(maps[0].values, maps[1].values)


def test_a_cascaded_step_trains_with_the_damage_of_each_view() -> None:
    rng = np.random.default_rng(0)
    views = [augment(rng, make_example(seed, 64), TARGETS, 64) for seed in (3, 4)]
    trainee = Trainee(tiny_sam())
    loss, ious = decoder_passes(rng, trainee, views, (0, 0), MapDrawer("cpu"), "cpu")
    loss.backward()
    assert np.isfinite(loss.item())
    assert all(0 <= value <= 1 for value in ious)
    assert trainee.sam.mask_decoder.iou_prediction_head.layers[0].weight.grad.abs().sum() > 0


def test_where_there_is_nothing_to_segment_only_predicted_iou_learns() -> None:
    empty = coarse_target(torch.zeros(1, 64, 64, dtype=torch.bool), 16)
    assert not empty.any()
    logits = torch.randn(1, 4, 16, 16, requires_grad=True)
    predicted = torch.full((1, 4), 0.5, requires_grad=True)
    loss, _ = total_loss(logits, predicted, empty)
    loss.backward()
    assert not logits.grad.any()
    assert (predicted.grad[0, 0] > 0).all()


def test_pool_is_a_function_of_its_seeds() -> None:
    def drawn(workers: int) -> list[int]:
        rng = np.random.default_rng(1)
        with ScenePool(abs, 100, reuse=2, capacity=8, warm=4, workers=workers) as pool:
            picks = [value for _ in range(10) for value in pool.draw(rng, 4)]
            assert 120 <= pool.next_seed <= 124
        return picks

    first = drawn(1)
    assert first == drawn(1) == drawn(3)
    assert min(first) >= 100
    assert max(first) < 124
    assert training_seed(0) != training_seed(1)
    assert training_seed(0) not in VALIDATION_SEEDS


_KILLED = """
import os, signal
import numpy as np
from cascade.tasks.training.scene_pool import ScenePool
def picture(seed):
    return np.zeros(300_000, np.uint8)
if __name__ == "__main__":
    with ScenePool(picture, 0, reuse=1, capacity=4, warm=4) as pool:
        pool.draw(np.random.default_rng(0), 1)
        print(pool._processes[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_generator_ends_when_its_training_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 30
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_patch_waves_are_orthogonal_and_the_flat_one_comes_first() -> None:
    projection = torch.nn.Conv2d(3, 48, 16, 16, bias=False)
    whiten_patches(projection)
    rows = F.normalize(projection.weight.detach().double().flatten(1), dim=1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(48, dtype=torch.float64), atol=1e-5, rtol=0)
    flat = projection(torch.ones(1, 3, 16, 16)).flatten().detach()
    assert flat[0] > 1
    assert flat[1:].abs().max() < 1e-4


def test_nearer_positions_are_more_alike() -> None:
    positions = F.normalize(wave_positions(8, 6, 32), dim=1).reshape(8, 6, 32)
    alike = (positions[3, 2] * positions).sum(dim=2)
    assert positions.shape == (8, 6, 32)
    assert alike[3, 2] > alike[3, 3] > alike[3, 5]
    assert alike[3, 2] > alike[4, 2] > alike[7, 2]


def test_attention_starts_by_subtracting_look_alikes() -> None:
    joint, output = torch.empty(24, 8), torch.nn.Linear(8, 8)
    compare_with_neighbours(joint, output)
    query, key, value = joint.chunk(3)
    assert torch.equal(query, key)
    torch.testing.assert_close(output.weight.detach() @ value, -0.4 * torch.eye(8), atol=1e-5, rtol=0)


def test_the_preset_reads_the_blocks_and_the_side_that_were_trained() -> None:
    preset, vision = load_experiment("mini").localise, json.loads(CONFIG.read_text())["vision_cfg"]
    assert (preset.layers, preset.sides) == (tuple(range(1, vision["layers"] + 1)), (vision["image_size"],))
