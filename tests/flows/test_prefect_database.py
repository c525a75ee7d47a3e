"""The database of Prefect's that is kept between runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cascade.flows.prefect_database import FILE, keep_database, kept_database, lay_database


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


def server_home(folder: Path, rows: int = 3) -> Path:
    """A home with a database in use: its last rows are in the journal beside it."""
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE versions (number INTEGER)")
        database.executemany("INSERT INTO versions VALUES (?)", [(each,) for each in range(rows)])
        database.commit()
    return folder


def rows_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM versions").fetchone()[0])


def test_what_is_kept_of_one_server_is_laid_for_the_next(tmp_path: Path) -> None:
    lay_database(tmp_path)  # nothing is kept yet
    assert not (tmp_path / FILE).exists()
    keep_database(server_home(tmp_path / "first"))
    (tmp_path / "next").mkdir()
    lay_database(tmp_path / "next")
    assert rows_of(tmp_path / "next" / FILE) == 3
    assert list(kept_database().parent.iterdir()) == [kept_database()]


def test_the_first_sound_one_stays(tmp_path: Path) -> None:
    keep_database(server_home(tmp_path / "first"))
    keep_database(server_home(tmp_path / "second", rows=9))
    assert rows_of(kept_database()) == 3


@pytest.mark.parametrize("damage", [b"", b"no database", None])
def test_a_damaged_one_is_not_laid_and_is_replaced(tmp_path: Path, damage: bytes | None) -> None:
    keep_database(server_home(tmp_path / "first", rows=5000))
    whole = kept_database().read_bytes()
    kept_database().write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    (tmp_path / "next").mkdir()
    lay_database(tmp_path / "next")
    assert not (tmp_path / "next" / FILE).exists()
    keep_database(server_home(tmp_path / "third"))
    assert rows_of(kept_database()) == 3


def test_no_home_folder_and_no_room_are_no_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user").write_text("a file where the home folder should be")
    home = server_home(tmp_path / "first")
    keep_database(home)
    lay_database(tmp_path)
    assert not (tmp_path / FILE).exists()
