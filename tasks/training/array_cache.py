"""Arrays that are dear to make and read again and again, one file for each name, filled once and in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.storage.errors import ConfigError

Row = Mapping[str, NDArray[np.generic]]


class ArrayCache:
    """``count`` rows of named arrays in a folder; a fill that was stopped goes on where it was.

    Args:
        folder: created if need be; what it holds must be of the same ``recipe``.
        count: rows when full.
        recipe: what the rows depend on, as JSON.

    Raises:
        ConfigError: the folder holds rows of another recipe.
    """

    def __init__(self, folder: Path, count: int, recipe: Mapping[str, object]) -> None:
        self._folder, self._count = folder, count
        self._state = folder / "rows.json"
        self._recipe = {**recipe, "count": count}
        self._done = 0
        if self._state.exists():
            found = json.loads(self._state.read_text())
            if found["recipe"] != self._recipe:
                raise ConfigError(f"{folder} holds examples of another recipe; use another folder, or delete this one")
            self._done = found["done"]

    @property
    def done(self) -> int:
        """Rows that are there."""
        return self._done

    def fill(self, rows: Iterator[Row]) -> Iterator[int]:
        """Write the missing rows and yield how many there are after each; ``rows`` start at :attr:`done`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[np.generic]] = {}
        while self._done < self._count:
            row = next(rows)
            for name, value in row.items():
                if name not in arrays:
                    arrays[name] = self._opened(name, value)
                arrays[name][self._done] = value
            self._done += 1
            if self._done % 50 == 0 or self._done == self._count:
                for array in arrays.values():
                    if isinstance(array, np.memmap):
                        array.flush()
                self._state.write_text(json.dumps({"recipe": self._recipe, "done": self._done}))
            yield self._done

    def rows(self, name: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.generic]:
        """``[len(indices), ...]`` of one array, copied."""
        array = np.load(self._folder / f"{name}.npy", mmap_mode="r")
        return np.stack([array[index] for index in indices])

    def _opened(self, name: str, like: NDArray[np.generic]) -> NDArray[np.generic]:
        path = self._folder / f"{name}.npy"
        if path.exists() and self._done:
            present: NDArray[np.generic] = np.load(path, mmap_mode="r+")
            return present
        shape = (self._count, *like.shape)
        return np.lib.format.open_memmap(path, "w+", like.dtype, shape)
