"""A new database of Prefect's, kept between runs: a server of our own takes four seconds to make one.

It is kept in the user's cache, one for each version of Prefect, and copied into the home of the next server. It holds
nothing of any run. Where it cannot be kept or is damaged, the server makes its own.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from cascade.storage.atomic import replacing
from cascade.storage.errors import StoreError

FILE = "prefect.db"
"""As Prefect calls it in its home."""


def kept_database() -> Path:
    """Where the database is kept. Raises ``RuntimeError`` if the user has no home folder."""
    return Path.home() / ".cache" / "clip-sam-cascade" / f"prefect-{version('prefect')}.db"


def lay_database(home: Path) -> None:
    """Copy the kept database into the home of a server that is about to start, if it is there and sound."""
    try:
        kept = kept_database()
        if _is_sound(kept):
            shutil.copyfile(kept, home / FILE)
    except (RuntimeError, OSError):
        (home / FILE).unlink(missing_ok=True)


def keep_database(home: Path) -> None:
    """Keep a copy of the database of a server that has just come up, unless a sound one is kept."""
    try:
        kept = kept_database()
        if not (home / FILE).is_file() or _is_sound(kept):
            return
        with (
            replacing(kept) as part,
            closing(sqlite3.connect(home / FILE)) as source,
            closing(sqlite3.connect(part)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, with no journal beside it
    except (RuntimeError, OSError, StoreError, sqlite3.Error):
        return


def _is_sound(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.Error:
        return False
