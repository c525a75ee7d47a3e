"""The files that a table means, however it spells them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cascade.storage.datasets.listing import is_plain
from cascade.storage.datasets.masks import spelled


def as_on_disk(root: Path, path: str, home: Path | None = None) -> str:
    """A path from a table, relative to ``root`` (absolute, resolved), POSIX, spelled as its file is.

    Backslashes are separators, as on Windows. An absolute path to something below ``root``, or below ``home``, the same
    folder as it was given, becomes relative. Where there is no such file, the one is taken whose name differs only in
    case or in the Unicode form of accents, if there is just one. What cannot be made out stays as it is.
    """
    plain = PurePosixPath(path.replace("\\", "/"))
    for folder in (root, home):
        if folder is not None and plain.is_relative_to(folder.as_posix()):
            plain = plain.relative_to(folder.as_posix())
    written = plain.as_posix()
    if not is_plain(written) or (root / plain).exists():
        return written
    found = root
    for part in plain.parts:
        if (found / part).exists():
            found /= part
            continue
        alike = _alike(found, part)
        if alike is None:
            return written
        found = alike
    return found.relative_to(root).as_posix()


def _alike(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        return None
    found = [child for child in folder.iterdir() if spelled(child.name) == spelled(name)]
    return found[0] if len(found) == 1 else None
