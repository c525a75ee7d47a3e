"""CLIP models with an image tower of timm, by command: trained, run and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.backbones.clip.backbone import build_clip, image_tensor, image_tokens, mean_text_feature
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.localisers.patch_text import build_adapter, grid_logits
from cascade.localisers.squares import squared
from cascade.storage.datasets import read_image
from cascade.tasks.ensembles import load_ensemble
from cascade.tasks.execution import networks
from cascade.tasks.localise import LOCALISE
from cascade.tasks.stage import localised_id
from cascade.tasks.tokens import TOKENS
from tests.flows.conftest import Cli, Result, files_of
from tests.tiny import SMALL_TIMM_CLIP

SIDE, LAYERS = 192, (2, 6)
MUTE = {
    **SMALL_TIMM_CLIP,
    "embed_dim": 96,
    "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {**SMALL_TIMM_CLIP["text_cfg"], "hf_tokenizer_name": "someone/words"},
}
"""A tower without class token, and words of a hub: as SigLIP has them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a dataset, and random CLIP models ``towered`` and ``mute``."""
    folder = tmp_path_factory.mktemp("towers")
    shutil.copy(networks.MODELS / "mini_clip.json", folder)
    for name, config in (("towered", SMALL_TIMM_CLIP), ("mute", MUTE)):
        (folder / f"{name}_clip.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
        clip = open_clip.CustomTextCLIP(config["embed_dim"], dict(config["vision_cfg"]), text)
        save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, folder / f"{name}.safetensors")
    generate_dataset(folder / "data", categories=("carpet", "nut"), good=1, defective=2, size=96, seed=3)
    generate_dataset(folder / "other", categories=("wood",), good=1, defective=2, size=96, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MODELS", folder)
        yield folder


def settings(place: Path, backbone: str, *more: str) -> list[str]:
    layers = [] if "localise.method=winclip" in more else [f"localise.layers={list(LAYERS)}"]
    return [
        f"localise.backbone={backbone}",
        f"localise.weights={place / backbone}.safetensors",
        f"localise.image_side={SIDE}",
        *layers,
        "refine.method=none",
        "score.image_score=clip",
        "score.frame=64",
        "runtime.device=cpu",
        *more,
    ]


@pytest.fixture
def command(cli: Cli, place: Path) -> Callable[..., Result]:
    def call(*arguments: str, backbone: str = "towered", more: tuple[str, ...] = ()) -> Result:
        given = [part for each in settings(place, backbone, *more) for part in ("--set", each)]
        return cli(*arguments, "--store", "store", *given)

    return call


def test_april_gan_is_trained_and_run_on_a_tower_of_timm(
    command: Callable[..., Result], place: Path, tmp_path: Path
) -> None:
    """The logits of the run are those of open_clip's model and the trained layers, written out."""
    adapter = tmp_path / "own.safetensors"
    training = ("train", "april_gan", "--experiment", "mini", "--dataset", str(place / "other"), "--out", str(adapter))
    result = command(*training, "--train", "epochs=1")
    assert result.code == 0, result.err
    assert {tuple(each.shape) for each in load_file(adapter).values()} == {(64, 64), (64,)}
    own = ("localise.keep=logits", f"localise.adapter={adapter}")
    result = command("run", "mini", "--dataset", str(place / "data"), "--out", "run", more=own)
    assert result.code == 0, result.err

    chosen = settings(place, "towered", f"dataset.path={place / 'data'}", *own)
    experiment = load_experiment("mini", chosen)
    run = prepare(experiment, Path("store"), Settings(weights=place / "none")).run
    record = run.manifest.records[0]
    clip = build_clip(SMALL_TIMM_CLIP, load_file(place / "towered.safetensors"), SIDE, quick_gelu=False)
    image = image_tensor(squared(read_image(run.image_path(record)), SIDE))[None]
    sentences = load_ensemble(experiment.localise.prompts).sentences(run.words(record))
    texts = torch.stack([mean_text_feature(clip, each) for each in sentences], dim=1)[None]
    with torch.inference_mode():
        expected = grid_logits(build_adapter(load_file(adapter)), image_tokens(clip, image, LAYERS).blocks, texts)
    found = LOCALISE.artefact(run).read(localised_id(run, record)).arrays["logits"]
    np.testing.assert_allclose(found, expected[0], atol=1e-3)
    assert found.std() > 1


