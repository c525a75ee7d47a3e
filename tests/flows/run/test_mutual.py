"""Images that judge each other: against MuSc's steps in plain numpy, through the command line, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from cascade import Segmenter
from cascade.configs import schema
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.localisers.mutual import Mutual
from cascade.tasks.localise import LOCALISE
from cascade.tasks.stage import Run, localised_id
from tests.flows.conftest import Cli

SETTINGS = ("refine.method=none", "localise.image_side=128", "score.frame=64", "runtime.device=cpu")


class Planted:
    """Networks that are asked for nothing but a device."""

    device = torch.device("cpu")


def by_hand(
    looks: list[Mapping[str, NDArray[np.float64]]], image: int, neighbourhoods: tuple[int, ...], share: float
) -> NDArray[np.float64]:
    """MuSc's steps for one image, a loop for each: neighbourhoods, unit vectors, nearest cells, the nearest images."""
    maps = []
    for name in looks[0]:
        channels, side, _ = looks[0][name].shape
        for r in neighbourhoods:
            vectors = []
            for look in looks:
                padded = np.pad(look[name], ((0, 0), (r // 2, r // 2), (r // 2, r // 2)))
                cells = np.zeros((side, side, channels))
                for y in range(side):
                    for x in range(side):
                        cells[y, x] = padded[:, y : y + r, x : x + r].mean(axis=(1, 2))
                vectors.append((cells / np.linalg.norm(cells, axis=-1, keepdims=True)).reshape(-1, channels))
            to_others = []
            for other in range(len(looks)):
                if other != image:
                    pairs = np.linalg.norm(vectors[image][:, None] - vectors[other][None], axis=-1)
                    to_others.append(pairs.min(axis=1))
            lowest = np.sort(to_others, axis=0)[: max(1, int(share * len(to_others)))]
            maps.append(lowest.mean(axis=0).reshape(side, side))
    return np.mean(maps, axis=0) / 2


def test_distances_are_those_of_plain_numpy() -> None:
    rng = np.random.default_rng(3)
    looks = [{"level_8": rng.normal(size=(5, 6, 6)), "level_16": rng.normal(size=(7, 6, 6))} for _ in range(9)]
    localiser = Mutual(sides=(96,), strides=(8, 16), layers=None, neighbourhoods=(1, 3, 5), share=0.3, references=100)
    tensors = [{name: torch.from_numpy(values) for name, values in look.items()} for look in looks]
    for image in (0, 4):
        own = {name: values[None] for name, values in tensors[image].items()}
        others = [each for number, each in enumerate(tensors) if number != image]
        found, score = localiser.compare(Planted(), own, None, others)  # type: ignore[arg-type]
        expected = by_hand(looks, image, (1, 3, 5), 0.3)
        assert np.allclose(found["distance"][0], expected, atol=1e-6)
        assert score[0] == pytest.approx(expected.max())


OPTIONS = {
    "image_side": 160,
    "strides": [8],
    "layers": [3],
    "neighbourhoods": [3],
    "share": 0.9,
    "references": 8,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "data"
    generate_dataset(folder, categories=("carpet",), good=5, defective=4, size=96, seed=5)
    return folder


def run_of(data: Path, store: Path, *more: str) -> Run:
    experiment = load_experiment("mini_batch", [f"dataset.path={data}", *SETTINGS, *more])
    return prepare(experiment, store, Settings(weights=store / "none")).run


def test_through_the_command_line_it_says_how_many_judged(cli: Cli, data: Path, tmp_path: Path) -> None:
    settings = [part for each in SETTINGS for part in ("--set", each)]
    first = cli("run", "mini_batch", "--dataset", data, "--store", tmp_path / "store", "--out", "out", *settings)
    assert first.code == 0, first.err
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(results["localiser"]) == {"mutual"}
    assert set(results["step"]) == {"map"}
    assert results["n_batch"].tolist() == [9, 9]
    assert "CLIP is told" not in first.out
    again = cli("run", "mini_batch", "--dataset", data, "--store", tmp_path / "store", *settings)
    assert "miss" not in again.out


def test_a_map_depends_on_the_batch_and_not_on_the_shards(cli: Cli, data: Path, tmp_path: Path) -> None:
    common = ["run", "mini_batch", "--dataset", data, *(part for each in SETTINGS for part in ("--set", each))]
    assert cli(*common, "--store", tmp_path / "one").code == 0
    assert cli(*common, "--store", tmp_path / "two", "--set", "runtime.shard_size=2").code == 0
    runs = run_of(data, tmp_path / "one"), run_of(data, tmp_path / "two")
    for record in runs[0].manifest:
        one, two = (LOCALISE.artefact(run).read(localised_id(run, record)).arrays["distance"] for run in runs)
        assert np.array_equal(one, two)
    fewer = run_of(data, tmp_path / "one", "localise.references=8")
    assert fewer.batches["carpet"].digest != runs[0].batches["carpet"].digest
    assert fewer.batches["carpet"].images == runs[0].batches["carpet"].images[:8]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_map(cli: Cli, data: Path, tmp_path: Path, option: str) -> None:
    common = ["run", "mini_batch", "--dataset", data, "--store", tmp_path / "store"]
    settings = [part for each in SETTINGS for part in ("--set", each)]
    assert cli(*common, *settings, "--out", "one").code == 0
    assert cli(*common, *settings, "--set", f"localise.{option}={OPTIONS[option]}", "--out", "two").code == 0
    one, two = (pd.read_parquet(tmp_path / name / "images.parquet")["max_score"] for name in ("one", "two"))
    assert not np.allclose(one, two)


def test_every_option_of_the_method_is_among_them() -> None:
    shared = {"method", "backbone", "weights", "sha256", "keep", "precision", "batch_size"}
    assert set(schema.Mutual.model_fields) == {*OPTIONS, *shared}


def test_a_segmenter_has_the_numbers_of_a_run(cli: Cli, data: Path, tmp_path: Path) -> None:
    settings = [part for each in SETTINGS for part in ("--set", each)]
    assert (
        cli("run", "mini_batch", "--dataset", data, "--store", tmp_path / "store", "--out", "out", *settings).code == 0
    )
    images = pd.read_parquet(tmp_path / "out" / "images.parquet").set_index("path")
    segmenter = Segmenter.from_preset("mini_batch", settings=SETTINGS)
    found = segmenter.predict_batch([data / path for path in images.index], "carpet")
    assert [each.score for each in found] == images["image_score"].tolist()
    with pytest.raises(ValueError, match=r"1 different images cannot judge each other"):
        segmenter.predict(data / images.index[0])


def test_too_few_images_are_refused(cli: Cli, tmp_path: Path) -> None:
    generate_dataset(tmp_path / "few", categories=("carpet",), good=3, defective=2, size=96)
    refused = cli("run", "mini_batch", "--dataset", tmp_path / "few", "--store", tmp_path / "store")
    assert "carpet: 5 different images cannot judge each other; localise.method 'mutual' needs 8" in refused.refusal()
    assert not (tmp_path / "store").exists()
