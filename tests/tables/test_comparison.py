from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from cascade.metrics import bca_intervals
from cascade.tasks.aggregate import METRICS
from cascade.tasks.score import HISTOGRAMS, histogram_specs
from cascade.tasks.tables.comparison import SAME, Scored, compare_paired
from cascade.tasks.tables.evidence import ScoredImage, category_draws, labels_of, read_evidence
from cascade.tasks.tables.intervals import FEW, NO_SPREAD, mean_of
from cascade.tasks.tables.matching import match_images
from tests.planted import DEFECTIVE, GOOD, STEPS, PlantedImage, plant_scores, planted_images

STEP = STEPS[-1]


def paired(run: Scored, baseline: Scored, *, margin: float = 0.01, **options: float) -> pd.DataFrame:
    given: dict[str, Any] = {"resamples": 300, "seed": 0, "level": 0.95} | options
    given["margins"] = dict.fromkeys(METRICS, margin)
    table = compare_paired(run, baseline, match_images(run.images, baseline.images), STEP, **given).table
    return table.set_index(["category", "metric"])


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return plant_scores(tmp_path_factory.mktemp("baseline"), planted_images())


def test_a_run_against_itself_differs_nowhere(baseline: Scored) -> None:
    table = paired(baseline, baseline)
    assert set(table["verdict"]) == {"equal"}
    assert set(table["note"]) == {SAME}
    assert (table["difference"] == 0).all()
    assert set(table.index.get_level_values("category")) == {"cap", "nut", "pin", "mean"}


def test_a_planted_fall_is_found_where_it_was_planted(baseline: Scored, tmp_path: Path) -> None:
    run = plant_scores(tmp_path / "run", planted_images(weaker={"nut": 0.25}))
    table = paired(run, baseline)
    assert table.loc[("nut", "pixel_ap"), "verdict"] == "fell"
    assert table.loc[("mean", "pixel_ap"), "verdict"] == "fell"
    assert table.loc[("nut", "pixel_ap"), "p_adjusted"] < 0.01
    assert set(table.loc[["cap", "pin"], "verdict"]) == {"equal"}
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
        draws = category_draws(category, labels_of(images), 300, 0)
        alone += read_evidence(run.scores, images, [len(STEPS) - 1]).estimates(draws)
    low, high = bca_intervals(mean_of(alone), 0.95)[METRICS.index("pixel_ap")]
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
    assert set(table.loc[["cap", "nut", "mean"], "verdict"]) == {"equal"}
    assert table.loc[("nut", "pixel_ap"), "images"] == GOOD + DEFECTIVE - 1
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
        run,
        baseline,
        match_images(run.images, baseline.images),
        STEP,
        margins=dict.fromkeys(METRICS, 0.01),
        resamples=10,
        seed=0,
        level=0.9,
    ).worst
    (row,) = worst.to_dict("records")
    before, after = (
        average_precision_score(spoilt.mask.ravel(), own.ravel().astype(float)) for own in (spoilt.scores, scores)
    )
    assert row["path"] == "cap/13"
    assert (row["baseline"], row["run"], row["difference"]) == pytest.approx((before, after, after - before))


# Verdicts


def test_equal_needs_a_margin_that_holds_the_whole_interval(baseline: Scored, tmp_path: Path) -> None:
    run = plant_scores(tmp_path / "run", planted_images(jitter=2))
    place = ("mean", "pixel_ap")
    row = paired(run, baseline).loc[place]
    assert row["low"] < 0 < row["high"]
    reach = max(-row["low"], row["high"])
    assert paired(run, baseline, margin=1.01 * reach).loc[place, "verdict"] == "equal"
    assert paired(run, baseline, margin=0.99 * reach).loc[place, "verdict"] == "undecided"
    assert paired(run, baseline, margin=0).loc[place, "verdict"] == "undecided"


def test_the_interval_decides_and_p_agrees(baseline: Scored, tmp_path: Path) -> None:
    run = plant_scores(tmp_path / "run", planted_images(weaker={"nut": 0.1, "cap": -0.06}, jitter=2))
    table = paired(run, baseline, resamples=2000)
    sure = table[table["note"] == ""]
    assert {"fell", "improved"} < set(sure["verdict"])
    away = abs(sure["p_value"] - 0.05) > 0.005
    decided = sure["verdict"].isin(["fell", "improved"])
    assert (decided == (sure["p_value"] < 0.05))[away].all()
    assert (decided == ((sure["low"] > 0) | (sure["high"] < 0))).all()


