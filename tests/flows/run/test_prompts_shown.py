"""What a reader is told of the prompts: who got none, which masks were chosen, and the image scores there are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cascade.configs.schema import PromptConfig, ScoreConfig
from cascade.scoring import top_mean
from cascade.tasks.aggregate import MEAN
from tests.flows.conftest import Bench, Cli
from tests.planted import STEPS


def finished_run(cli: Cli, bench: Bench, out: Path, *changes: str) -> tuple[str, dict, pd.DataFrame, pd.DataFrame]:
    result = cli(*bench.arguments(*changes), "--out", out)
    assert result.code == 0, result.err
    described = json.loads((out / "run.json").read_text())
    return result.out, described, pd.read_parquet(out / "results.parquet"), pd.read_parquet(out / "images.parquet")


def test_images_without_prompt_are_counted_on_the_screen_in_the_table_and_in_run_json(
    cli: Cli, bench: Bench, tmp_path: Path
) -> None:
    """A threshold between the maps' peaks, so that some images get a prompt and some do not."""
    _, _, _, every = finished_run(cli, bench, tmp_path / "every")
    peaks = every[every["step"] == STEPS[0]]["max_score"].sort_values()
    between = float(peaks.iloc[len(peaks) // 2 - 1 : len(peaks) // 2 + 1].mean())
    shown, described, results, images = finished_run(
        cli,
        bench,
        tmp_path / "some",
        "prompt.threshold.rule=absolute",
        f"prompt.threshold.absolute={between}",
        "prompt.threshold.min_area=1",
    )
    one = images[images["step"] == STEPS[0]]
    assert 0 < one["no_prompt"].sum() < len(one)
    for category, rows in one.groupby("category"):
        (row,) = results[(results["category"] == category) & (results["step"] == STEPS[-1])].to_dict("records")
        good = rows[rows["label"] == 0]
        expected = {
            "n_images": len(rows),
            "n_no_prompt": rows["no_prompt"].sum(),
            "n_no_prompt_anomalous": rows[rows["label"] == 1]["no_prompt"].sum(),
            "good_prompted": 1 - good["no_prompt"].mean(),
        }
        assert {name: row[name] for name in expected} == expected
        assert described["prompts"][category] == expected
    assert described["prompts"][MEAN]["n_no_prompt"] == one["no_prompt"].sum()
    (line,) = [line.split() for line in shown.splitlines() if line.split()[:2] == [MEAN, str(len(one))]]
    assert line[2] == str(one["no_prompt"].sum())


def test_the_table_says_how_often_each_mask_was_chosen(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    _, _, results, images = finished_run(cli, bench, tmp_path / "out", "refine.multimask=[false,true,true]")
    columns = ["mask_1", "mask_2", "mask_3"]
    for (category, step), rows in images.groupby(["category", "step"]):
        (row,) = results[(results["category"] == category) & (results["step"] == step)][columns].to_numpy()
        shares = rows["mask"].value_counts(normalize=True).reindex([1, 2, 3], fill_value=0.0)
        if step in STEPS[:2]:  # the map, and a step with a single mask
            assert rows["mask"].isna().all()
            assert np.isnan(row).all()
        else:
            assert row == pytest.approx(shares.to_numpy(dtype=float))


def test_every_image_score_is_a_column_of_its_own(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    _, _, results, images = finished_run(cli, bench, tmp_path / "out", "score.image_score=top", "score.top_share=0.1")
    assert images["image_score"].equals(images["top_score"].rename("image_score"))
    assert (images["top_score"] <= images["max_score"]).all()
    for (category, step), rows in images.groupby(["category", "step"]):
        (row,) = results[(results["category"] == category) & (results["step"] == step)].to_dict("records")
        for name in ("clip_score", "max_score", "top_score"):
            assert row[f"image_auroc_{name}"] == pytest.approx(roc_auc_score(rows["label"].astype(int), rows[name]))
        assert row["image_auroc"] == row["image_auroc_top_score"]


def test_the_image_score_may_be_the_mean_of_two(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    _, _, _, images = finished_run(cli, bench, tmp_path / "out", "score.image_score=clip+top")
    expected = images[["clip_score", "top_score"]].mean(axis=1)
    np.testing.assert_allclose(images["image_score"], expected, rtol=1e-12)


def test_a_faint_defect_gets_a_prompt_and_an_image_without_one_keeps_the_maps_order(
    cli: Cli, bench: Bench, tmp_path: Path
) -> None:
    """By default; with the floor and the damping of paper_strict it has no mask and ranks below the others."""
    default = [f"prompt.threshold.rule={PromptConfig().threshold.rule}", f"score.no_prompt={ScoreConfig().no_prompt}"]
    strict = ["prompt.threshold.rule=max", "score.no_prompt=damp", "score.weight=0.5"]
    _, _, _, every = finished_run(cli, bench, tmp_path / "default", *default)
    floor = float(every[every["step"] == STEPS[0]]["max_score"].min()) + 1e-3
    _, _, _, damped = finished_run(cli, bench, tmp_path / "strict", *strict, f"prompt.threshold.absolute={floor}")
    (faint,) = damped[damped["no_prompt"]]["item"].unique()
    assert not every[every["item"] == faint]["no_prompt"].any()
    rows = damped[damped["item"] == faint].set_index("step")["max_score"]
    assert rows[STEPS[-1]] == pytest.approx(rows[STEPS[0]] / 2, abs=1e-3)

    _, _, _, kept = finished_run(
        cli, bench, tmp_path / "kept", strict[0], f"prompt.threshold.absolute={floor}", default[1]
    )
    rows = kept[kept["item"] == faint].set_index("step")["max_score"]
    assert rows.nunique() == 1


@pytest.mark.parametrize(("share", "count"), [(1e-6, 1), (0.1, 10), (1.0, 100)])
def test_the_mean_of_the_top_is_that_of_the_sorted_scores(share: float, count: int) -> None:
    scores = np.random.default_rng(0).permutation(100).reshape(10, 10).astype(np.float16)
    assert top_mean(scores, share) == np.mean(np.sort(scores.ravel().astype(float))[-count:])


def test_the_words_told_to_clip_are_in_run_json(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    _, described, _, _ = finished_run(cli, bench, tmp_path / "out", "dataset.words={carpet: a woven rug}")
    assert described["dataset"]["words"] == {"carpet": "a woven rug", "metal_plate": "metal_plate"}
