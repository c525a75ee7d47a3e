from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from cascade.configs.published import load_published
from cascade.tasks.tables.intervals import result_intervals
from tests.flows.conftest import Bench, Cli, files_of

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the rest."""
    monkeypatch.setattr("cascade.flows.ablation.outputs.write_plots", lambda *arguments: None)


@pytest.fixture
def sets(tmp_path: Path, bench: Bench) -> Path:
    """A folder with a few images under a usual name of MVTec-AD."""
    shutil.copytree(bench.dataset, tmp_path / "sets" / "MVTec_AD")
    return tmp_path / "sets"


def arguments(bench: Bench, table: str, sets: Path, *more: str) -> list[str]:
    """``cascade reproduce`` of a table with the bench's networks."""
    given = bench.arguments()
    settings = given[given.index("--set") :] if "--set" in given else []
    store = ["--store", str(bench.store), "--engine", "local"]
    return ["reproduce", table, "--dataset-root", str(sets), "--experiment", "mini", *store, *settings, *more]


def test_what_is_there_runs_and_every_cell_is_marked_by_its_interval(
    cli: Cli, bench: Bench, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENOUGH", "ENOUGH_EACH"):
        monkeypatch.setattr(f"cascade.tasks.tables.intervals.{name}", 1)
    result = cli(*arguments(bench, "table3", sets, "--out", str(tmp_path / "out")))
    assert (result.code, result.err) == (0, "")
    assert "missing" not in result.out  # the store was warm: a copied file is not computed again
    assert "miss " not in result.out
    found = pd.read_csv(tmp_path / "out" / "reproduction.csv")
    published = load_published("table3").rows
    assert found["published"].tolist() == [value for row in published for value in row.values.values()]
    assert found["step"].tolist() == [row.step for row in published for _ in row.values]
    assert set(found["sam"]) == set(found["clip"]) == {"mini"}

    prepared = replace(bench, dataset=sets / "MVTec_AD").prepare()
    own = result_intervals(prepared.run)
    own = own[own["category"] == "mean"].set_index(["step", "metric"])
    for cell in found.to_dict("records"):
        interval = own.loc[(cell["step"], cell["metric"])]
        assert cell["ours"] == pytest.approx(100 * interval["value"])
        assert cell["difference"] == pytest.approx(cell["ours"] - cell["published"])
        low, high = 100 * interval["low"] - cell["published"], 100 * interval["high"] - cell["published"]
        assert (cell["difference_low"], cell["difference_high"]) == pytest.approx((low, high), nan_ok=True)
        if cell["note"] == cell["note"]:
            expected = "undecided"
        else:
            expected = "fell" if high < 0 else "improved" if low > 0 else "undecided"
            assert max(-low, high) > 1  # none of these intervals is narrow enough for "equal"
        assert cell["verdict"] == expected
        assert expected in result.out
    assert "fell" in set(found["verdict"])
    assert "equal: it lies within ±1; else undecided" in result.out


def test_eight_images_are_too_few_for_an_interval_and_for_a_verdict(
    cli: Cli, bench: Bench, sets: Path, tmp_path: Path
) -> None:
    result = cli(*arguments(bench, "table3", sets, "--out", str(tmp_path / "out")))
    found = pd.read_csv(tmp_path / "out" / "reproduction.csv")
    assert set(found["note"]) == {"few images"}
    assert set(found["verdict"]) == {"undecided"}
    assert "few images: an interval needs 10 defective images" in result.out


def test_mini_models_and_part_of_a_dataset_are_never_shown_as_the_papers(
    cli: Cli, bench: Bench, sets: Path, tmp_path: Path
) -> None:
    result = cli(*arguments(bench, "table3", sets, "--out", str(tmp_path / "out")))
    assert "not the paper's models (SAM mini, CLIP mini)" in result.out
    assert "not a claim about the paper's" in result.out
    assert "MVTec-AD: 8 images, not the 1725 of its test set" in result.out


def test_a_dataset_that_is_not_there_is_listed_with_its_command(
    cli: Cli, bench: Bench, sets: Path, tmp_path: Path
) -> None:
    result = cli(*arguments(bench, "table1", sets, "--out", str(tmp_path / "out")))
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if line.startswith("missing")]
    assert "VisA" in line
    assert "curl -O" in line
    found = pd.read_csv(tmp_path / "out" / "reproduction.csv").fillna({"step": ""})
    by_row = found.groupby(["dataset", "method"])["verdict"].unique().map(set)
    assert by_row["visa", "PPG+CPS"] == by_row["visa", "APRIL-GAN"] == {"missing"}
    assert by_row["mvtec", "PPG+CPS"] <= {"fell", "improved", "equal", "undecided"}
    assert by_row["mvtec", "ClipSAM"] == {"other method"}
    assert found[found["verdict"].isin(["missing", "other method"])]["ours"].isna().all()


