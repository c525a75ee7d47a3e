"""A segmenter in memory: the numbers of a run, its example, and what it refuses."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade import Segmenter, segmenter
from cascade.storage.artefacts import Store
from cascade.storage.datasets import read_image
from cascade.storage.errors import ConfigError, DataError
from cascade.tasks.score import SCORE, item_id
from cascade.tasks.tables.results import images_table, points_table
from tests.flows.conftest import Bench

ONE_AT_A_TIME = "refine.batch_size=1"
"""A batch of another size may round a product otherwise, and a segmenter has one image."""


def segmenter_of(bench: Bench, *more: str) -> Segmenter:
    return Segmenter.from_preset("mini", device="cpu", settings=(*bench.overrides, *more))


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("localise.keep=logits", "refine.choice=agreement", "score.image_score=max"),
        ("prompt.grouping=component", "prompt.threshold.min_area=60", "score.frame=native", "prompt.frame=native"),
        ("refine.method=none",),
        ("refine.method=persam",),
        ("refine.method=mmr", "prompt.threshold.min_area=2"),
        ("prompt.threshold.rule=absolute", "prompt.threshold.absolute=1.0"),  # no prompt
    ],
)
def test_its_numbers_are_those_of_a_run(empty: Bench, more: tuple[str, ...]) -> None:
    more = more if "refine.method=none" in more else (*more, ONE_AT_A_TIME)
    outcome = empty.run(*more)
    run = outcome.prepared.run
    scores, images, points = SCORE.artefact(run), images_table(run), points_table(run)
    own = segmenter_of(empty, *more)
    for record in run.manifest:
        path = run.image_path(record)
        found = own.predict(path, object_name=run.words(record))
        assert tuple(found.steps) == run.steps
        height, width = found.map.shape
        stored = scores.read(item_id(run, record)).arrays[f"scores_{height}x{width}"]
        rows = images[images["path"] == record.path].set_index("step")
        for number, (name, step) in enumerate(found.steps.items()):
            assert np.array_equal(step.map, stored[number])
            assert step.score == rows.at[name, "image_score"]
            assert step.mask.mean() == pytest.approx(rows.at[name, "mask_area"])
        assert found.score == rows["image_score"].iloc[-1]
        assert found.threshold == rows["threshold"].iloc[0]
        there = points[points["path"] == record.path]
        assert np.array_equal(found.points, there[["x", "y", "label"]].to_numpy(float))
        assert found.mask_of_image().shape == found.size == (record.height, record.width)
        array = read_image(path)
        assert own.predict(array, run.words(record)).score == found.score
        assert own.predict(Image.fromarray(array), run.words(record)).score == found.score


def test_many_are_each_as_one(empty: Bench) -> None:
    own = segmenter_of(empty)
    paths = sorted(empty.dataset.rglob("test/*/*.png"))[:3]
    together = own.predict_batch(paths, "carpet")
    for path, found in zip(paths, together, strict=True):
        alone = own.predict(path, "carpet")
        assert np.array_equal(found.map, alone.map)
        assert found.score == alone.score


def test_without_a_refiner_no_sam_is_needed(empty: Bench, tmp_path: Path) -> None:
    lost = replace(empty, overrides=(*empty.overrides, f"embed.weights={tmp_path}/none.pth"))
    assert segmenter_of(lost, "refine.method=none").predict(np.zeros((50, 70, 3), np.uint8)).points.shape == (0, 3)


def test_what_is_no_image_is_refused(empty: Bench, tmp_path: Path) -> None:
    own = segmenter_of(empty)
    with pytest.raises(ValueError, match=r"has to be \[H, W, 3\] uint8 in RGB, not \[5, 5\] float64"):
        own.predict(np.zeros((5, 5)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"nowhere\.png"):
        own.predict(tmp_path / "nowhere.png")
    with pytest.raises(ConfigError, match="no experiment 'minni'"):
        Segmenter.from_preset("minni")


def test_nothing_is_written(empty: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    segmenter_of(empty).predict(np.zeros((50, 70, 3), np.uint8))
    assert not list(tmp_path.iterdir())
    assert Store(empty.store).stored() == []


def test_the_example_runs(dataset: Path) -> None:
    photograph = read_image(next(dataset.rglob("test/*/*.png")))
    result = doctest.testmod(segmenter, extraglobs={"photograph": photograph})
    assert result.attempted >= 5
    assert not result.failed
