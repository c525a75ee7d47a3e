"""Where files go: never onto others, never after the work is done in vain, and where people look for them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from cascade.flows.generate import generate_dataset
from cascade.flows.run.folder import default_folder, link_latest
from cascade.flows.run.history import read_history
from cascade.localisers.mutual import Mutual
from cascade.storage.datasets import Rules, inspect_dataset
from cascade.storage.paths import PHOTOGRAPHS, require_writable
from tests.flows.conftest import Bench, Cli, files_of, save_adapter


@pytest.fixture
def occupied(tmp_path: Path) -> Callable[[str], Path]:
    """A place to which nothing can be written."""

    def make(kind: str) -> Path:
        place = tmp_path / "occupied"
        if kind == "too long":
            return tmp_path / ("x" * 300)
        place.write_text("a file", encoding="utf-8")
        return place / "below" if kind == "below a file" else place

    return make


@pytest.mark.parametrize("kind", ["a file", "below a file", "too long"])
@pytest.mark.usefixtures("no_networks")
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    cli: Cli, bench: Bench, occupied: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    place = occupied(kind)
    before = files_of(tmp_path)
    commands = [
        [*bench.arguments(), "--out", place],
        ["demo", "--engine", "local", "--out", place],
        ["ablate", "fusion", *bench.arguments()[2:], "--out", place],
        ["reproduce", "table2", "--dataset-root", tmp_path, "--out", place],
        ["generate", place],
        ["export", tmp_path, place],
        ["train", "april_gan", "--dataset", bench.dataset, "--out", place / "adapter.safetensors"],
        ["train", "mini-clip", "--out", place],
        ["train", "mini-sam", "--out", place],
    ]
    for arguments in commands:
        result = cli(*arguments)
        assert result.code == 2, (arguments, result)
        assert str(place) in result.refusal()
    assert files_of(tmp_path) == before


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade.storage.errors import ConfigError

    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # root may write everywhere
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written to"):
        require_writable(tmp_path / "a" / "b")


@pytest.mark.usefixtures("no_networks")
def test_a_run_never_replaces_another(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli(*bench.arguments(), "--out", out).code == 0
    before, rows = files_of(out), len(read_history(tmp_path / "runs"))
    for arguments in (
        bench.arguments("score.weight=0.25"),
        ["ablate", "fusion", *bench.arguments()[2:]],
        ["reproduce", "table2", "--dataset-root", tmp_path],
    ):
        result = cli(*arguments, "--out", out)
        assert result.code == 2
        assert "holds a run already; choose another folder" in result.refusal()
    assert files_of(out) == before
    assert len(read_history(tmp_path / "runs")) == rows


def test_an_unfinished_run_may_be_written_again(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli(*bench.arguments(), "--out", out).code == 0
    (out / "run.json").unlink()
    assert cli(*bench.arguments(), "--out", out).code == 0


@pytest.mark.usefixtures("no_networks")
def test_training_never_replaces_an_adapter(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "adapter.safetensors")
    before, store = path.read_bytes(), files_of(bench.store)
    result = cli("train", "april_gan", "--dataset", bench.dataset, "--store", bench.store)
    assert result.code == 2
    assert "adapter.safetensors: is there already" in result.refusal()
    assert path.read_bytes() == before
    assert files_of(bench.store) == store


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--set", "dataset.categories=[wood]", "--dataset", "good"], 2, "needs defective images"),
        (["--train", "start=short.safetensors"], 4, "short.safetensors: linear layers"),
        (["--train", "start=broken.safetensors"], 4, "broken.safetensors: damaged"),
        (["--set", "localise.weights=short.safetensors"], 4, "short.safetensors: does not fit CLIP"),
    ],
)
def test_a_training_that_cannot_succeed_writes_nothing(
    cli: Cli, bench: Bench, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    generate_dataset(tmp_path / "good", categories=("wood",), good=1, defective=0, size=96)
    save_adapter(tmp_path / "short.safetensors", layers=1)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    before = files_of(tmp_path)
    result = cli("train", "april_gan", "--dataset", bench.dataset, "--store", tmp_path / "new", *arguments)
    assert result.code == code, result
    assert part in result.refusal()
    assert files_of(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_generated_and_exported_files_join_no_others(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    assert cli(*bench.arguments(), "--out", tmp_path / "run").code == 0
    there = tmp_path / "there"
    there.mkdir()
    assert cli("export", tmp_path / "run", there).code == 0
    for arguments in (["export", tmp_path / "run", there], ["generate", there, "--category", "wood"]):
        before = files_of(there)
        assert "holds files already" in cli(*arguments).refusal()
        assert files_of(there) == before


def test_new_files_have_ordinary_permissions(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        trained = cli(
            *("train", "april_gan", "--dataset", bench.dataset, "--store", tmp_path / "tokens", "--train", "epochs=1"),
            *(part for override in bench.overrides if "adapter" not in override for part in ("--set", override)),
        )
        assert trained.code == 0, trained.err
        assert f"new store in {tmp_path / 'tokens'}" in trained.out
        assert cli(*bench.arguments(), "--out", tmp_path / "out").code == 0
    finally:
        os.umask(umask)
    for path in (tmp_path / "adapter.safetensors", *(tmp_path / "out").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o640, path


@pytest.mark.parametrize("frame", ["96", "native"])
def test_both_forms_of_a_table_are_read_alike(cli: Cli, bench: Bench, tmp_path: Path, frame: str) -> None:
    assert cli(*bench.arguments(f"score.frame={frame}"), "--out", tmp_path / "out").code == 0
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "out" / "results.parquet"))
    assert set(table["frame"]) == {"96x96" if frame == "96" else "native"}


def test_latest_leads_to_the_newest_run(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    latest = tmp_path / "runs" / "mini" / "latest"
    for weight in (0.5, 0.25):
        assert cli(*bench.arguments(f"score.weight={weight}")).code == 0
        newest = max(path for path in latest.parent.iterdir() if path.name[0].isdigit())
        assert latest.resolve() == newest
        assert not latest.readlink().is_absolute()
    assert cli(*bench.arguments(), "--out", tmp_path / "elsewhere").code == 0
    assert latest.resolve() == newest
    assert not (tmp_path / "latest").exists()
    assert cli("baseline", "set", "runs/mini/latest").code == 0
    assert str(newest) in cli("baseline", "show").out
    assert cli("export", "runs/mini/latest", "maps").code == 0


def test_latest_never_goes_back_and_never_replaces_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    old, new = (tmp_path / (now + timedelta(hours=hour)).strftime("%Y%m%dT%H%M%S.%fZ") for hour in (0, 1))
    for folder in (new, old, tmp_path / "named"):
        folder.mkdir()
        link_latest(folder)
    assert (tmp_path / "latest").resolve() == new
    taken = default_folder(tmp_path, "taken")
    (taken.parent / "latest").mkdir(parents=True)
    link_latest(taken)
    assert not (taken.parent / "latest").is_symlink()

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_latest(default_folder(tmp_path, "without"))
    assert sorted(path.name for path in taken.parent.iterdir()) == ["latest"]


def test_a_new_store_is_named_once(cli: Cli, empty: Bench, tmp_path: Path) -> None:
    first = cli(*empty.arguments(), "--out", tmp_path / "first")
    assert first.out.splitlines()[0] == f"new store in {empty.store}"
    assert "new store" not in cli(*empty.arguments(), "--out", tmp_path / "second").out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_may_be_repeated_and_shows_what_it_found(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in PHOTOGRAPHS.rglob("hazelnut/**/*.*g"):
        small = tmp_path / "photographs" / path.relative_to(PHOTOGRAPHS)
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((96, 96), Image.Resampling.NEAREST).save(small)
    monkeypatch.setattr("cascade.flows.demo.PHOTOGRAPHS", tmp_path / "photographs")
    monkeypatch.setattr("cascade.flows.demo.generate_dataset", partial(generate_dataset, size=96))
    monkeypatch.setattr("cascade.flows.demo.CATEGORIES", ("carpet",))
    runs = tmp_path / "runs" / "demo"
    for count in (1, 2):
        result = cli("demo", "--engine", "local")
        assert result.code == 0, result.err
        assert len(list(runs.glob("*-mini*/2*/run.json"))) == 4 * count
    assert "miss" not in result.out
    for name in ("photographs-mini", "photographs-mini_batch", "generated-mini", "generated-mini_batch"):
        (picture,) = [line.strip() for line in result.out.splitlines() if f"/{name}/" in line and "pictures" in line]
        with Image.open(tmp_path / picture) as sheet:
            assert sheet.format == "PNG"
        assert (runs / name / "latest").resolve() == (tmp_path / picture).parent
        results = pd.read_csv(runs / name / "latest" / "results.csv")
        assert set(results["category"]) == {"hazelnut" if name.startswith("photo") else "carpet", "mean"}
    assert len(set(read_history(tmp_path / "runs")["folder"])) == 8


def test_the_photographs_of_the_demo_are_a_sound_dataset_for_both_presets() -> None:
    report = inspect_dataset(PHOTOGRAPHS, Rules(), decode=True)
    assert not report.errors
    assert not report.warnings
    for category in report.manifest.categories:
        mine = [record for record in report.manifest if record.category == category]
        assert [record.label for record in mine].count(1) == 6
        assert len(mine) >= Mutual.MIN_BATCH
    assert sum(path.stat().st_size for path in PHOTOGRAPHS.rglob("*") if path.is_file()) < 2_000_000
    assert not any(Image.open(path).getexif() for path in PHOTOGRAPHS.rglob("*.jpg"))
    for name in report.manifest.categories:
        assert f"`{name}`" in (PHOTOGRAPHS / "ATTRIBUTION.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_named_and_what_is_kept(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    (ledger,) = (bench.store / "score").glob("*/ledger.jsonl")
    whole = ledger.read_bytes()
    ledger.unlink()
    ledger.symlink_to("/dev/full")
    result = cli(*bench.arguments(), "--out", tmp_path / "out")
    assert result.code == 3
    line = result.refusal()
    assert line.startswith(f"error: {ledger.parent}: the disk is full; what the store has finished is kept")
    ledger.unlink()
    ledger.write_bytes(whole)
    assert cli(*bench.arguments(), "--out", tmp_path / "out").code == 0


def test_a_full_disk_below_the_tables_is_named(
    cli: Cli, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    result = cli(*bench.arguments(), "--out", tmp_path / "out")
    assert result.code == 3
    assert result.refusal().startswith(f"error: {tmp_path / 'out'}: the disk is full; what the store has finished")


def test_a_store_that_cannot_be_one_is_named(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        result = cli(*replace(bench, store=place).arguments(), "--out", tmp_path / "out")
        assert result.code == 3
        assert str(place) in result.refusal()
        assert not (tmp_path / "out").exists()