@pytest.mark.slow
def test_every_row_of_table2_is_another_variant(cli: Cli, bench: Bench, sets: Path, tmp_path: Path) -> None:
    used = replace(bench, overrides=tuple(each for each in bench.overrides if "dilation.size" not in each))
    result = cli(*arguments(used, "table2", sets, "--out", str(tmp_path / "out")))
    assert result.code == 0
    found = pd.read_csv(tmp_path / "out" / "reproduction.csv")
    ours = pd.read_csv(tmp_path / "out" / "mvtec" / "results.csv")
    ours = ours[(ours["category"] == "mean") & (ours["step"] == "points+box+logits")].set_index("variant")
    assert found["variant"].nunique() == 9
    for cell in found.to_dict("records"):
        assert cell["ours"] == pytest.approx(100 * ours.loc[cell["variant"], cell["metric"]])


def test_without_anything_all_that_is_missing_is_listed_and_nothing_written(cli: Cli, tmp_path: Path) -> None:
    result = cli("reproduce", "table1", "--dataset-root", tmp_path / "sets", "--engine", "local")
    assert result.code == 2
    lines = result.out.splitlines()
    assert all(line.startswith("missing ") for line in lines)
    for command in ("cascade weights fetch vit_h", "cascade weights fetch ViT-L-14-336/openai", "curl -O"):
        assert len([line for line in lines if command in line]) == 1
    assert len([line for line in lines if "cascade train april_gan --experiment paper" in line]) == 2
    assert any("--dataset DIR/visa --train epochs=15 " in line and "--adapter mvtec=" in line for line in lines)
    assert any("--dataset DIR/mvtec --train epochs=3 " in line and "--adapter visa=" in line for line in lines)
    assert files_of(tmp_path) == {}


def test_an_adapter_is_named_for_its_dataset(cli: Cli, bench: Bench, sets: Path, tmp_path: Path) -> None:
    adapter = next(each.partition("=")[2] for each in bench.overrides if each.startswith("localise.adapter="))
    used = replace(bench, overrides=tuple(each for each in bench.overrides if "localise.adapter" not in each))
    given = arguments(used, "table3", sets, "--adapter", f"mvtec={adapter}", "--out", str(tmp_path / "out"))
    result = cli(*given)
    assert result.code == 0
    assert "hit  8 of 8" in next(line for line in result.out.splitlines() if line.startswith("localise"))


def test_an_adapter_trained_on_the_dataset_is_listed_and_not_used(
    cli: Cli, bench: Bench, sets: Path, tmp_path: Path
) -> None:
    from tests.flows.conftest import save_adapter

    leaking = save_adapter(tmp_path / "leak.safetensors", {"dataset": "MVTec_AD", "categories": ["carpet"]})
    used = replace(bench, overrides=tuple(each for each in bench.overrides if "localise.adapter" not in each))
    result = cli(*arguments(used, "table3", sets, "--adapter", f"mvtec={leaking}"))
    assert result.code == 2
    assert "trained on category 'carpet'" in result.out
    assert "--adapter mvtec=PATH" in result.out


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["tabel1"], "did you mean 'table1'"),
        (["table1", "--experiment", "papper"], "did you mean 'paper'"),
        (["table1", "--adapter", "x.pth"], "dataset=path"),
        (["table1", "--adapter", "mvtek=x.pth"], "did you mean 'mvtec'"),
        (["table2", "--set", "prompt.dilation.size=9"], "varies this key"),
    ],
)
def test_wrong_arguments_get_one_line(cli: Cli, given: list[str], part: str) -> None:
    result = cli("reproduce", *given)
    assert result.code == 2
    assert part in result.refusal()
