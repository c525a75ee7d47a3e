"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from cascade.storage.errors import ConfigError


def expanded(path: str | Path) -> Path:
    """A path whose leading ``~`` has been replaced by the home folder; others stay as they are.

    Raises ``ConfigError`` if there is no such home folder, or nothing is written at all.
    """
    if path == "":
        raise ConfigError("an empty path; write one, or leave it out for the default")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: it is not known which folder '~' is here; write the whole path") from error
