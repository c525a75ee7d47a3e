"""What may be the name of a file or folder: a name that comes from data must never lead anywhere else."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

from cascade.storage.errors import DataError

MAX_BYTES = 200
"""Of one name in UTF-8; file systems take 255, and what is written puts a suffix and a digest behind it."""

_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, bytes that are not UTF-8, line and paragraph separators."""


def safe_path(name: str, what: str, *, nested: bool = False) -> PurePosixPath:
    """``name`` as a relative path of one part, or of several between slashes if it may be ``nested``.

    Raises:
        DataError: a part is empty, ``.`` or ``..``, too long, or has a separator or an unprintable character; the
            message says ``what`` the name is of.
    """
    for part in name.split("/") if nested else [name]:
        fault = _fault(part)
        if fault:
            raise DataError(f"{what} {_shown(name)} {fault}; choose another name")
    return PurePosixPath(name)


def _fault(part: str) -> str | None:
    """Why ``part`` may not be the name of a file or folder; ``None`` if it may."""
    if not part.strip():
        return "is empty, or has an empty part"
    if part in (".", ".."):
        return "leads to another folder"
    if "/" in part or "\\" in part:
        return "has a slash or backslash in it"
    if any(unicodedata.category(character) in _UNPRINTABLE for character in part):
        return "has a control character in it, or bytes that are not UTF-8"
    if len(part.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    return None


def printable(text: str) -> str:
    """``text`` for a message: control characters, which could steer a terminal, become escapes such as ``\\x1b``."""
    return "".join(ascii(each)[1:-1] if unicodedata.category(each) in _UNPRINTABLE else each for each in text)


def _shown(name: str) -> str:
    """A name for a message: one short line, whatever it holds."""
    shown = f"'{printable(name)}'"
    return shown if len(shown) <= 80 else f"{shown[:60]}…{shown[-10:]}"
