"""Where Prefect's server is, asked without Prefect, which takes more than a second to say so."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

_URL = "PREFECT_API_URL"
_PROFILES = "PREFECT_PROFILES_PATH"


def configured_server() -> str | None:
    """The address of the Prefect server that is configured, or ``None``.

    It is looked for where Prefect does, in its order: the environment; ``.env``, ``prefect.toml`` and
    ``pyproject.toml`` of the current folder; the active profile. A file that cannot be read configures nothing.
    """
    path = profiles_file()
    profiles = {} if path is None else _table(path)
    active = os.environ.get("PREFECT_PROFILE") or _entry(profiles, "active")
    found = (
        _variable(_URL),
        _entry(_table("prefect.toml"), "api", "url"),
        _entry(_table("pyproject.toml"), "tool", "prefect", "api", "url"),
        _entry(profiles, "profiles", active, _URL),
    )
    return next((str(each) for each in found if each is not None), None) or None


def profiles_file() -> Path | None:
    """Prefect's file of profiles, if there is one."""
    named = (
        _variable(_PROFILES)
        or _entry(_table("prefect.toml"), "profiles_path")
        or _entry(_table("pyproject.toml"), "tool", "prefect", "profiles_path")
    )
    try:
        path = Path(named or Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect") / "profiles.toml")
        return path if path.is_file() else None
    except (RuntimeError, OSError):  # no home folder, or one that may not be entered
        return None


def _variable(name: str) -> str | None:
    """A variable of the environment, else of the file ``.env``."""
    if name in os.environ or not Path(".env").is_file():
        return os.environ.get(name)
    from dotenv import dotenv_values

    return dotenv_values(".env").get(name)


def _table(path: Path | str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _entry(table: Any, *keys: str | None) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table
