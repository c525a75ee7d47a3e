"""Every value of every open choice runs, changes its own stage, and nothing before it."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from cascade.configs.schema import Experiment
from cascade.configs.section import methods_of
from cascade.tasks.tables.results import images_table, points_table, results_table
from tests.flows.conftest import Bench, Outcome

STAGES = ["embed", "tokens", "localise", "prompt", "refine", "score", "tally", "aggregate"]
NOT_VARIED = {"embed.backbone", "localise.method", "localise.keep", "localise.precision", "embed.precision"}
MORE = [
    "refine.multimask=[false,true,true]",
    "refine.multimask=[false,false,false]",
    "refine.box_padding=0.05",
    "refine.box=components",
    "localise.keep=logits",
    "prompt.ring_limit=0.5",
    "prompt.negatives=0",
    "prompt.positives=10",
    "prompt.frame=native",
    "score.frame=native",
    "score.weight=1.0",
    "score.smoothing=4",
]


def _literals(model: type[BaseModel], prefix: str) -> list[str]:
    """``key=value`` for every value but the default of every choice below a section."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        for section in list(methods_of(field).values())[:1]:  # other methods have other stages, and tests of their own
            found += _literals(section, f"{prefix}{name}.")
        if get_origin(kind) is Literal and f"{prefix}{name}" not in NOT_VARIED:
            found += [f"{prefix}{name}={value}" for value in get_args(kind) if value != field.default]
    return found


def _all_choices() -> list[str]:
    sections = ("embed.", "localise.", "prompt.", "refine.", "score.")
    found = [each for each in _literals(Experiment, "") if each.startswith(sections)]
    return [each for each in found if each != "refine.box=components"] + MORE


@pytest.mark.parametrize("choice", _all_choices())
def test_a_choice_runs_and_touches_nothing_before_it(
    bench: Bench, finished: tuple[Bench, Outcome], choice: str
) -> None:
    outcome = bench.run(choice)
    stage = choice.partition(".")[0]
    computed = [result.stage for result in outcome.results if result.computed]
    first = "tokens" if choice.startswith("localise.activation") else stage
    expected = STAGES[STAGES.index(first) :]
    if stage == "embed":
        expected = [name for name in expected if name not in ("tokens", "localise")]
    if choice.startswith("prompt.threshold.rule"):
        expected = STAGES[STAGES.index("prompt") :]
    stays_as_it_is = outcome.prepared.run.experiment == finished[1].prepared.run.experiment
    assert computed == ([] if stays_as_it_is else expected)

    run = outcome.prepared.run
    images, points = images_table(run), points_table(run)
    assert len(images) == len(run.manifest) * len(run.steps)
    metrics = results_table(run).filter(like="_").select_dtypes("float64").to_numpy()
    assert np.nanmin(metrics) >= 0
    assert np.nanmax(metrics) <= 1
    sizes = {record.path: (record.width, record.height) for record in run.manifest}
    for row in points.to_dict("records"):
        width, height = sizes[row["path"]]
        assert 0 <= row["x"] < width
        assert 0 <= row["y"] < height


def test_components_are_merged_into_one_image(bench: Bench) -> None:
    """A14: each part has its own points; the image keeps one map, box by box."""
    outcome = bench.run("prompt.grouping=component", "prompt.threshold.min_area=2")
    run = outcome.prepared.run
    sets = points_table(run).groupby("image_id")["set"].nunique()
    assert sets.max() > 1
    images = images_table(run)
    last = images[images["step"] == "points+box+logits"].set_index("image_id")
    for image_id, count in sets.items():
        boxes = last.loc[image_id, "box"]
        assert pd.isna(boxes) or 1 <= len(str(boxes).split(";")) <= count
