from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade.configs.datasets import find_dataset, known_datasets
from cascade.configs.grid import MAX_VARIANTS, Grid, expand, grid_names, load_grid, value_at
from cascade.configs.loader import validate
from cascade.configs.published import PublishedRow, is_row_of, load_published, published_names
from cascade.storage.errors import ConfigError
from cascade.tasks.aggregate import METRICS
from tests.planted import STEPS

SHAPE, SIZE = "prompt.dilation.shape", "prompt.dilation.size"


def grid(**axes: Any) -> Grid:
    return validate(Grid, {"axes": axes})


def refusal(axes: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        expand(grid(**axes), "mini", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_grid_is_a_product_in_the_order_given() -> None:
    variants = expand(grid(grid={SHAPE: ["cross", "ellipse"], SIZE: [20, 30]}), "mini")
    found = [(each.experiment.prompt.dilation.shape, each.experiment.prompt.dilation.size) for each in variants]
    assert found == [("cross", 20), ("cross", 30), ("ellipse", 20), ("ellipse", 30)]
    assert [each.name for each in variants] == [f"shape={shape},size={size}" for shape, size in found]


def test_zip_goes_in_step_and_multiplies_with_the_rest() -> None:
    axes = {
        "grid": {SIZE: [20, 30]},
        "zip": {"prompt.positives": [1, 3, 5], "prompt.negatives": [0, 3, 5]},
        "list": [{}, {"score.fusion": "mask"}],
    }
    variants = expand(grid(**axes), "mini", ["score.weight=0.25"])
    assert len(variants) == len({each.name for each in variants}) == 2 * 3 * 2
    pairs = {(each.experiment.prompt.positives, each.experiment.prompt.negatives) for each in variants}
    assert pairs == {(1, 0), (3, 3), (5, 5)}
    assert {each.experiment.score.weight for each in variants} == {0.25}


def test_values_of_every_kind_arrive_as_they_are() -> None:
    axes = {
        "list": [
            {"score.frame": "native", "refine.multimask": [False, True, True], "prompt.ring_limit": None},
            {"score.frame": 259, "prompt.ring_limit": 0.5},
        ]
    }
    first, second = (each.experiment for each in expand(grid(**axes), "mini"))
    assert (first.score.frame, first.refine.multimask, first.prompt.ring_limit) == ("native", (False, True, True), None)
    assert (second.score.frame, second.prompt.ring_limit) == (259, 0.5)
    assert value_at(first, "refine.multimask") == [False, True, True]


def test_names_use_the_whole_key_where_the_last_part_is_not_enough() -> None:
    variants = expand(grid(zip={"prompt.frame": [96, 128], "score.frame": [96, 128]}), "mini")
    assert [each.name for each in variants] == [
        "prompt.frame=96,score.frame=96",
        "prompt.frame=128,score.frame=128",
    ]


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ({}, ["nothing varies", "axes.grid"]),
        ({"grid": {"prompt.dilaton.size": [1]}}, ["'prompt.dilaton.size'", "did you mean 'prompt.dilation'"]),
        ({"grid": {"promt.positives": [1]}}, ["did you mean 'prompt'"]),
        ({"grid": {"prompt.dilation": [1]}}, ["'prompt.dilation' is a section", "shape, size"]),
        ({"grid": {"prompt.positives.x": [1]}}, ["'prompt.positives' is a value"]),
        ({"grid": {SHAPE: ["elipse"]}}, [SHAPE, "'elipse'", "did you mean 'ellipse'"]),
        ({"grid": {SIZE: [20, 1]}}, [SIZE, "1"]),
        ({"zip": {SIZE: [20, 25], SHAPE: ["cross"]}}, ["equally many", f"{SIZE} has 2", f"{SHAPE} has 1"]),
        ({"grid": {SIZE: [20, 20]}}, ["the same"]),
        ({"grid": {SIZE: [20]}, "list": [{SIZE: 25}]}, [SIZE, "two directions"]),
        ({"grid": {"score.weight": [i / 1000 for i in range(300)]}}, ["300 variants", str(MAX_VARIANTS)]),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(axes: dict[str, Any], parts: list[str]) -> None:
    message = refusal(axes)
    assert all(part in message for part in parts), message


def test_a_product_is_counted_before_it_is_made() -> None:
    many = {f"prompt.{name}": list(range(1, 10_000)) for name in ("positives", "negatives", "frame")}
    assert "999700029999 variants" in refusal({"grid": many})


def test_an_override_of_a_varied_key_is_refused() -> None:
    assert "varies this key" in refusal({"grid": {SIZE: [20, 25]}}, f"{SIZE}=30")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("axes: {grids: {score.weight: [1]}}", "did you mean 'axes.grid'"),
        ("axis: {}", "did you mean 'axes'"),
        ("axes: {grid: {score.weight: []}}", "score.weight"),
        ("axes: {grid: {score.weight: 0.5}}", "score.weight"),
        ("- 1", "key: value"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=part) as error:
        load_grid(str(path))
    assert "\n" not in str(error.value)


def test_a_grid_has_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("axes: {grid: {score.weight: [0.5, 1]}}", encoding="utf-8")
    assert load_grid(str(path)).name == "own"
    with pytest.raises(ConfigError, match="did you mean 'table2'"):
        load_grid("tabel2")


@pytest.mark.parametrize("name", grid_names())
def test_every_preset_fits_the_paper_and_the_mini_models(name: str) -> None:
    for experiment in ("paper", "mini"):
        assert expand(load_grid(name), experiment)
    published = load_grid(name).published
    assert published is None or published in published_names()


# Published numbers


def rows(table: str, dataset: str = "mvtec") -> list[PublishedRow]:
    return [row for row in load_published(table).rows if row.dataset == dataset]


def values(row: PublishedRow) -> tuple[float, ...]:
    return tuple(row.values[metric] for metric in ("pixel_auroc", "pixel_f1max", "pixel_ap"))


def test_table3_has_the_gains_that_the_text_names() -> None:
    first, second, third = (values(row) for row in rows("table3"))
    assert [round(b - a, 1) for a, b in zip(first, second, strict=True)] == [-0.6, 4.3, 5.6]
    assert [round(b - a, 1) for a, b in zip(second, third, strict=True)] == [1.4, 2.0, 1.6]


def test_table1_has_the_gains_that_the_text_names() -> None:
    """Relative to the best other method: +10.3 and +7.7 % on VisA, +2.1 and +1.1 % on MVTec-AD; AUROC −3.0 and −0.8."""
    for dataset, gains in {"visa": (-0.8, 10.3, 7.7), "mvtec": (-3.0, 2.1, 1.1)}.items():
        by_method = {row.method: values(row) for row in rows("table1", dataset) if "pixel_ap" in row.values}
        ours = by_method.pop("PPG+CPS")
        best = [max(column) for column in zip(*by_method.values(), strict=True)]
        assert [round(100 * (own / other - 1), 1) for own, other in zip(ours, best, strict=True)] == list(gains)


def test_the_tables_agree_where_they_show_the_same() -> None:
    last = values(rows("table3")[-1])
    assert max(rows("table2"), key=lambda row: row.values["pixel_f1max"]).changes == {SHAPE: "ellipse", SIZE: 25}
    default = next(row for row in rows("table2") if row.changes == {SHAPE: "ellipse", SIZE: 25})
    ours = next(row for row in rows("table1") if row.method == "PPG+CPS")
    assert values(default) == values(ours) == values(rows("backbones")[0]) == last


@pytest.mark.parametrize("name", published_names())
def test_published_rows_name_what_exists(name: str) -> None:
    table, datasets = load_published(name), known_datasets()
    for row in (*table.rows, *table.transductive):
        assert row.dataset in datasets
        assert row.step is None or row.step in STEPS
        assert set(row.values) <= {*METRICS, "pixel_pro"}
    assert table.grid is None or table.grid in grid_names()


def test_every_variant_of_table2_is_one_published_row() -> None:
    for variant in expand(load_grid("table2"), "paper"):
        assert len([row for row in rows("table2") if is_row_of(row, variant.experiment)]) == 1


def test_a_dataset_is_found_by_its_usual_names(tmp_path: Path) -> None:
    known = known_datasets()
    assert find_dataset(tmp_path / "none", known["mvtec"]) is None
    for name in ("mvtec_loco", "MVTec_AD", "VisA_20220922"):
        (tmp_path / name).mkdir()
    assert find_dataset(tmp_path, known["mvtec"]) == tmp_path / "MVTec_AD"
    assert find_dataset(tmp_path, known["visa"]) == tmp_path / "VisA_20220922"
