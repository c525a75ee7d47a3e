"""Numbers of other papers: that they are those of their sources, agree with each other, and are shown by command."""

from __future__ import annotations

import pytest

from cascade.configs.loader import validate
from cascade.configs.published import PublishedRow, PublishedTable, load_published
from cascade.storage.errors import ConfigError
from tests.flows.conftest import Cli

ZERO_SHOT = load_published("zero_shot")
PIXELS = ("pixel_auroc", "pixel_f1max", "pixel_ap", "pixel_pro")


def values(rows: tuple[PublishedRow, ...], method: str, dataset: str) -> tuple[float | None, ...]:
    (row,) = [row for row in rows if (row.method, row.dataset) == (method, dataset)]
    return tuple(row.values.get(name) for name in PIXELS)


@pytest.mark.parametrize(
    ("method", "dataset", "expected"),
    [
        ("UniADet, CLIP", "mvtec", (None, None, 42.8, None)),
        ("UniADet, DINOv2-R", "visa", (None, None, 32.7, None)),
        ("UniADet, DINOv3", "mvtec", (None, None, 52.7, None)),
        ("AnomalyVFM, RADIO", "mvtec", (92.0, 49.2, 49.9, 87.6)),
        ("AnomalyVFM, RADIO", "visa", (95.8, 32.0, 26.7, 90.5)),
        ("AnomalyVFM, CLIP", "visa", (94.5, 30.4, 24.7, 86.7)),
        ("VisualAD, DINOv2", "mvtec", (91.3, 47.4, 45.4, 88.6)),
        ("AF-CLIP", "dtd_synthetic", (98.6, 62.9, 66.5, 93.8)),
        ("Crane+", "ksdd", (99.2, 62.4, None, 97.4)),
    ],
)
def test_newer_methods(method: str, dataset: str, expected: tuple[float | None, ...]) -> None:
    assert values(ZERO_SHOT.rows, method, dataset) == expected


def test_transductive_methods_have_a_block_of_their_own() -> None:
    assert values(ZERO_SHOT.transductive, "MuSc, CLIP", "mvtec") == (97.3, 62.6, 62.7, 93.8)
    assert values(ZERO_SHOT.transductive, "CoDeGraph, DINOv2", "mvtec") == (None, 69.1, 71.9, None)
    alone = {row.method.partition(",")[0] for row in ZERO_SHOT.rows}
    together = {row.method.partition(",")[0] for row in ZERO_SHOT.transductive}
    assert together == {"MuSc", "CoDeGraph", "PA-CLIP", "ACR"}
    assert not alone & together


def test_every_row_says_where_it_stands_and_no_pair_is_there_twice() -> None:
    rows = (*ZERO_SHOT.rows, *ZERO_SHOT.transductive)
    assert all(row.source in ZERO_SHOT.sources and row.values for row in rows)
    assert {row.source for row in rows} == set(ZERO_SHOT.sources)
    pairs = [(row.method, row.dataset) for row in rows]
    assert len(pairs) == len(set(pairs))


def test_it_agrees_with_the_papers_own_table() -> None:
    compared = 0
    for row in load_published("table1").rows:
        own = [each for each in ZERO_SHOT.rows if (each.method, each.dataset) == (row.method, row.dataset)]
        for each in own:
            shared = row.values.keys() & each.values.keys()
            assert {name: row.values[name] for name in shared} == {name: each.values[name] for name in shared}
            compared += len(shared)
    assert compared == 52


def test_a_source_that_is_not_there_is_refused() -> None:
    row = {"method": "A", "dataset": "mvtec", "source": "reposotory", "values": {"pixel_ap": 1.0}}
    table = {"title": "t", "source": "s", "frame": "f", "sources": {"repository": "x"}, "rows": [row]}
    with pytest.raises(ConfigError, match="no source 'reposotory'; did you mean 'repository'"):
        validate(PublishedTable, table)


def test_they_are_shown_by_command_and_nothing_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli("reproduce", "zero_shot")
    assert (shown.code, shown.err) == (0, "")
    lines = [line.split() for line in shown.out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line[:1] == ["transductive:"])
    alone, together = lines[:start], lines[start:]
    assert ["UniADet,", "DINOv2-R", "visa", "32.7", "91.3", "not", "stated", "uniadet"] in alone
    assert ["AF-CLIP", "btad", "94.4", "47.5", "41.9", "78.4", "518", "px", "repositories"] in alone
    assert ["MuSc,", "CLIP", "visa", "98.8", "48.8", "45.1", "92.7", "518", "px", "musc"] in together
    assert not [line for line in alone if line[:1] == ["MuSc,"]]
    for name, where in ZERO_SHOT.sources.items():
        assert f"source {name}: {where}" in shown.out
    assert "note FiLo: " in shown.out


def test_a_table_that_is_not_there_names_the_nearest(cli: Cli) -> None:
    assert "did you mean 'zero_shot'" in cli("reproduce", "zeroshot").refusal()
