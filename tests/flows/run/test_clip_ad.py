"""CLIP-AD through the command line, on a small vision transformer with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from cascade import Segmenter
from cascade.configs.loader import load_experiment
from cascade.configs.localisers import ClipAd, ClipBlocks
from cascade.flows.generate import generate_dataset
from cascade.localisers import make_localiser
from cascade.localisers.patch_text import LinearAdapter
from cascade.localisers.protocol import Trainable
from cascade.storage.weights import LocatedWeights, file_sha256
from cascade.tasks.execution import networks
from tests.flows.conftest import Cli
from tests.flows.run.test_learned import pictures
from tests.tiny import SMALL_CLIP

SIDE = 128
"""Of the images that are learnt by heart."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four images, and a CLIP called ``small``."""
    folder = tmp_path_factory.mktemp("clip_ad")
    generate_dataset(folder / "data", categories=("carpet", "tile"), good=1, defective=1, size=96, seed=5)
    torch.manual_seed(3)
    clip = open_clip.CLIP(SMALL_CLIP["embed_dim"], SMALL_CLIP["vision_cfg"], SMALL_CLIP["text_cfg"])
    save_file(clip.state_dict(), folder / "clip.safetensors")
    (folder / "small_clip.json").write_text(json.dumps(SMALL_CLIP))
    shutil.copy(networks.MODELS / "mini_clip.json", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MODELS", folder)
        yield folder


def values(folder: Path, *more: str) -> tuple[str, ...]:
    return (
        "localise.backbone=small",
        f"localise.weights={folder / 'clip.safetensors'}",
        "localise.image_side=96",
        "localise.layers=[2,4,6,8]",
        "localise.representative=mean",
        "score.frame=64",
        "runtime.device=cpu",
        *more,
    )


def settings(chosen: tuple[str, ...]) -> list[str]:
    return [part for each in chosen for part in ("--set", each)]


def images(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "images.parquet").set_index("path")


def test_every_option_decides(cli: Cli, folder: Path, tmp_path: Path) -> None:
    common = ["run", "sdp", "--dataset", folder / "data", "--store", tmp_path / "store"]
    done = cli(*common, *settings(values(folder)), "--out", "one")
    assert done.code == 0, done.err
    one = images(tmp_path / "one")
    results = pd.read_csv(tmp_path / "one" / "results.csv")
    assert set(results["localiser"]) == {"sdp"}
    assert set(results["step"]) == {"map"}
    assert np.allclose(one["image_score"], (one["clip_score"] + one["max_score"]) / 2, atol=1e-4)

    dbscan = ("localise.representative=dbscan", "localise.dbscan_eps=2.0")
    changes = {
        "representative": ("localise.representative=pca",),
        "aliased": ("localise.aliased=false",),
        "sigma": ("localise.sigma=2.0",),
        "layers": ("localise.layers=[3,8]",),
    }
    assert set(ClipAd.model_fields) - set(ClipBlocks.model_fields) <= {*changes, "dbscan_eps", "dbscan_min_samples"}
    for name, change in changes.items():
        other = cli(*common, *settings(values(folder, *change)), "--out", name)
        assert other.code == 0, other.err
        assert not np.allclose(images(tmp_path / name)["max_score"], one["max_score"], atol=2e-4), name
    for name, change in {"whole": dbscan, "bf16": ("localise.precision=bf16",)}.items():
        alike = cli(*common, *settings(values(folder, *change)), "--out", name)  # 2 apart are any two unit vectors
        assert alike.code == 0, alike.err
        assert np.allclose(images(tmp_path / name)["max_score"], one["max_score"], atol=0.05), name


def test_the_tokens_that_are_kept_need_no_second_look(cli: Cli, folder: Path, tmp_path: Path) -> None:
    common = ["run", "sdp", "--dataset", folder / "data", "--store", tmp_path / "store"]
    assert cli(*common, *settings(values(folder)), "--out", "looked").code == 0
    assert cli(*common, *settings(values(folder, "localise.keep=tokens")), "--out", "kept").code == 0
    looked, kept = (images(tmp_path / name) for name in ("looked", "kept"))
    assert np.allclose(looked["max_score"], kept["max_score"], atol=5e-3)
    other = ("localise.keep=tokens", "localise.representative=kde")
    assert cli(*common, *settings(values(folder, *other)), "--out", "again").code == 0
    stages = json.loads((tmp_path / "again" / "run.json").read_text())["stages"]
    assert {stage["stage"]: stage["computed"] for stage in stages}["tokens"] == 0


def test_a_segmenter_has_the_numbers_of_a_run(cli: Cli, folder: Path, tmp_path: Path) -> None:
    run = ["run", "sdp", "--dataset", folder / "data", "--store", tmp_path / "store", *settings(values(folder))]
    done = cli(*run, "--out", "out")
    assert done.code == 0, done.err
    segmenter = Segmenter.from_preset("sdp", settings=values(folder))
    for path, row in images(tmp_path / "out").iterrows():
        found = segmenter.predict(folder / "data" / str(path), row["category"])
        assert found.score == pytest.approx(row["image_score"], abs=1e-3)
        assert found.map.max() == pytest.approx(row["max_score"], abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("localise.backbone=mini", "'mini' cannot be read so: its blocks have no attention; use a ViT of open_clip"),
        ("localise.layers=[3,12]", "localise.layers [3, 12]: small has blocks 1 to 8"),
        ("localise.more_sides=[64]", "localise.more_sides is an option of 'april_gan' and 'fused'"),
        ("localise.representative=median", "localise.representative: unknown value 'median'"),
    ],
)
def test_what_cannot_work_is_refused(cli: Cli, folder: Path, tmp_path: Path, setting: str, line: str) -> None:
    chosen = settings(values(folder, setting))
    refused = cli("run", "sdp", "--dataset", folder / "data", "--store", tmp_path / "store", *chosen)
    assert line in refused.refusal()
    assert not (tmp_path / "store").exists()


