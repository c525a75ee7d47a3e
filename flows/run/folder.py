"""Where the tables of runs go: a new folder for each, and a link to the newest."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cascade.storage.errors import ConfigError
from cascade.storage.names import safe_path
from cascade.storage.paths import require_writable

_TIME = "%Y%m%dT%H%M%S.%fZ"
_LATEST = "latest"
_HELD = {"run.json": "a run", "ablation.json": "an ablation", "reproduction.csv": "a reproduction"}
"""The files that say what a folder holds."""


def default_folder(runs: Path, name: str) -> Path:
    """``<runs>/<experiment>/<UTC time>``."""
    return runs / safe_path(name, "name of the experiment") / datetime.now(UTC).strftime(_TIME)


def require_unused(folder: Path) -> None:
    """Raise ``ConfigError`` if tables in a folder would replace others, or if it cannot be written to."""
    require_writable(folder)
    for file, held in _HELD.items():
        if (folder / file).exists():
            resume = f"go on with `cascade ablate --resume {folder}`, or " if file == "ablation.json" else ""
            raise ConfigError(f"{folder}: holds {held} already; {resume}choose another folder")


def link_latest(folder: Path) -> None:
    """Let ``latest`` beside a folder that :func:`default_folder` has named lead to the newest of them.

    Where there are no symbolic links, or something else has that name, there is none.
    """
    link = folder.with_name(_LATEST)
    fresh = folder.with_name(f".{_LATEST}.{folder.name}")
    try:
        datetime.strptime(folder.name, _TIME)
        if link.is_symlink() and link.readlink().name > folder.name:
            return
        fresh.symlink_to(folder.name, target_is_directory=True)
        fresh.replace(link)
    except (ValueError, OSError):
        fresh.unlink(missing_ok=True)
