"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from cascade.storage.errors import ConfigError

PHOTOGRAPHS = Path(__file__).parent / "photographs"
"""A dataset of photographs of defects that comes with the package; ``ATTRIBUTION.md`` there says whose they are."""


def expanded(path: str | Path) -> Path:
    """A path whose leading ``~`` has been replaced by the home folder; others stay as they are.

    Raises ``ConfigError`` if there is no such home folder, nothing is written at all, or the name is not UTF-8.
    """
    if path == "":
        raise ConfigError("an empty path; write one, or leave it out for the default")
    require_utf8(str(path))
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: it is not known which folder '~' is here; write the whole path") from error


def require_utf8(text: str) -> None:
    """Raise ``ConfigError`` if a name has bytes that are not UTF-8, in which tables are written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{ascii(text)[1:-1]}: a name that is not UTF-8; rename the file or folder") from None


def require_writable(folder: Path) -> None:
    """Raise ``ConfigError`` unless a folder can be written to, or be made where it is wanted; nothing is written."""
    require_utf8(str(folder.absolute()))
    for place in (folder, *folder.absolute().parents):
        try:
            place.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be a folder ({error.strerror}); choose another") from error
        if not place.is_dir():
            raise ConfigError(f"{folder}: {place} is a file, not a folder; choose another place")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder}: {place} cannot be written to; choose another place, or mend its permissions")
        return


def require_new(folder: Path) -> None:
    """Raise ``ConfigError`` unless a folder is empty or not there yet, and can be written to."""
    require_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds files already; choose a new folder, or empty this one")
