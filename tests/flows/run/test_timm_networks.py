"""Networks of timm as features, by command, with weights in a file: against what timm itself gives, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch.nn import functional
from torchvision.transforms import functional as vision

from cascade.backbones.clip.backbone import build_clip, image_tokens
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.tasks.tokens import TOKENS
from tests.flows.conftest import Cli, Result

SIDE = 256
PYRAMID, TRANSFORMER = "test_resnet", "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm") / "data"
    generate_dataset(folder, categories=("carpet",), good=5, defective=4, size=96, seed=5)
    return folder


def random_network(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(4)
    network: torch.nn.Module = timm.create_model(name, pretrained=False, **options)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value), alpha=0.02)  # some begin as zeros or ones
    return network.eval()


def save(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    state = {name: value.contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    return path


def settings_of(backbone: str, weights: Path | None, *more: str) -> list[str]:
    own = [f"localise.weights={weights}"] if weights else []
    return [
        "refine.method=none",
        "score.frame=64",
        "runtime.device=cpu",
        f"localise.image_side={SIDE}",
        f"localise.backbone={backbone}",
        "localise.method=mutual",
        *own,
        *more,
    ]


@pytest.fixture
def command(cli: Cli, data: Path, tmp_path: Path) -> Callable[[list[str]], Result]:
    def call(settings: list[str]) -> Result:
        chosen = [part for each in settings for part in ("--set", each)]
        return cli("run", "mini_batch", "--dataset", data, "--store", tmp_path / "store", "--out", "out", *chosen)

    return call


@pytest.mark.parametrize(
    ("backbone", "file", "levels", "chosen"),
    [
        (PYRAMID, "weights.safetensors", "localise.strides=[8,32]", {"level_8": 2, "level_32": 4}),
        (PYRAMID, "weights.pth", "localise.layers=[2,4]", {"layer_2": 1, "layer_4": 3}),
        (TRANSFORMER, "weights.pth", "localise.layers=[3,6,12]", {"layer_3": 2, "layer_6": 5, "layer_12": 11}),
        (TRANSFORMER, "weights.safetensors", "localise.strides=[16]", {"level_16": 11}),
    ],
)
def test_what_is_seen_is_what_timm_gives(
    command: Callable[[list[str]], Result],
    data: Path,
    tmp_path: Path,
    backbone: str,
    file: str,
    levels: str,
    chosen: Mapping[str, int],
) -> None:
    network = random_network(backbone, **({"dynamic_img_size": True} if backbone == TRANSFORMER else {}))
    settings = settings_of(backbone, save(network.state_dict(), tmp_path / file), levels)
    result = command(settings)
    assert result.code == 0, result.err
    assert pd.read_csv(tmp_path / "out" / "results.csv")["pixel_auroc"].between(0, 1).all()

    told = resolve_model_data_config(network)
    experiment = load_experiment("mini_batch", [f"dataset.path={data}", *settings])
    run = prepare(experiment, tmp_path / "store", Settings(weights=tmp_path)).run
    for record in list(run.manifest)[::4]:
        stored = TOKENS.artefact(run).read(record.image_id).arrays
        assert stored.keys() == chosen.keys()
        photograph = Image.open(data / record.path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image = vision.normalize(vision.to_tensor(photograph), list(told["mean"]), list(told["std"]))
        with torch.inference_mode():
            given = network.forward_intermediates(image[None], intermediates_only=True)  # type: ignore[operator]
        grid = min(given[index].shape[-1] for index in chosen.values())
        for name, index in chosen.items():
            normed = functional.layer_norm(given[index], given[index].shape[1:])
            expected = functional.adaptive_avg_pool2d(normed, grid)[0]
            torch.testing.assert_close(torch.from_numpy(stored[name]).float(), expected, atol=5e-3, rtol=5e-3)


def test_registers_are_no_cells_and_rotary_positions_take_any_side() -> None:
    from cascade.backbones.features.timm_network import TimmNetwork

    name, side = "vit_small_patch16_dinov3", 96
    network = random_network(name, num_classes=0)
    ours = TimmNetwork(name, network.state_dict(), side)
    assert ours.strides == (16,) * 12
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    told = resolve_model_data_config(network)
    normalised = vision.normalize((image + 1) / 2, list(told["mean"]), list(told["std"]))
    with torch.inference_mode():
        found, prefixed = ours(image, [11, 2]), []
        for block in (11, 2):
            (cells, prefix), *_ = network.forward_intermediates(  # type: ignore[operator]
                normalised, indices=[block], return_prefix_tokens=True, intermediates_only=True
            )
            prefixed.append(prefix)
            torch.testing.assert_close(found[0 if block == 11 else 1], cells, atol=1e-4, rtol=1e-4)
    assert [tuple(each.shape) for each in prefixed] == [(1, 5, 384)] * 2
    assert found[0].shape == (1, 384, 6, 6)


def test_a_clip_of_open_clip_is_read_and_its_blocks_are_those_of_its_tower() -> None:
    from cascade.backbones.features.timm_network import TimmNetwork

    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 224, "layers": 10, "width": 256, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1},
    }
    side = 224
    torch.manual_seed(4)
    state = open_clip.CLIP(**config).state_dict()
    clip = build_clip(config, state, side, quick_gelu=False)
    ours = TimmNetwork("vit_xsmall_patch16_clip_224", state, side)
    image = torch.rand(1, 3, side, side) * 2 - 1
    normalised = ((image + 1) / 2 - ours.mean) / ours.std
    with torch.inference_mode():
        tokens = image_tokens(clip, normalised, (3, 10)).blocks
        for found, block in zip(ours(image, [2, 9]), tokens, strict=True):
            expected = block[:, 1:].transpose(1, 2).reshape(found.shape)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_file_as_the_authors_of_dinov2_name_it_is_read(
    command: Callable[[list[str]], Result], tmp_path: Path
) -> None:
    network = random_network("test_vit", num_classes=0)
    state = {name: value for name, value in network.state_dict().items()} | {"mask_token": torch.zeros(1, 64)}
    state["pos_embed"] = state["pos_embed"].half()
    result = command(settings_of("test_vit", save(state, tmp_path / "dino.pth"), "localise.layers=[6]"))
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("backbone", "more", "said"),
    [
        ("vit_tiny_patch16", [], ["timm has no network 'vit_tiny_patch16'", "vit_tiny_patch16_224"]),
        ("hf-hub:timm/test_vit", [], ["timm has no network 'hf-hub:timm/test_vit'"]),
        ("test_vit.none", ["localise.weights=x.pth"], ["localise.backbone", "test_vit"]),
        ("test_vit", [], ["'test_vit' of timm has no weights here", "localise.weights=PATH"]),
        ("test_vit", ["localise.weights={other}", "localise.layers=[6]"], ["{other}: does not fit 'test_vit' of timm"]),
        (
            "test_vit",
            ["localise.weights={own}"],
            ["localise.strides [8, 16]", "strides 16;", "localise.layers (1 to 6)"],
        ),
        ("test_vit", ["localise.weights={own}", "localise.layers=[3,7]"], ["has levels 1 to 6"]),
        ("test_vit", ["localise.weights={own}", "localise.layers=[3,1]"], ["name the blocks in ascending order"]),
        ("test_vit", ["localise.weights={own}", "localise.image_side=100"], ["multiple", "16; for example 96 or 112"]),
        (
            "mixer_s32_224",
            ["localise.weights={own}", "localise.strides=[32]"],
            ["localise.image_side 256: 'mixer_s32_224' of timm looks at 3 x 224 x 224 alone"],
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    command: Callable[[list[str]], Result], tmp_path: Path, backbone: str, more: list[str], said: list[str]
) -> None:
    files = {
        "own": save(random_network("test_vit").state_dict(), tmp_path / "own.pth"),
        "other": save(random_network("test_vit3").state_dict(), tmp_path / "other.pth"),
    }
    save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    line = command(settings_of(backbone, None, *(each.format(**files) for each in more))).refusal()
    for part in said:
        assert part.format(**files) in line
    assert not (tmp_path / "store").exists()


def test_a_network_without_levels_is_refused(
    command: Callable[[list[str]], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save(random_network("resnet10t").state_dict(), tmp_path / "own.pth")
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    line = command(settings_of("resnet10t", weights)).refusal()
    assert "'resnet10t' of timm does not give what its blocks put out; use another network" in line