def test_of_few_images_no_interval_is_shown_and_nothing_but_a_fall_is_claimed(tmp_path: Path) -> None:
    few = {"good": 5, "defective": 9}
    before = plant_scores(tmp_path / "before", planted_images(**few))
    better = plant_scores(tmp_path / "better", planted_images(weaker={"nut": -0.3}, **few))
    table = paired(better, before)
    categories, means = table.loc[["cap", "nut", "pin"]], table.loc["mean"]
    moved = categories[categories["note"] != SAME]
    assert set(moved["note"]) == {FEW}
    assert moved[["low", "high", "p_value"]].isna().all(axis=None)
    assert set(moved["verdict"]) == {"undecided"}
    assert means.loc["pixel_ap", "verdict"] == "improved"  # 27 defective images in all, 9 in each category
    assert means.loc["pixel_ap", ["low", "high", "p_value"]].notna().all()
    back = paired(before, better)
    assert back.loc[("nut", "pixel_ap"), ["note", "verdict"]].tolist() == [FEW, "fell"]


def test_a_mean_of_categories_with_few_images_each_has_no_interval(tmp_path: Path) -> None:
    """12 good and 12 defective images in all, 4 of either kind in each category."""
    run, before = (
        plant_scores(tmp_path / f"{jitter}", planted_images(good=4, defective=4, jitter=jitter)) for jitter in (1, 2)
    )
    assert set(paired(run, before).loc["mean", "note"]) == {FEW}


def test_image_scores_that_part_the_kinds_in_both_runs_are_not_called_equal(tmp_path: Path) -> None:
    """AUROC is 100 in every draw: what other images would give is not known."""

    def parted(jitter: int) -> list[PlantedImage]:
        return [
            replace(image, scores=np.where(image.mask, np.float16(1.5), image.scores).astype(np.float16))
            for image in planted_images(("cap",), jitter=jitter)
        ]

    run, before = (plant_scores(tmp_path / f"{jitter}", parted(jitter)) for jitter in (1, 2))
    row = paired(run, before).loc[("cap", "image_auroc")]
    assert (row["run"], row["difference"]) == (1, 0)
    assert (row["note"], row["verdict"]) == (NO_SPREAD, "undecided")


def test_images_with_another_mask_are_counted(baseline: Scored, tmp_path: Path) -> None:
    images = planted_images()
    relabelled = []
    for image, scored in zip(images, baseline.images, strict=True):
        item = scored.item.rpartition("/")[0] + "/redrawn" if image.name in ("cap/12", "cap/13") else scored.item
        relabelled.append(replace(scored, item=item))
    matching = match_images(relabelled, baseline.images)
    assert len(matching.pairs) == len(images)
    run = plant_scores(tmp_path / "run", images)
    kept = [replace(own, item=old.item) for own, old in zip(run.images, relabelled, strict=True)]
    for own, old in zip(run.images, kept, strict=True):
        if own.item != old.item:
            item = run.scores.read(own.item)
            with run.scores.writing([old.item], histogram_specs("uint32", len(STEPS))):
                run.scores.write(old.item, {name: item.arrays[name] for name in HISTOGRAMS}, item.record)
    table = paired(Scored(run.scores, tuple(kept), STEPS), baseline)
    assert set(table.loc["cap", "other_truth"]) == set(table.loc["mean", "other_truth"]) == {2}
    assert set(table.loc["nut", "other_truth"]) == {0}


def test_a_mask_that_covers_other_pixels_of_the_frame_is_another_truth(baseline: Scored, tmp_path: Path) -> None:
    """The same file of a mask, placed in the frame in another way."""
    changed = []
    for image in planted_images():
        grown = image.mask | np.roll(image.mask, 1, axis=0) if image.name == "nut/15" else image.mask
        changed.append(replace(image, mask=grown))
    run = plant_scores(tmp_path / "run", changed)
    other = next(own for own in run.images if own.path == "nut/15")
    named = next(own for own in baseline.images if own.path == "nut/15")
    item = run.scores.read(other.item)
    with run.scores.writing([named.item], histogram_specs("uint32", len(STEPS))):
        run.scores.write(named.item, {name: item.arrays[name] for name in HISTOGRAMS}, item.record)
    table = paired(Scored(run.scores, baseline.images, STEPS), baseline)
    assert set(table.loc["nut", "other_truth"]) == {1}
    assert set(table.loc["cap", "other_truth"]) == {0}


def test_image_scores_in_the_same_order_are_equal_whatever_their_values(baseline: Scored, tmp_path: Path) -> None:
    run = plant_scores(tmp_path / "run", [replace(image, scores=image.scores / 2) for image in planted_images()])
    table = paired(run, baseline)
    for metric in ("image_auroc", "image_f1max", "image_ap"):
        assert table.loc[("cap", metric), ["note", "verdict"]].tolist() == [SAME, "equal"]
