from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from cascade.configs.datasets import known_datasets
from cascade.configs.grid import Variant, expand, varied_keys
from cascade.configs.published import PublishedRow, PublishedTable
from cascade.tasks.aggregate import METRICS
from cascade.tasks.tables.ablation import FinishedVariant, ablation_table, beside_published, pivot
from tests.planted import STEPS
from tests.test_grid import SHAPE, SIZE, grid

LAST = STEPS[-1]


def results(last: float, *, dataset: str = "tiny") -> pd.DataFrame:
    """Two categories and their mean; the last step of the mean has ``last`` in every metric, the rest 0.5."""
    rows = [
        {"dataset": dataset, "category": category, "step": step}
        | dict.fromkeys(METRICS, last if (category, step) == ("mean", LAST) else 0.5)
        for category in ("a", "b", "mean")
        for step in STEPS
    ]
    return pd.DataFrame(rows)


def table(variants: list[Variant], values: list[float]) -> pd.DataFrame:
    finished = [
        FinishedVariant(each.name, each.experiment, results(value))
        for each, value in zip(variants, values, strict=True)
    ]
    return ablation_table(finished, varied_keys([each.changes for each in variants]))


def test_every_row_of_every_variant_with_its_keys() -> None:
    variants = expand(grid(grid={SHAPE: ["cross", "ellipse"], SIZE: [20, 30]}), "mini")
    found = table(variants, [0.1, 0.4, 0.3, 0.2])
    assert list(found.columns[:3]) == ["variant", SHAPE, SIZE]
    assert len(found) == 4 * 3 * 4
    last = found[(found["category"] == "mean") & (found["step"] == LAST)]
    assert last[[SHAPE, SIZE, "pixel_ap"]].to_numpy().tolist() == [
        ["cross", 20, 0.1],
        ["cross", 30, 0.4],
        ["ellipse", 20, 0.3],
        ["ellipse", 30, 0.2],
    ]
    assert last["best_pixel_ap"].tolist() == [False, True, False, False]
    assert found[found["category"] == "a"]["best_pixel_ap"].all()  # a tie is best together


def test_an_undefined_metric_is_never_best() -> None:
    variants = expand(grid(grid={SIZE: [20, 30]}), "mini")
    finished = [FinishedVariant(each.name, each.experiment, results(math.nan)) for each in variants]
    found = ablation_table(finished, [SIZE])
    assert not found[found["pixel_ap"].isna()]["best_pixel_ap"].any()


def test_a_key_that_a_variant_leaves_alone_shows_the_value_it_has() -> None:
    variants = expand(grid(list=[{}, {"score.weight": 0.8}, {"score.frame": "native"}]), "mini")
    found = table(variants, [0.1, 0.2, 0.3]).drop_duplicates("variant")
    assert found["score.weight"].tolist() == [0.3, 0.8, 0.3]
    assert found["score.frame"].tolist() == ["518", "518", "native"]


def test_columns_of_any_kind_can_be_written(tmp_path: Path) -> None:
    kinds = [
        {"score.frame": "native", "prompt.ring_limit": None, "refine.multimask": [True, False, True]},
        {"score.frame": 100, "prompt.ring_limit": 0.5, "refine.multimask": [True, True, True]},
    ]
    found = table(expand(grid(list=kinds), "mini"), [0.1, 0.2])
    found.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), found, check_dtype=False)


def test_a_leak_of_one_variant_marks_that_one() -> None:
    first, second = expand(grid(grid={SIZE: [20, 30]}), "mini")
    finished = [
        FinishedVariant(first.name, first.experiment, results(0.1)),
        FinishedVariant(second.name, second.experiment, results(0.2).assign(leak=True)),
    ]
    found = ablation_table(finished, [SIZE])
    assert found.groupby("variant", sort=False)["leak"].agg(["min", "max"]).to_numpy().tolist() == [
        [False, False],
        [True, True],
    ]


def test_a_product_is_pivoted_on_its_last_key_in_the_grids_order() -> None:
    variants = expand(grid(grid={SHAPE: ["rectangle", "cross"], SIZE: [30, 20]}), "mini")
    wide = pivot(table(variants, [0.1, 0.2, 0.3, 0.4]), [SHAPE, SIZE], "pixel_ap")
    assert wide.index.names == ["dataset", "step", SHAPE]
    assert wide.columns.tolist() == [30, 20]
    assert list(wide.index.unique("step")) == list(STEPS)
    assert wide.loc[("tiny", LAST, "rectangle")].tolist() == [0.1, 0.2]
    assert wide.loc[("tiny", LAST, "cross")].tolist() == [0.3, 0.4]
    assert wide.loc[("tiny", "clip", "cross")].tolist() == [0.5, 0.5]


def test_what_is_no_product_has_a_column_for_each_variant() -> None:
    variants = expand(grid(zip={"prompt.positives": [1, 5], "prompt.negatives": [0, 5]}), "mini")
    wide = pivot(table(variants, [0.1, 0.2]), ["prompt.positives", "prompt.negatives"], "pixel_ap")
    assert wide.columns.tolist() == ["positives=1,negatives=0", "positives=5,negatives=5"]
    assert wide.loc[("tiny", LAST)].tolist() == [0.1, 0.2]


def test_a_single_variant_shows_its_steps() -> None:
    wide = pivot(table(expand(grid(list=[{}]), "mini"), [0.9]), [], "pixel_ap")
    assert wide.columns.tolist() == list(STEPS)
    assert wide.loc[("tiny", "base")].tolist() == [0.5, 0.5, 0.5, 0.9]


def test_only_the_same_variant_step_and_dataset_are_subtracted() -> None:
    variants = expand(grid(grid={SIZE: [20, 30]}), "mini")
    experiments = {each.name: each.experiment for each in variants}
    row = PublishedRow(
        method="X", dataset="mvtec", step=LAST, changes={SIZE: 30}, values={"pixel_ap": 40.0, "pixel_auroc": 90.0}
    )
    other = PublishedRow(method="Y", dataset="mvtec", values={"pixel_ap": 1.0})
    published = PublishedTable(title="", source="", frame="", rows=(row, other))
    for dataset, difference in {"MVTec_AD": 2.5, "tiny": None}.items():
        finished = [FinishedVariant(n, e, results(0.425, dataset=dataset)) for n, e in experiments.items()]
        found = beside_published(ablation_table(finished, [SIZE]), experiments, published, known_datasets())
        assert found["variant"].unique().tolist() == ["size=30"]
        (ap,) = found[found["metric"] == "pixel_ap"].to_dict("records")
        assert (ap["ours"], ap["published"]) == (pytest.approx(42.5), 40.0)
        assert (ap["sam"], ap["clip"]) == ("mini", "mini")
        if difference is None:
            assert math.isnan(ap["difference"])
        else:
            assert ap["difference"] == pytest.approx(difference)
