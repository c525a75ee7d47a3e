"""The table of quality: where the oracle clicks, and what it is compared with."""

import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import quality
from benchmarks.quality import COLUMNS, METRICS, PRESETS, oracle_points, oracle_rows, quality_table
from cascade.flows.generate import generate_dataset
from tests.flows.conftest import Cli, cli

__all__ = ["cli"]


def test_the_oracle_clicks_where_each_large_defect_is_deepest():
    mask = np.zeros((100, 100), bool)
    mask[10:31, 40:61] = True  # centre (50, 20)
    mask[35, 5:95] = True  # 0.9 %, one pixel thin
    mask[80:84, 80:84] = True  # 0.16 %: too small
    mask[90:100, 0:10] = True  # in a corner; the image's border is a border of the defect
    found = list(oracle_points(mask))
    assert len(found) == 3
    for defect, point in found:
        column, row = point[0].astype(int)
        assert defect[row, column]
    (square, centre), _, (_, corner) = found
    assert square.sum() == 21 * 21
    assert centre.tolist() == [[50, 20]]
    assert corner[0] == pytest.approx([4.5, 94.5], abs=0.6)


def test_the_oracle_mean_is_over_defects_and_the_others_over_categories():
    steps = ["clip", "points"]
    results = pd.DataFrame(
        [{"category": name, "step": step} | dict.fromkeys(METRICS, 0.5) for name in ("a", "mean") for step in steps]
    )
    oracle = pd.DataFrame(
        {"category": ["a", "a", "a", "b"], "step": ["points"] * 4, "iou": [0.2, 0.2, 0.2, 1.0], "predicted_iou": 0.0}
    )
    seconds = pd.DataFrame({"category": ["a", "b"], "seconds": [0.2, 0.6], "images": [16, 3]})
    tidy = pd.concat([quality_table(results, "mini", seconds), oracle_rows(oracle, "mini")])
    assert set(tidy["preset"]) == {"mini"}
    table = tidy.set_index(["category", "row", "metric"])["value"]
    assert table["a", "oracle points", "iou"] == pytest.approx(0.2)
    assert table["mean", "oracle points", "iou"] == pytest.approx(0.4)
    assert table["mean", "clip", "pixel_ap"] == 0.5
    assert table["mean", "end to end", "seconds"] == pytest.approx(0.4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_by_command_it_has_each_preset_with_its_runs_numbers(cli: Cli, tmp_path, monkeypatch, capsys):
    generate_dataset(tmp_path / "data", categories=("carpet",), good=4, defective=5, size=96, seed=5)
    monkeypatch.setattr(quality, "LAST", tmp_path / "results")
    monkeypatch.setattr(quality, "TIMED", 8)
    command = ["quality", "--data", str(tmp_path / "data"), "--store", "store", "--set", "score.frame=64", "--write"]
    monkeypatch.setattr(sys, "argv", command)
    assert quality.main() == 0
    printed = capsys.readouterr().out
    assert "mini: " in printed
    assert "s an image" in printed
    assert "mini_batch: batch: images judged each other (carpet 9)" in printed
    table = pd.read_csv(tmp_path / "results" / "quality.csv")
    assert list(table) == list(COLUMNS)
    assert not table.duplicated(list(COLUMNS[:-1])).any()
    assert list(table["preset"].unique()) == list(PRESETS)
    assert set(table.loc[table["row"].str.startswith("oracle"), "preset"]) <= {"mini"}
    found = table.set_index(["category", "preset", "row", "metric"])["value"]
    assert found["carpet", "mini_batch", "map", "n_batch"] == 9
    assert "n_batch" not in set(table.loc[table["preset"] == "mini", "metric"])
    for preset in PRESETS:
        assert found["mean", preset, "end to end", "seconds"] > 0
        settings = ["--set", "score.frame=64", "--store", "store", "--out", preset]
        assert cli("run", preset, "--dataset", tmp_path / "data", *settings).code == 0
        for row in pd.read_csv(tmp_path / preset / "results.csv").to_dict("records"):
            for metric in METRICS:
                assert found[row["category"], preset, row["step"], metric] == pytest.approx(row[metric], abs=1e-6)

    quality.show(table[table["preset"] == "mini_batch"], table)
    shown = capsys.readouterr().out
    assert shown.startswith("mini_batch\n")
    assert "(+0.0)" in shown
    assert "clip" not in shown
