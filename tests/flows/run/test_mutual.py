"""Images that judge each other: against MuSc's steps in plain numpy, through the command line, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from cascade import Segmenter
from cascade.configs import localisers
from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.localisers.mutual import Mutual
from cascade.tasks.localise import LOCALISE
from cascade.tasks.stage import Run, localised_id
from cascade.tasks.tokens import TOKENS
from tests.flows.conftest import Cli

SETTINGS = (
    "localise.method=mutual",
    "refine.method=none",
    "localise.image_side=128",
    "score.frame=64",
    "runtime.device=cpu",
)


class Planted:
    """Networks that are asked for nothing but a device."""

    device = torch.device("cpu")


def vectors_by_hand(look: NDArray[np.float64], neighbourhoods: tuple[int, ...]) -> NDArray[np.float64]:
    """[side, side, C]: the mean over the neighbourhoods of the unit vectors of their means."""
    channels, side, _ = look.shape
    found = np.zeros((side, side, channels))
    for r in neighbourhoods:
        padded = np.pad(look, ((0, 0), (r // 2, r // 2), (r // 2, r // 2)))
        for y in range(side):
            for x in range(side):
                mean = padded[:, y : y + r, x : x + r].mean(axis=(1, 2))
                found[y, x] += mean / np.linalg.norm(mean)
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def by_hand(
    looks: list[Mapping[str, NDArray[np.float64]]],
    image: int,
    sets: tuple[tuple[int, ...], ...],
    share: float,
    *,
    every_second: bool = False,
) -> NDArray[np.float64]:
    """MuSc's steps for one image, a loop for each: neighbourhoods, unit vectors, nearest cells, the nearest images."""
    maps = []
    finest = max(level.shape[-1] for level in looks[0].values())
    for name in looks[0]:
        channels, side, _ = looks[0][name].shape
        seen = [(y + x) % 2 == 0 or not every_second for y in range(side) for x in range(side)]
        for own in sets:
            vectors = [vectors_by_hand(look[name], own).reshape(-1, channels) for look in looks]
            to_others = []
            for other in range(len(looks)):
                if other != image:
                    pairs = np.linalg.norm(vectors[image][:, None] - vectors[other][seen][None], axis=-1)
                    to_others.append(pairs.min(axis=1))
            lowest = np.sort(to_others, axis=0)[: max(1, int(share * len(to_others)))]
            values = lowest.mean(axis=0).reshape(side, side)
            places = np.linspace(0, side - 1, finest)
            maps.append(
                RegularGridInterpolator((range(side), range(side)), values)(
                    tuple(np.meshgrid(places, places, indexing="ij"))
                )
            )
    return np.asarray(np.mean(maps, axis=0) / 2)


MUSC = Mutual(
    sides=(96,),
    strides=(8, 16),
    layers=None,
    grid=None,
    neighbourhoods=(1, 3, 5),
    descriptors="each",
    reference_cells="all",
    zero="none",
    share=0.3,
    rscin=(),
    references=100,
)
EVERY = ((1,), (3,), (5,))


@pytest.mark.parametrize(
    ("localiser", "sets", "every_second", "median"),
    [
        (MUSC, EVERY, False, False),
        (replace(MUSC, descriptors="mean"), ((1, 3, 5),), False, False),
        (replace(MUSC, reference_cells="half"), EVERY, True, False),
        (replace(MUSC, descriptors="mean", reference_cells="half", zero="median"), ((1, 3, 5),), True, True),
    ],
)
def test_distances_are_those_of_plain_numpy(
    localiser: Mutual, sets: tuple[tuple[int, ...], ...], every_second: bool, median: bool
) -> None:
    rng = np.random.default_rng(3)
    looks = [{"level_8": rng.normal(size=(5, 7, 7)), "level_16": rng.normal(size=(7, 4, 4))} for _ in range(9)]
    tensors = [{name: torch.from_numpy(values) for name, values in look.items()} for look in looks]
    for image in (0, 4):
        own = {name: values[None] for name, values in tensors[image].items()}
        others = [localiser.judge(each) for number, each in enumerate(tensors) if number != image]
        found, score = localiser.compare(Planted(), own, None, others)  # type: ignore[arg-type]
        expected = by_hand(looks, image, sets, 0.3, every_second=every_second)
        if median:
            expected = np.maximum(expected - np.sort(expected, axis=None)[(expected.size - 1) // 2], 0)
        assert np.allclose(found["distance"][0], expected, atol=1e-6)
        assert score[0] == pytest.approx(expected.max())


OPTIONS = {
    "image_side": 160,
    "strides": [8],
    "layers": [3],
    "grid": 4,
    "neighbourhoods": [3],
    "descriptors": "mean",
    "reference_cells": "half",
    "zero": "median",
    "share": 0.9,
    "references": 8,
}
"""Those of the map; ``rscin`` changes the image score alone."""


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
    shared = {"method", "backbone", "weights", "sha256", "keep", "precision", "batch_size", "rscin"}
    assert set(localisers.Mutual.model_fields) == {*OPTIONS, *shared}


def rscin_by_hand(
    scores: NDArray[np.float64], features: NDArray[np.float64], numbers: list[int]
) -> NDArray[np.float64]:
    """MuSc's RsCIN as it is written down, with whole matrices and a mask for each number of neighbours."""
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T
    averaged = []
    for number in numbers:
        masked = np.zeros_like(similarity)
        for row in range(len(scores)):
            kept = np.sort(similarity[row])[-number]
            masked[row] = np.where(similarity[row] >= kept, similarity[row], 0)
        averaged.append((masked / masked.sum(axis=1, keepdims=True)) @ scores)
    return np.asarray(np.mean(averaged, axis=0))


def test_scores_averaged_over_neighbours_are_those_of_plain_numpy(cli: Cli, data: Path, tmp_path: Path) -> None:
    common = ["run", "mini_batch", "--dataset", data, "--store", tmp_path / "store"]
    settings = [part for each in (*SETTINGS, "score.image_score=clip") for part in ("--set", each)]
    assert cli(*common, *settings, "--out", "own").code == 0
    chosen = ["--set", "localise.rscin=[1,2,3]", "--set", "runtime.shard_size=4"]
    assert cli(*common, *settings, *chosen, "--out", "averaged").code == 0
    own, averaged = (
        pd.read_parquet(tmp_path / name / "images.parquet").set_index("path")["image_score"]
        for name in ("own", "averaged")
    )
    run = run_of(data, tmp_path / "store", "localise.rscin=[1,2,3]")
    looks = {record.path: TOKENS.artefact(run).read(record.image_id).arrays["level_16"] for record in run.manifest}
    features = np.stack([looks[path].astype(np.float64).mean(axis=(1, 2)) for path in own.index])
    expected = rscin_by_hand(own.to_numpy(), features, [1, 2, 3])
    assert np.allclose(averaged, expected, atol=1e-5)
    assert not np.allclose(averaged, own)

    segmenter = Segmenter.from_preset(
        "mini_batch", settings=[*SETTINGS, "score.image_score=clip", "localise.rscin=[1,2,3]"]
    )
    found = segmenter.predict_batch([data / path for path in own.index], "carpet")
    assert np.allclose([each.score for each in found], averaged, atol=1e-5)


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
    method = ["--set", "localise.method=mutual"]
    refused = cli("run", "mini_batch", "--dataset", tmp_path / "few", "--store", tmp_path / "store", *method)
    assert "carpet: 5 different images cannot judge each other; localise.method 'mutual' needs 8" in refused.refusal()
    assert not (tmp_path / "store").exists()
