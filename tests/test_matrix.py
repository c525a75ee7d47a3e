"""The matrix of localisers and refiners: rows are those of runs, and what the mini networks cannot serve is said."""

import sys

import pandas as pd
import pytest

from benchmarks import matrix
from benchmarks.matrix import COLUMNS, METRICS
from cascade.flows.generate import generate_dataset
from tests.flows.conftest import Cli, cli

__all__ = ["cli"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_by_command_it_has_the_numbers_of_runs(cli: Cli, tmp_path, monkeypatch, capsys):
    generate_dataset(tmp_path / "train", categories=("bean",), good=1, defective=1, size=96, seed=4)
    generate_dataset(tmp_path / "data", categories=("carpet",), good=2, defective=2, size=96, seed=5)
    monkeypatch.setattr(matrix, "LAST", tmp_path)
    places = ["--train", tmp_path / "train", "--data", tmp_path / "data", "--store", "store"]
    names = ["--localisers", "april_gan", "sdp", "uniadet on features", "--refiners", "none", "persam"]
    monkeypatch.setattr(sys, "argv", ["matrix", *map(str, places), *names, "--write"])
    assert matrix.main() == 0
    printed = capsys.readouterr().out
    assert "sdp: " in printed
    assert "its blocks have no attention" in printed

    table = pd.read_csv(tmp_path / "matrix.csv")
    assert list(table) == list(COLUMNS)
    cells = table.set_index(["localiser", "refiner", "category"])
    assert len(cells) == 2 * 2 * 2
    assert (cells.xs("mean", level="category")["seconds"] > 0).all()
    assert cells["n_batch"].isna().all()
    found = cells.loc["uniadet on features", "persam", "mean"]
    assert found["against"] == pytest.approx(
        found["pixel_ap"] - cells.loc["april_gan", "persam", "mean"]["pixel_ap"], abs=1e-5
    )
    weights = tmp_path / "store" / "matrix" / "uniadet_on_features.safetensors"
    for localiser, settings in {"april_gan": (), "uniadet on features": (f"localise.adapter={weights}",)}.items():
        chosen = ["refine.method=persam", *matrix.LOCALISERS[localiser], *settings]
        options = [part for each in chosen for part in ("--set", each)]
        out = tmp_path / localiser
        assert cli("run", "mini", "--dataset", tmp_path / "data", "--store", "store", *options, "--out", out).code == 0
        last = pd.read_csv(out / "results.csv").groupby("category", sort=False).last()
        for metric in METRICS:
            own = cells.xs((localiser, "persam"), level=("localiser", "refiner"))[metric]
            assert own["carpet"] == pytest.approx(last.loc["carpet", metric], abs=1e-6)