def test_sentences_without_a_cluster_are_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.yaml"
    few.write_text('normal: ["{}"]\nabnormal: ["broken {}"]\ntemplates: ["a photo of a {}."]\n')
    chosen = settings(values(folder, f"localise.prompts={few}", "localise.representative=dbscan"))
    refused = cli("run", "sdp", "--dataset", folder / "data", "--store", tmp_path / "store", *chosen)
    assert "'carpet': dbscan finds no cluster among 1 sentences" in refused.refusal()


@pytest.fixture(scope="module")
def layers(folder: Path) -> Path:
    """Linear layers of random weights, in a file like the authors'."""
    torch.manual_seed(4)
    vision = SMALL_CLIP["vision_cfg"]
    adapter = LinearAdapter(4, vision["width"], SMALL_CLIP["embed_dim"])
    torch.save({"linear_layers": adapter.state_dict()}, folder / "train_on_visa.pth")
    return folder / "train_on_visa.pth"


def test_linear_layers_in_the_authors_form_are_read_and_decide(
    cli: Cli, folder: Path, layers: Path, tmp_path: Path
) -> None:
    common = ["run", "sdp_plus", "--dataset", folder / "data", "--store", tmp_path / "store"]
    state = torch.load(layers, weights_only=True)["linear_layers"]
    save_file(state, tmp_path / "ours.safetensors")
    save_file({name: -value for name, value in state.items()}, tmp_path / "other.safetensors")
    runs = {
        "theirs": (f"localise.adapter={layers}",),
        "ours": (f"localise.adapter={tmp_path / 'ours.safetensors'}",),
        "other": (f"localise.adapter={tmp_path / 'other.safetensors'}",),
        "clean": (f"localise.adapter={layers}", "localise.aliased=false"),
        "kept": (f"localise.adapter={layers}", "localise.keep=tokens"),
    }
    found = {}
    for name, change in runs.items():
        done = cli(*common, *settings(values(folder, *change)), "--out", name)
        assert done.code == 0, done.err
        found[name] = images(tmp_path / name)
    assert set(pd.read_csv(tmp_path / "theirs" / "results.csv")["localiser"]) == {"sdp_plus"}
    assert found["theirs"]["max_score"].tolist() == found["ours"]["max_score"].tolist()
    assert np.allclose(found["theirs"]["max_score"], found["kept"]["max_score"], atol=5e-3)
    for name in ("other", "clean"):
        assert not np.allclose(found["theirs"]["max_score"], found[name]["max_score"], atol=1e-3), name

    segmenter = Segmenter.from_preset("sdp_plus", settings=values(folder, *runs["theirs"]))
    for path, row in found["theirs"].iterrows():
        predicted = segmenter.predict(folder / "data" / str(path), row["category"])
        assert predicted.score == pytest.approx(row["image_score"], abs=1e-3)
        assert predicted.map.max() == pytest.approx(row["max_score"], abs=1e-3)


