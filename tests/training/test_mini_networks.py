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
from safetensors.torch import load_file

from cascade.backbones.clip.backbone import build_clip, image_tokens, mean_text_feature
from cascade.backbones.clip.mini import SHARES, TOLD, MiniClip, seen_levels
from cascade.backbones.features.efficientnet import CHANNELS, Trunk
from cascade.configs.loader import load_experiment
from cascade.storage.errors import ConfigError
from cascade.storage.weights import locate
from cascade.tasks.execution.networks import trunk_state
from cascade.tasks.training.clip_examples import example_stream, make_examples
from cascade.tasks.training.clip_objective import dense_loss, image_loss, state_gap_loss
from cascade.tasks.training.mini_clip import CONFIG, pretrain_clip
from cascade.tasks.training.photographs import load_pictures
from cascade.tasks.training.scene_pool import VALIDATION_SEEDS, ScenePool, training_seed

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


def test_zero_minutes_trains_nothing(tmp_path: Path) -> None:
    facts = pretrain_clip(tmp_path, minutes=0, config=TINY_CLIP, images=2, validation_images=12)
    assert facts["steps"] == 0


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


def test_the_preset_reads_the_blocks_and_the_side_that_were_trained() -> None:
    preset, vision = load_experiment("mini").localise, json.loads(CONFIG.read_text())["vision_cfg"]
    assert (preset.layers, preset.sides) == (tuple(range(1, vision["layers"] + 1)), (vision["image_size"],))