def test_uniadet_needs_no_words_and_no_class_token(command: Callable[..., Result], place: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.safetensors"
    uniadet = ("localise.method=uniadet", "localise.activation=gelu")
    training = ("train", "uniadet", "--dataset", str(place / "other"), "--out", str(vectors), "--train", "epochs=1")
    result = command(*training, backbone="mute", more=uniadet[1:])
    assert result.code == 0, result.err
    run = ("run", "mini", "--dataset", str(place / "data"), "--out", "run")
    result = command(*run, backbone="mute", more=(*uniadet, f"localise.adapter={vectors}"))
    assert result.code == 0, result.err


def test_the_tag_of_ones_own_weights_is_part_of_what_is_seen(place: Path) -> None:
    def key(**changes: str) -> str:
        more = [f"localise.{name}={value}" for name, value in changes.items()]
        chosen = settings(place, "towered", f"dataset.path={place / 'data'}", "localise.keep=tokens", *more)
        adapter = f"localise.adapter={place / 'towered.safetensors'}"
        run = prepare(load_experiment("mini", [*chosen, adapter]), place / "store", Settings(weights=place)).run
        return str(TOKENS.key(run).digest)

    assert key(pretrained="openai") == key(pretrained="shipped")
    assert key(pretrained="openai") != key(pretrained="laion2b_s32b_b82k")


REFUSED = [
    ("anomaly_clip", "towered", ["reads the attention", "one of timm's", "ViT-L-14-336"]),
    ("sdp", "towered", ["reads the attention", "one of timm's", "ViT-L-14-336"]),
    ("winclip", "towered", ["winclip goes through the layers", "one of timm's", "ViT-L-14-336"]),
    ("af_clip", "towered", ["af_clip goes through the layers", "one of timm's", "ViT-L-14-336"]),
    ("april_gan", "mute", ["asks CLIP in words", "someone/words", "downloaded", "uniadet", "PE-Core-L-14-336", "mini"]),
]


@pytest.mark.parametrize(("method", "backbone", "parts"), REFUSED)
def test_what_a_method_cannot_read_is_said_in_one_line(
    command: Callable[..., Result], place: Path, tmp_path: Path, method: str, backbone: str, parts: list[str]
) -> None:
    chosen = [f"localise.method={method}", "localise.activation=gelu"]
    if method not in {"winclip", "sdp"}:
        chosen.append("localise.adapter=x")
    line = refused(command, place, tmp_path, backbone, *chosen)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("localise.activation=quickgelu", ["set localise.activation=gelu"]),
        ("localise.layers=[7]", ["towered has blocks 1 to 6"]),
        ("localise.image_side=200", ["patch side of towered, 16", "192 or 208"]),
    ],
)
def test_options_that_do_not_fit_the_tower_are_refused(
    command: Callable[..., Result], place: Path, tmp_path: Path, change: str, parts: list[str]
) -> None:
    line = refused(command, place, tmp_path, "towered", change)
    assert all(part in line for part in parts), line


def refused(command: Callable[..., Result], place: Path, tmp_path: Path, backbone: str, *more: str) -> str:
    adapter = tmp_path / "any.safetensors"
    save_file({"fc.0.weight": torch.zeros(64, 64), "fc.0.bias": torch.zeros(64)}, adapter)
    chosen = tuple(each.replace("adapter=x", f"adapter={adapter}") for each in more)
    if not any("method" in each for each in more):
        chosen = (*chosen, f"localise.adapter={adapter}")
    result = command("run", "mini", "--dataset", str(place / "data"), "--out", "run", backbone=backbone, more=chosen)
    assert result.code == 2, result
    assert not Path("store").exists() or not files_of(Path("store"))
    return result.refusal()