def test_four_images_are_learnt_by_heart_by_command(cli: Cli, folder: Path, tmp_path: Path) -> None:
    squares, masks = pictures(SIDE)
    for number, (square, mask) in enumerate(zip(squares, masks.numpy(), strict=True)):
        kind = "spot" if mask.any() else "good"
        save(square, tmp_path / "data" / "wall" / "test" / kind / f"{number}.png")
        if mask.any():
            truth = mask.astype(np.uint8) * 255
            save(truth, tmp_path / "data" / "wall" / "ground_truth" / kind / f"{number}_mask.png")
    chosen = values(folder, f"localise.image_side={SIDE}", f"score.frame={SIDE}", "localise.sigma=0.0")
    experiment = load_experiment("sdp_plus", chosen)
    weights = folder / "clip.safetensors"
    clip = networks.networks_of(experiment, {"clip": LocatedWeights(weights, file_sha256(weights), "path")}).clip(SIDE)
    frozen = deepcopy(clip.state_dict())

    recipe = ["--train", "epochs=150", "--train", "batch_size=4", "--train", "learning_rate=3e-3"]
    given = ["--dataset", tmp_path / "data", "--store", tmp_path / "store", *settings(chosen)]
    out = tmp_path / "trained.safetensors"
    trained = cli("train", "sdp_plus", "--experiment", "sdp_plus", *given, *recipe, "--out", out)
    assert trained.code == 0, trained.err
    for name, value in clip.state_dict().items():
        assert torch.equal(value, frozen[name]), name

    adapter = settings((f"localise.adapter={out}",))
    refused = cli("run", "sdp_plus", *given, *adapter, "--out", "leak")
    assert "--allow-leak" in refused.refusal()
    done = cli("run", "sdp_plus", *given, *adapter, "--allow-leak", "--out", "learnt")
    assert done.code == 0, done.err
    results = pd.read_csv(tmp_path / "learnt" / "results.csv")
    assert results["pixel_f1max"].min() > 0.9
    other = cli("run", "sdp_plus", *given, *adapter, *settings(("localise.aliased=false",)), "--allow-leak")
    assert "was trained with localise.aliased True, not False" in other.refusal()


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_layers_on_the_published_backbone_have_the_published_size() -> None:
    config = open_clip.get_model_config("ViT-B-16-plus-240")
    method = make_localiser("sdp_plus", load_experiment("sdp_plus").localise)
    assert isinstance(method, Trainable)
    known = SimpleNamespace(clip_config=config, device=torch.device("cpu"))
    adapter = method.untrained(known)  # type: ignore[arg-type]
    assert sum(value.numel() for value in adapter.parameters()) == 2_296_320
    assert {name: tuple(value.shape) for name, value in adapter.state_dict().items()} == {
        f"fc.{index}.{part}": shape for index in range(4) for part, shape in (("weight", (640, 896)), ("bias", (640,)))
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fc.4.weight": (128, 128)}, "expected fc.<i>.weight and fc.<i>.bias, and it has fc.4.weight"),
        (
            {"fc.2.bias": None},
            "expected fc.<i>.weight and fc.<i>.bias, and it has fc.3.bias, fc.3.weight; lacks fc.2.bias",
        ),
        ({"fc.3.weight": (128, 896)}, "linear layers that do not fit each other"),
        ({"fc.3.weight": None, "fc.3.bias": None}, "do not fit localise.layers [2, 4, 6, 8]"),
    ],
)
def test_other_weights_than_its_own_are_refused(
    cli: Cli, folder: Path, layers: Path, tmp_path: Path, change: dict[str, tuple[int, ...] | None], said: str
) -> None:
    state = torch.load(layers, weights_only=True)["linear_layers"]
    for name, shape in change.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.zeros(shape)
    torch.save({"linear_layers": state}, tmp_path / "other.pth")
    chosen = settings(values(folder, f"localise.adapter={tmp_path / 'other.pth'}"))
    refused = cli("run", "sdp_plus", "--dataset", folder / "data", "--store", tmp_path / "store", *chosen)
    assert said in refused.refusal()
    assert "other.pth" in refused.refusal()
    assert not (tmp_path / "store").exists()


def test_without_layers_and_with_those_of_another_method_it_says_what_to_do(
    cli: Cli, folder: Path, layers: Path, tmp_path: Path
) -> None:
    common = ["run", "sdp_plus", "--dataset", folder / "data", "--store", tmp_path / "store"]
    refused = cli(*common, *settings(values(folder)))
    assert "sdp_plus on small needs trained weights; make them with `cascade train sdp_plus" in refused.refusal()
    state = torch.load(layers, weights_only=True)["linear_layers"]
    metadata = {"training": json.dumps({"method": "april_gan"})}
    save_file(state, tmp_path / "april_gan.safetensors", metadata=metadata)
    refused = cli(*common, *settings(values(folder, f"localise.adapter={tmp_path / 'april_gan.safetensors'}")))
    assert "was trained as april_gan, not as sdp_plus" in refused.refusal()
