from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from cascade.metrics import percentile_intervals
from cascade.tasks.aggregate import METRICS
from cascade.tasks.comparison import Scored, compare_paired, match_images
from cascade.tasks.score import STEPS
from cascade.tasks.uncertainty import ScoredImage, category_weights, labels_of, mean_of, read_evidence
from tests.planted import PlantedImage, plant_scores, planted_images

STEP = STEPS[-1]


def paired(run: Scored, baseline: Scored, **options: float) -> pd.DataFrame:
    given = {"resamples": 300, "seed": 0, "level": 0.95} | options
    table = compare_paired(run, baseline, match_images(run.images, baseline.images), STEP, **given).table
    return table.set_index(["category", "metric"])


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return plant_scores(tmp_path_factory.mktemp("baseline"), planted_images())


def test_a_run_against_itself_differs_nowhere(baseline: Scored) -> None:
    table = paired(baseline, baseline)
    assert set(table["verdict"]) == {"unchanged"}
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table[["p_value"]] == 1).all(axis=None)
    assert set(table.index.get_level_values("category")) == {"cap", "nut", "pin", "mean"}


def test_a_planted_fall_is_found_where_it_was_planted(baseline: Scored, tmp_path: Path) -> None:
    run = plant_scores(tmp_path / "run", planted_images(weaker={"nut": 0.25}))
    table = paired(run, baseline)
    assert table.loc[("nut", "pixel_ap"), "verdict"] == "fell"
    assert table.loc[("mean", "pixel_ap"), "verdict"] == "fell"
    assert table.loc[("nut", "pixel_ap"), "p_adjusted"] < 0.01
    assert set(table.loc[["cap", "pin"], "verdict"]) == {"unchanged"}
    back = paired(baseline, run)
    assert back.loc[("nut", "pixel_ap"), "verdict"] == "improved"
    assert back.loc[("nut", "pixel_ap"), "difference"] == -table.loc[("nut", "pixel_ap"), "difference"]


def test_pairing_takes_the_difficulty_of_the_images_out(baseline: Scored, tmp_path: Path) -> None:
    """The interval of the difference is narrower than that of either value, as both runs find the same images hard."""
    run = plant_scores(tmp_path / "run", planted_images(jitter=3))
    (difference,) = paired(run, baseline).loc[[("mean", "pixel_ap")]].to_dict("records")
    alone = []
    for category in ("cap", "nut", "pin"):
        images = [image for image in run.images if image.category == category]
        weights = category_weights(category, labels_of(images), 300, 0)
        alone.append(read_evidence(run.scores, images, [STEP]).resampled(weights)[0])
    ((low, high),) = percentile_intervals(mean_of(alone)[1:, [METRICS.index("pixel_ap")]], 0.95)
    assert difference["high"] - difference["low"] < (high - low) / 5


def test_only_shared_images_are_compared(baseline: Scored, tmp_path: Path) -> None:
    images = [image for image in planted_images() if image.name != "nut/00" and image.category != "pin"]
    extra = PlantedImage("cap", "cap/extra", np.zeros((2, 2), np.float16), np.zeros((2, 2), bool))
    more = [*images, extra, *planted_images(categories=("rod",))]
    run = plant_scores(tmp_path / "run", more)
    matching = match_images(run.images, baseline.images)
    assert {image.path for image in matching.only_run if image.category != "rod"} == {"cap/extra"}
    assert {image.path for image in matching.only_baseline if image.category != "pin"} == {"nut/00"}
    table = paired(run, baseline)
    assert set(table.loc["rod", "verdict"]) == {"appeared"}
    assert set(table.loc["pin", "verdict"]) == {"vanished"}
    assert table.loc["rod", "baseline"].isna().all()
    assert table.loc["pin", "run"].isna().all()
    assert set(table.loc[["cap", "nut", "mean"], "verdict"]) == {"unchanged"}
    assert table.loc[("nut", "pixel_ap"), "images"] == 13
    means = table.loc[["cap", "nut"], "run"].groupby("metric").mean()
    assert table.loc["mean", "run"].to_dict() == pytest.approx(means.to_dict())


def test_a_category_of_other_images_is_not_compared(baseline: Scored, tmp_path: Path) -> None:
    table = paired(plant_scores(tmp_path / "run", planted_images(seed=5)), baseline)
    # good images are equal in both, but without defects they have no metric
    assert set(table["verdict"]) == {"not comparable"}
    assert set(table.index.get_level_values("category")) == {"cap", "nut", "pin"}
    assert table[["baseline", "run"]].notna().all(axis=None)
    assert table[["difference", "low", "high", "p_value"]].isna().all(axis=None)


def test_copies_of_an_image_are_paired_one_by_one() -> None:
    def copy(path: str) -> ScoredImage:
        return ScoredImage("cap", "same", path, 0, "item")

    matching = match_images([copy("b"), copy("a")], [copy("c"), copy("a"), copy("d")])
    assert [(own.path, other.path) for own, other in matching.pairs] == [("a", "a"), ("b", "c")]
    assert [image.path for image in matching.only_baseline] == ["d"]


def test_the_images_that_lost_most_come_first(baseline: Scored, tmp_path: Path) -> None:
    images = planted_images()
    spoilt = next(image for image in images if image.name == "cap/13")
    scores = np.where(spoilt.mask, 0, spoilt.scores).astype(np.float16)
    dimmed = PlantedImage(spoilt.category, spoilt.name, scores, spoilt.mask)
    run = plant_scores(tmp_path / "run", [dimmed if image is spoilt else image for image in images])
    worst = compare_paired(
        run, baseline, match_images(run.images, baseline.images), STEP, resamples=10, seed=0, level=0.9
    ).worst
    (row,) = worst.to_dict("records")
    before, after = (
        average_precision_score(spoilt.mask.ravel(), own.ravel().astype(float)) for own in (spoilt.scores, scores)
    )
    assert row["path"] == "cap/13"
    assert (row["baseline"], row["run"], row["difference"]) == pytest.approx((before, after, after - before))
