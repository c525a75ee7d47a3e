"""The artefact store: one zarr v3 group per stage key, and a ledger of finished items.

    <root>/<stage>/<digest>/zarr.json      group; its attributes hold the whole key
    <root>/<stage>/<digest>/<array>/       one chunk per item along the first axis
    <root>/<stage>/<digest>/ledger.jsonl   one line per finished item, written after its arrays
    <root>/<stage>/<digest>/ledger.*.jsonl the same, of worker processes, until the coordinator has taken them over
    <root>/<stage>/<digest>.lock           held by the coordinator while items are being written

An item is done if and only if the ledger has a line for it; readers compare the item's bytes with the digest in
that line. A process that is killed leaves at most arrays without a line (recomputed) or a torn last line (ignored).
Values that fit in a line (points, scores, flags) live in the line itself, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cascade.storage.atomic import DISK_FULL, is_full
from cascade.storage.errors import CorruptItem, StoreError
from cascade.storage.keys import StageKey, canonical_json, nearest_key
from cascade.storage.ledger import Ledger, Line, line_digest

if TYPE_CHECKING:  # a run that finds everything in the store touches no array, and zarr takes a while to import
    import zarr
    from zarr.core.array_spec import ArrayConfigParams

SCHEMA = 1
_BLAKE2B_DIGITS = 32
_WRITE_EMPTY: ArrayConfigParams = {"write_empty_chunks": True}


@dataclass(frozen=True)
class ArraySpec:
    """One array of an artefact: the shape and dtype of a single item, and whether zstd is worth its time."""

    shape: tuple[int, ...]
    dtype: str
    compress: bool = False


@dataclass(frozen=True)
class Item:
    """A verified item: its arrays by name and its record."""

    arrays: Mapping[str, NDArray[Any]]
    record: Mapping[str, Any]


class Store:
    """The folder that holds every artefact."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def artefact(self, key: StageKey) -> Artefact:
        """The artefact of ``key``, existing or not; nothing is created on disk."""
        return Artefact(self.root / key.stage / key.digest, key)

    def stored_keys(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The components of every stored key, of one stage or of all."""
        pattern = f"{stage or '*'}/*/zarr.json"
        return [_read_key(path) for path in sorted(self.root.glob(pattern))]

    def stored(self) -> list[Artefact]:
        """Every artefact in the store, ordered by stage and digest."""
        return [Artefact(path.parent, StageKey(**_read_key(path))) for path in sorted(self.root.glob("*/*/zarr.json"))]

    def explain_missing(self, key: StageKey) -> str:
        """Why nothing is stored under ``key``: what differs from the most similar artefact of the same stage."""

        def look_up(stage: str, digest: str) -> Mapping[str, Any] | None:
            path = self.root / stage / digest / "zarr.json"
            return _key_at(path) if path.is_file() else None

        changed = nearest_key(key.components, self.stored_keys(key.stage), look_up)
        if changed is None:
            return "nothing of this stage is stored yet"
        shown = "; ".join(changed[:3])
        return f"changed: {shown}" + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")


class Artefact:
    """The items that one stage key has produced.

    Threads may write different items at the same time. Rows are allotted by :meth:`writing`, which holds the
    artefact's lock; the lock is the operating system's, so it ends with the process. ``on_write`` is called after each
    item that this object writes.

    Other processes write through :meth:`for_worker`: the rows are allotted already and chunks are disjoint, so they
    need no lock; each has a ledger of its own.
    """

    def __init__(self, path: Path, key: StageKey, ledger: Ledger | None = None) -> None:
        self.path = path
        self.key = key
        self._ledger = Ledger(path) if ledger is None else ledger
        self._mutex = threading.Lock()
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._rows: dict[str, int] = {}
        self._lines: dict[str, Line] | None = None
        self.on_write: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """``<stage>/<first 12 characters of the digest>``."""
        return f"{self.key.stage}/{self.path.name[:12]}"

    @property
    def exists(self) -> bool:
        """Whether the group is on disk."""
        return (self.path / "zarr.json").is_file()

    def done(self) -> Mapping[str, Mapping[str, Any]]:
        """The record of every finished item, read from the ledger again."""
        with self._mutex:
            self._lines = self._ledger.read()
            return {item: line.record for item, line in self._lines.items()}

    def missing(self, items: Iterable[str]) -> set[str]:
        """Those of ``items`` that are not finished, as far as this object knows; :meth:`done` looks again."""
        lines = self._lines if self._lines is not None else self.done()
        return {item for item in items if item not in lines}

    def record(self, item: str) -> Mapping[str, Any]:
        """The record of a finished item. Raises ``CorruptItem`` if it was altered, ``StoreError`` if not finished."""
        return self._line(item).record

    def read(self, item: str, only: Collection[str] | None = None) -> Item:
        """A finished item, with all its arrays or ``only`` those named; what is read is verified.

        Raises ``CorruptItem`` if a byte differs, and ``StoreError`` if the item is not finished.
        """
        line = self._line(item)
        arrays = {}
        for name in line.digests if only is None else [name for name in only if name in line.digests]:
            try:
                arrays[name] = np.asarray(self._array(name)[line.row])
            except ImportError:  # of zarr or a codec, which says nothing of the chunk
                raise
            except Exception as error:  # zarr and its codecs raise many kinds; all mean that the chunk is unusable
                raise self._corrupt(item, f"{name}: {error}") from error
            if _array_digest(item, name, arrays[name], len(line.digests[name])) != line.digests[name]:
                raise self._corrupt(item, f"{name} differs from its digest")
        return Item(arrays, line.record)

    @contextmanager
    def writing(self, items: Iterable[str], specs: Mapping[str, ArraySpec]) -> Iterator[None]:
        """Create the group if needed, allot a row to each of ``items``, and hold the lock meanwhile.

        Waits while another process writes the same artefact. Raises ``StoreError`` if the folder cannot be written.
        """
        with ExitStack() as held:
            with self._naming_faults():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.path.with_suffix(".lock")))
                self._prepare(list(items), specs)
            try:
                yield
            finally:
                with self._mutex, self._naming_faults():
                    self._ledger.take_over()
                    self._lines = None

    def for_worker(self, items: Iterable[str]) -> Artefact:
        """What another process needs to write ``items``, inside :meth:`writing` of this object; it can be pickled."""
        worker = Artefact(self.path, self.key, self._ledger.for_worker())
        worker._rows = {item: self._rows[item] for item in items if item in self._rows}
        return worker

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "key": self.key, "ledger": self._ledger, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["key"], state["ledger"])  # type: ignore[misc]
        self._rows = state["rows"]

    def write(self, item: str, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
        """Store one item inside :meth:`writing`: the arrays first, then its ledger line.

        ``arrays`` may be a subset of the artefact's arrays, or empty. ``record`` must be JSON data without NaN.
        Raises ``StoreError`` if the disk is full or fails.
        """
        row = self._rows[item]
        with self._naming_faults():
            for name, value in arrays.items():
                self._array(name)[row] = value
        digests = {name: _array_digest(item, name, value) for name, value in arrays.items()}
        line = Line(item, row, digests, line_digest(item, record, digests), record)
        with self._mutex, self._naming_faults():
            self._ledger.append(line)
            if self._lines is not None:
                self._lines[item] = line
        if self.on_write is not None:
            self.on_write()

    def forget(self, item: str) -> None:
        """Mark a damaged item as not done, so that it is computed again."""
        with self._mutex:
            self._ledger.forget(item)
            self._lines = None

    def nbytes(self) -> int:
        """Bytes on disk, ledger included."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        """Say of an error of the operating system where it was, and what to do."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            if is_full(error):
                raise StoreError(f"{self.path}: {DISK_FULL}") from error
            raise StoreError(
                f"{self.path}: cannot write to the store ({error.strerror or error}); check the disk and permissions"
            ) from error

    def _corrupt(self, item: str, reason: str) -> CorruptItem:
        return CorruptItem(f"{self.key.stage}/{self.path.name}", item, reason)

    def _line(self, item: str) -> Line:
        with self._mutex:
            if self._lines is None:
                self._lines = self._ledger.read()
            line = self._lines.get(item)
        if line is None:
            raise StoreError(f"{self.name}: item {item} is not in the store; run the stage again")
        if not line.intact:
            raise self._corrupt(item, "ledger line differs from its digest")
        return line

    def _prepare(self, items: list[str], specs: Mapping[str, ArraySpec]) -> None:
        if not self.exists:
            import zarr

            zarr.create_group(self.path, attributes={"schema": SCHEMA, "key": self.key.components})
        if _read_key(self.path / "zarr.json") != json.loads(canonical_json(self.key.components)):
            raise StoreError(f"{self.path}: holds another key than its name says; move this folder away")
        with self._mutex:
            self._ledger.end_torn_line()
            self._ledger.take_over()
            self._lines = self._ledger.read()
            known = {item: line.row for item, line in self._lines.items()}
        free = max(known.values(), default=-1) + 1
        fresh = [item for item in items if item not in known]
        self._rows = known | {item: free + offset for offset, item in enumerate(fresh)}
        self._arrays.clear()
        for name, spec in specs.items():
            self._grow(name, spec, free + len(fresh))

    def _grow(self, name: str, spec: ArraySpec, rows: int) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        if (self.path / name / "zarr.json").is_file():
            array = self._array(name)
            if array.shape[0] < rows:
                array.resize((rows, *spec.shape))
            return
        zarr.create_array(
            self.path / name,
            shape=(rows, *spec.shape),
            chunks=(1, *spec.shape),
            dtype=spec.dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()] if spec.compress else [Crc32cCodec()],
            fill_value=0,
            config=_WRITE_EMPTY,
        )

    def _array(self, name: str) -> zarr.Array[Any]:
        import zarr

        with self._mutex:
            if name not in self._arrays:
                # write_empty_chunks is not persisted by zarr, and open_array ignores its argument of that name
                self._arrays[name] = zarr.open_array(self.path / name, mode="r+").with_config(_WRITE_EMPTY)
            return self._arrays[name]


@lru_cache(maxsize=4096)
def _key_at(path: Path) -> dict[str, Any]:
    """As :func:`_read_key`, once for each path: what has a digest for its name never changes."""
    return _read_key(path)


def _read_key(path: Path) -> dict[str, Any]:
    try:
        attributes = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        key: dict[str, Any] = attributes["key"]
        if attributes["schema"] != SCHEMA:
            raise StoreError(f"{path.parent}: made by another version of this program; move it away or use it there")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not an artefact of this program; move it out of the store") from error
    return key


def _array_digest(item: str, name: str, array: NDArray[Any], digits: int = 64) -> str:
    """SHA-256, which processors compute faster than any digest of its strength; BLAKE2b if it shall have 32 digits.

    Ledgers written before the change hold the latter.
    """
    value = np.ascontiguousarray(array)
    head = f"{item}|{name}|{value.dtype.str}|{value.shape}|".encode()
    digest = hashlib.blake2b(head, digest_size=16) if digits == _BLAKE2B_DIGITS else hashlib.sha256(head)
    digest.update(value.data.cast("B") if value.size else b"")
    return digest.hexdigest()
