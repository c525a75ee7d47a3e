from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cascade.storage.errors import ConfigError, StoreError
from cascade.tasks import score
from cascade.tasks.aggregate import METRICS, table_rows
from cascade.tasks.tables.evidence import ScoredImage, category_draws, labels_of, read_evidence
from cascade.tasks.tables.intervals import FEW, NO_INTERVAL, NO_SPREAD, result_intervals
from tests.flows.conftest import Bench, Outcome

COLUMNS = ["category", "step", "metric", "value", "low", "high", "note"]


@pytest.fixture
def however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of any number of images are shown."""
    for name in ("ENOUGH", "ENOUGH_EACH"):
        monkeypatch.setattr(f"cascade.tasks.tables.intervals.{name}", 1)


@pytest.mark.usefixtures("however_few")
def test_the_values_are_those_of_the_table_and_lie_in_their_intervals(finished: tuple[Bench, Outcome]) -> None:
    run = finished[1].prepared.run
    found = result_intervals(run, resamples=200)
    assert list(found.columns) == COLUMNS
    expected = [(row["category"], row["step"], metric, row[metric]) for row in table_rows(run) for metric in METRICS]
    assert list(found[COLUMNS[:4]].itertuples(index=False, name=None)) == expected
    shown = found[found["note"] == ""]
    assert len(shown) > len(found) / 2
    assert set(found["note"]) <= {"", NO_SPREAD, NO_INTERVAL}
    assert found.loc[found["note"] != "", ["low", "high"]].isna().all(axis=None)
    assert (shown["low"] < shown["high"]).all()
    assert shown[["low", "high"]].stack().between(0, 1).all()
    assert ((shown["low"] - 1e-12 <= shown["value"]) & (shown["value"] <= shown["high"] + 1e-12)).all()


def test_intervals_of_few_images_are_words(finished: tuple[Bench, Outcome]) -> None:
    """Two good and two defective images in each of two categories."""
    found = result_intervals(finished[1].prepared.run, resamples=50)
    assert found["value"].notna().all()
    assert set(found["note"]) == {FEW}
    assert found[["low", "high"]].isna().all(axis=None)


@pytest.mark.usefixtures("however_few")
def test_equal_seeds_give_equal_intervals(finished: tuple[Bench, Outcome]) -> None:
    run = finished[1].prepared.run
    first, again, other = (result_intervals(run, resamples=50, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.usefixtures("however_few")
def test_a_higher_level_is_wider(finished: tuple[Bench, Outcome]) -> None:
    run = finished[1].prepared.run
    narrow, wide = (result_intervals(run, resamples=200, level=level) for level in (0.5, 0.95))
    shown = (narrow["note"] == "") & (wide["note"] == "")
    assert shown.mean() > 0.5
    assert (wide["low"] <= narrow["low"])[shown].all()
    assert (wide["high"] >= narrow["high"])[shown].all()
    assert (wide["high"] - wide["low"]).sum() > (narrow["high"] - narrow["low"]).sum()


def test_resamples_agree_with_the_stored_pixels(finished: tuple[Bench, Outcome]) -> None:
    run = finished[1].prepared.run
    scores = score.SCORE.artefact(run)
    records = [record for record in run.manifest if record.category == "carpet"]
    images = [ScoredImage("carpet", r.image_id, r.path, r.label, score.item_id(run, r)) for r in records]
    weights = category_draws("carpet", labels_of(images), 20, seed=1).drawn
    found = read_evidence(scores, images, range(len(run.steps))).resampled(weights)
    items = [scores.read(image.item) for image in images]
    maps = np.stack([item.arrays["scores_96x96"] for item in items]).astype(np.float64)
    truths = np.stack([np.unpackbits(item.arrays["truth_96x96"], count=96 * 96) for item in items])
    labels = np.array([record.label for record in records], dtype=int)
    for draw, row in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(len(records)), row)
        for index in range(len(run.steps)):
            pixels, truth = maps[drawn, index].ravel(), truths[drawn].ravel()
            image_scores = [items[image].record["image_score"][index] for image in drawn]
            own = dict(zip(METRICS, found[index, draw], strict=True))
            assert own["pixel_auroc"] == pytest.approx(roc_auc_score(truth, pixels), abs=1e-9)
            assert own["pixel_ap"] == pytest.approx(average_precision_score(truth, pixels), abs=1e-9)
            assert own["image_auroc"] == pytest.approx(roc_auc_score(labels[drawn], image_scores), abs=1e-9)
            assert own["image_ap"] == pytest.approx(average_precision_score(labels[drawn], image_scores), abs=1e-9)


@pytest.mark.usefixtures("however_few")
def test_a_category_without_defects_has_no_interval(own_data: Bench) -> None:
    carpet = own_data.dataset / "carpet"
    shutil.rmtree(carpet / "ground_truth")
    for folder in (carpet / "test").iterdir():
        if folder.name != "good":
            shutil.rmtree(folder)
    found = result_intervals(own_data.run().prepared.run, resamples=30)
    by_category = {name: own[COLUMNS[3:]].reset_index(drop=True) for name, own in found.groupby("category")}
    assert by_category["carpet"][["value", "low", "high"]].isna().all(axis=None)
    assert set(by_category["carpet"]["note"]) == {""}
    assert by_category["metal_plate"]["value"].notna().all()
    assert by_category["metal_plate"]["low"].notna().any()
    pd.testing.assert_frame_equal(by_category["mean"], by_category["metal_plate"])


@pytest.mark.usefixtures("however_few")
def test_a_defective_image_without_a_mask_leaves_only_image_intervals(own_data: Bench) -> None:
    listed = own_data.prepare().run.manifest.to_frame().query("category == 'carpet'")
    listed.loc[listed["mask_path"].first_valid_index(), "mask_path"] = None
    listed.to_csv(own_data.dataset / "listed.csv", index=False)
    run = replace(own_data, dataset=own_data.dataset / "listed.csv").run("score.image_score=top").prepared.run
    found = result_intervals(run, resamples=30).query("category == 'carpet'")
    pixel = found["metric"].str.startswith("pixel")
    assert found.loc[pixel, ["value", "low", "high"]].isna().all(axis=None)
    assert found.loc[~pixel, "value"].notna().all()
    assert found.loc[~pixel, "low"].notna().any()


@pytest.mark.parametrize("wrong", [{"level": 0.0}, {"level": 1.0}, {"level": 95.0}, {"resamples": 0}])
def test_what_makes_no_interval_is_refused(finished: tuple[Bench, Outcome], wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        result_intervals(finished[1].prepared.run, **wrong)  # type: ignore[arg-type]


def test_a_run_that_is_gone_from_the_store_is_refused(bench: Bench) -> None:
    run = bench.run().prepared.run
    shutil.rmtree(bench.store / "score")
    with pytest.raises(StoreError):
        result_intervals(run)
