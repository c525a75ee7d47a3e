"""WinCLIP through the command line: on the mini CLIP and on a vision transformer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from cascade import Segmenter
from cascade.configs.localisers import ClipLocaliser, WinClip
from cascade.flows.generate import generate_dataset
from cascade.localisers.winclip import cell_scores, grid_map
from cascade.tasks.execution import networks
from tests.flows.conftest import Cli
from tests.tiny import SMALL_CLIP

MINI = ("localise.backbone=mini", "localise.image_side=128", "score.frame=64", "runtime.device=cpu")
SMALL = ("localise.backbone=small", "localise.image_side=96", "score.frame=64", "runtime.device=cpu")
OPTIONS = {"scales": "[2,5]"}
"""Those of the method alone, with another value than the default."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows") / "data"
    generate_dataset(folder, categories=("carpet", "tile"), good=1, defective=1, size=96, seed=5)
    return folder


def settings(*values: str) -> list[str]:
    return [part for each in values for part in ("--set", each)]


def images(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "images.parquet").set_index("path")


def test_a_cell_has_the_harmonic_mean_of_the_windows_that_cover_it() -> None:
    rng = np.random.default_rng(2)
    windows = rng.uniform(0.01, 0.99, (2, 4, 4))
    found = cell_scores(torch.from_numpy(windows.reshape(2, -1)).float(), 6, 3)
    for y in range(6):
        for x in range(6):
            over = [windows[:, t, s] for t in range(4) for s in range(4) if t <= y < t + 3 and s <= x < s + 3]
            expected = len(over) / sum(1 / each for each in over)
            np.testing.assert_allclose(found[:, y, x], expected, rtol=1e-5)
    scores = torch.tensor([0.5, 0.25, 1.0]).reshape(1, 3, 1, 1)
    assert grid_map(scores).item() == pytest.approx(3 / (2 + 4 + 1))


def test_the_words_and_the_windows_decide(cli: Cli, data: Path, tmp_path: Path) -> None:
    common = ["run", "winclip", "--dataset", data, "--store", tmp_path / "store", *settings(*MINI)]
    first = cli(*common, "--out", "one")
    assert first.code == 0, first.err
    results = pd.read_csv(tmp_path / "one" / "results.csv")
    assert set(results["localiser"]) == {"winclip"}
    assert set(results["refiner"]) == {"none"}
    assert set(results["step"]) == {"map"}
    assert results["pixel_auroc"].between(0, 1).all()
    assert "CLIP is told: 'carpet', 'tile'" in first.out
    one = images(tmp_path / "one")
    assert one["image_score"].tolist() == one["clip_score"].tolist()
    for number, option in enumerate([*(f"{name}={value}" for name, value in OPTIONS.items()), "prompts=winclip_22"]):
        other = cli(*common, *settings(f"localise.{option}"), "--out", f"other{number}")
        assert other.code == 0, other.err
        assert not np.allclose(images(tmp_path / f"other{number}")["max_score"], one["max_score"], atol=1e-4)
    assert set(WinClip.model_fields) - set(ClipLocaliser.model_fields) == set(OPTIONS)


def test_windows_that_are_kept_need_no_second_look(cli: Cli, data: Path, tmp_path: Path) -> None:
    common = ["run", "winclip", "--dataset", data, "--store", tmp_path / "store", *settings(*MINI)]
    assert cli(*common, "--out", "looked").code == 0
    assert cli(*common, *settings("localise.keep=tokens"), "--out", "kept").code == 0
    looked, kept = (images(tmp_path / name) for name in ("looked", "kept"))
    assert np.allclose(looked["max_score"], kept["max_score"], atol=2e-3)
    again = cli(*common, *settings("localise.keep=tokens", "dataset.words={tile: floor}"), "--out", "again")
    assert again.code == 0, again.err
    (stages,) = [json.loads((tmp_path / "again" / "run.json").read_text())["stages"]]
    computed = {stage["stage"]: stage["computed"] for stage in stages}
    assert computed["tokens"] == 0
    assert computed["localise"] == 2
    other = cli(*common, *settings("localise.keep=tokens", "localise.scales=[3]"), "--out", "other")
    assert other.code == 0, other.err
    assert not np.allclose(images(tmp_path / "other")["max_score"], kept["max_score"], atol=1e-4)


def test_a_segmenter_has_the_numbers_of_a_run(cli: Cli, data: Path, tmp_path: Path) -> None:
    done = cli("run", "winclip", "--dataset", data, "--store", tmp_path / "store", *settings(*MINI), "--out", "out")
    assert done.code == 0, done.err
    segmenter = Segmenter.from_preset("winclip", settings=MINI)
    for path, row in images(tmp_path / "out").iterrows():
        found = segmenter.predict(data / str(path), row["category"])
        assert found.score == pytest.approx(row["image_score"], abs=1e-4)
        assert found.map.max() == pytest.approx(row["max_score"], abs=1e-3)


def test_masks_can_follow(cli: Cli, data: Path, tmp_path: Path) -> None:
    refined = settings(*MINI, "refine.method=cps", "embed.backbone=mini", "prompt.frame=96")
    done = cli("run", "winclip", "--dataset", data, "--store", tmp_path / "store", *refined, "--out", "out")
    assert done.code == 0, done.err
    steps = pd.read_csv(tmp_path / "out" / "results.csv")["step"].unique()
    assert list(steps) == ["map", "points", "points+logits", "points+box+logits"]


def test_on_a_vision_transformer(cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    clip = open_clip.CLIP(SMALL_CLIP["embed_dim"], SMALL_CLIP["vision_cfg"], SMALL_CLIP["text_cfg"])
    state = {f"module.{name}": value for name, value in clip.state_dict().items()}  # as several GPUs leave it
    save_file(state, tmp_path / "clip.safetensors")
    (tmp_path / "small_clip.json").write_text(json.dumps(SMALL_CLIP))
    monkeypatch.setattr(networks, "MODELS", tmp_path)
    chosen = settings(*SMALL, f"localise.weights={tmp_path / 'clip.safetensors'}")
    done = cli("run", "winclip", "--dataset", data, "--store", tmp_path / "store", *chosen, "--out", "out")
    assert done.code == 0, done.err
    single = images(tmp_path / "out")["max_score"]
    assert (single > 0).all()
    half = settings("localise.precision=bf16")
    done = cli("run", "winclip", "--dataset", data, "--store", tmp_path / "store", *chosen, *half, "--out", "half")
    assert done.code == 0, done.err
    assert np.allclose(images(tmp_path / "half")["max_score"], single, atol=0.02)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("localise.scales=[2,17]", "localise.scales [2, 17]: an input of 128 pixels has 16 cells along a side"),
        ("localise.scales=[0]", "localise.scales"),
        ("localise.image_side=100", "localise.image_side 100: must be a multiple of the patch side of mini, 8"),
        ("localise.layers=[1]", "localise.layers is an option of 'april_gan'"),
        ("localise.prompts=winclip22", "no ensemble 'winclip22'; did you mean 'winclip_22'"),
        ("localise.backbone=ViT-B-16-plus-240", "no weights are registered for 'ViT-B-16-plus-240'"),
        ("localise.backbone=ViT-B-16-plus-240", "v0.2-weights/vit_b_16_plus_240-laion400m_e31-8fb26589.pt)"),
    ],
)
def test_what_cannot_work_is_refused(cli: Cli, data: Path, tmp_path: Path, setting: str, line: str) -> None:
    refused = cli("run", "winclip", "--dataset", data, "--store", tmp_path / "store", *settings(*MINI, setting))
    assert line in refused.refusal()
    assert not (tmp_path / "store").exists()
