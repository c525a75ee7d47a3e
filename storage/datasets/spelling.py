"""The files that a table means, however it spells them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

from cascade.storage.datasets.listing import is_plain
from cascade.storage.datasets.masks import spelled


class Spelling:
    """Finds the files of one table; a folder is listed once.

    Backslashes are separators, as on Windows. An absolute path to something in the table's folder becomes relative.
    Where there is no such file, the one is taken whose name differs only in case or in the Unicode form of accents, if
    there is just one. What cannot be made out stays as it is.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is the table's, as it was given."""
        self.root = folder.resolve()
        self._given = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def path(self, written: str) -> str:
        """A path from the table relative to ``root``, POSIX, spelled as its file is."""
        plain = PurePosixPath(written.replace("\\", "/"))
        for folder in (self.root, self._given):
            if plain.is_relative_to(folder.as_posix()):
                plain = plain.relative_to(folder.as_posix())
        if not is_plain(str(plain)) or (self.root / plain).exists():
            return str(plain)
        found = self.root
        for part in plain.parts:
            alike = [part] if (found / part).exists() else self._alike(found, part)
            if len(alike) != 1:
                return str(plain)
            found /= alike[0]
        return found.relative_to(self.root).as_posix()

    def _alike(self, folder: Path, name: str) -> list[str]:
        if folder not in self._names:
            names: defaultdict[str, list[str]] = defaultdict(list)
            for child in folder.iterdir() if folder.is_dir() else ():
                names[spelled(child.name)].append(child.name)
            self._names[folder] = names
        return self._names[folder].get(spelled(name), [])
