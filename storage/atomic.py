"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascade.storage.errors import StoreError

DISK_FULL = "the disk is full; what the store has finished is kept: make room, and give the same command again"


def is_full(error: OSError) -> bool:
    """Whether there is no room left on the disk, or none that this user may take."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the name ``path`` once the block has ended well.

    Raises ``StoreError`` if the disk is full.

    The file has the permissions of any new file there, also if the writer gives it others, as safetensors does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        part.touch(exist_ok=False)
        permissions = part.stat().st_mode
        yield part
        part.chmod(permissions)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if is_full(error):
            raise StoreError(f"{path.parent}: {DISK_FULL}") from error
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
