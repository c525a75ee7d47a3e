"""CLIP-AD through the command line, on a small vision transformer with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from cascade import Segmenter
from cascade.configs.localisers import ClipAd, ClipBlocks
from cascade.flows.generate import generate_dataset
from cascade.tasks.execution import networks
from tests.flows.conftest import Cli
from tests.tiny import SMALL_CLIP


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
    alike = cli(*common, *settings(values(folder, *dbscan)), "--out", "whole")  # all unit vectors are that close
    assert alike.code == 0, alike.err
    assert np.allclose(images(tmp_path / "whole")["max_score"], one["max_score"], atol=5e-3)


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
