"""Results of images that judged each other stand apart, with their number, wherever results are shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from cascade.flows.generate import generate_dataset
from tests.flows.conftest import OVERRIDES, Cli

pytestmark = pytest.mark.usefixtures("no_pictures")
SETTINGS = [part for each in (*OVERRIDES[1:], "runtime.device=cpu") for part in ("--set", each)]
NOTE = "batch: images judged each other (carpet 9)"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the rest."""
    monkeypatch.setattr("cascade.flows.ablation.outputs.write_plots", lambda *arguments: None)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset under a usual name of MVTec-AD with nine images, and a store that the tests share."""
    folder = tmp_path_factory.mktemp("batch")
    generate_dataset(folder / "MVTec_AD", categories=("carpet",), good=5, defective=4, size=96, seed=5)
    return folder / "MVTec_AD", folder / "store"


@pytest.fixture
def runs(cli: Cli, places: tuple[Path, Path]) -> list[Path]:
    """A run of single images and one of a batch, in the folder of the test."""
    folders = []
    for preset, method in (("mini", "april_gan"), ("mini_batch", "mutual")):
        small = [
            "--set",
            f"localise.method={method}",
            "--set",
            f"localise.image_side={128 if preset != 'mini' else 512}",
        ]
        arguments = ["--dataset", places[0], "--store", places[1], "--out", preset, *small, *SETTINGS]
        found = cli("run", preset, *arguments)
        assert found.code == 0, found.err
        assert (NOTE in found.out) == (preset == "mini_batch")
        folders.append(Path(preset))
    return folders


def test_a_comparison_says_which_side_is_a_batch(cli: Cli, runs: list[Path]) -> None:
    alone, batch = runs
    found = cli("compare", batch, alone)
    assert f"the run: {NOTE}" in found.out
    assert "the baseline: batch" not in found.out
    assert "alone → batch of 9" in found.out
    text = (batch / "comparison.md").read_text(encoding="utf-8")
    block = text.partition("## Batches")[2].partition("##")[0]
    assert NOTE in block
    assert pd.read_csv(batch / "comparison.csv")["remark"].str.contains("alone → batch of 9").all()
    cli("compare", batch, batch)
    assert set(pd.read_csv(batch / "comparison.csv")["remark"]) == {"batch of 9"}
    assert "## Batches" not in _compared(cli, alone, alone)


def _compared(cli: Cli, run: Path, baseline: Path) -> str:
    cli("compare", run, baseline)
    return (run / "comparison.md").read_text(encoding="utf-8")


def test_the_history_counts_the_images_of_a_batch(cli: Cli, runs: list[Path]) -> None:
    shown = cli("history").out
    assert " batch " in shown.splitlines()[0]
    history = pd.read_parquet(Path("runs") / "history.parquet")
    assert history["n_batch"].tolist() == [0, 9]


def test_an_ablation_has_a_block_of_its_own_for_batches(cli: Cli, places: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("axes:\n  grid:\n    localise.method: [mutual, april_gan]\n")
    arguments = ["--experiment", "mini", "--dataset", places[0], "--store", places[1], "--out", "ablation", *SETTINGS]
    found = cli("ablate", "grid.yaml", *arguments)
    assert found.code == 0, found.err
    alone, batch = found.out.split("batch: images judged each other")
    assert "april_gan" in alone[alone.rindex("dataset") :]
    assert "april_gan" not in batch
    table = pd.read_csv("ablation/results.csv")
    last = table[(table["step"] == table["step"].iloc[-1]) & (table["category"] == "mean")].set_index("localise.method")
    assert last["n_batch"].to_dict() == {"mutual": 9, "april_gan": 0}
    assert last["best_pixel_ap"].all()  # each among its own
    pivot = pd.read_csv("ablation/pivot_pixel_ap.csv")
    assert set(pivot["n_batch"]) == {0, 9}
    assert pivot["n_batch"].is_monotonic_increasing


def test_a_reproduction_has_a_block_of_its_own_for_batches(cli: Cli, places: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    shutil.copytree(places[0], tmp_path / "sets" / "MVTec_AD")
    arguments = ["--dataset-root", "sets", "--store", places[1], "--out", "out", *SETTINGS]
    found = cli("reproduce", "table3", "--experiment", "mini_batch", *arguments)
    assert found.code == 0, found.err
    assert "batch: images judged each other; the paper judges each alone" in found.out
    table = pd.read_csv("out/reproduction.csv").dropna(subset="ours")
    assert len(table)
    assert set(table["n_batch"]) == {9}
