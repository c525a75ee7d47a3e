"""The ledger of an artefact: which items are finished, in which row, and the digests of what they hold.

One JSON line for each item, written after its arrays. Worker processes write ledgers of their own beside it, because
appends from several machines to one file may be lost; the coordinator takes them over.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cascade.storage.keys import canonical_json

NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Line:
    """A finished item.

    Attributes:
        item: its identity.
        row: along the first axis of the artefact's arrays.
        digests: of each of its arrays.
        digest: of item, record and digests.
        record: what it has beside arrays, as JSON data.
    """

    item: str
    row: int
    digests: Mapping[str, str]
    digest: str
    record: Mapping[str, Any]

    @cached_property
    def intact(self) -> bool:
        """Whether the line has the digest that it says; found out once for each line that was read."""
        return line_digest(self.item, self.record, self.digests) == self.digest


def line_digest(item: str, record: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """BLAKE2b, 32 hex digits, of what a line says."""
    return hashlib.blake2b(canonical_json([item, record, dict(digests)]).encode(), digest_size=16).hexdigest()


class Ledger:
    """The ledger in the folder of an artefact, or that of one worker in the same folder.

    Args:
        folder: of the artefact.
        name: of the file.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.folder = folder
        self.name = name

    @property
    def path(self) -> Path:
        """Where this ledger's own lines go."""
        return self.folder / self.name

    def for_worker(self) -> Ledger:
        """A ledger that one other process writes."""
        return Ledger(self.folder, f"ledger.{uuid.uuid4().hex}.jsonl")

    def read(self) -> dict[str, Line]:
        """The line of every finished item, those of workers included."""
        while True:
            try:
                states = [(path, path.stat()) for path in self._all()]
                return dict(_lines(tuple((path, at.st_ino, at.st_size, at.st_mtime_ns) for path, at in states)))
            except FileNotFoundError:
                continue  # a coordinator has just taken a worker's ledger over

    def append(self, line: Line) -> None:
        """Say that an item is finished. Raises ``ValueError`` if its record is no JSON data, or holds NaN."""
        data = {
            "item": line.item,
            "row": line.row,
            "arrays": line.digests,
            "digest": line.digest,
            "record": line.record,
        }
        self._write([canonical_json(data)])

    def forget(self, item: str) -> None:
        """Say that an item is not finished after all."""
        self.take_over()
        self.end_torn_line()
        self._write([canonical_json({"item": item, "forgotten": True})])

    def take_over(self) -> None:
        """Append what workers have written, in the order of rows, and remove their ledgers."""
        parts = [path for path in self._all() if path != self.path]
        if not parts:
            return
        self.end_torn_line()
        whole = [text for path in parts for text in _texts(path) if _is_whole(text)]
        self._write(sorted(whole, key=lambda text: int(json.loads(text)["row"])))
        for path in parts:
            path.unlink(missing_ok=True)

    def end_torn_line(self) -> None:
        """Begin a new line if a kill left half of one."""
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def _write(self, texts: list[str]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(text + "\n" for text in texts)

    def _all(self) -> list[Path]:
        """The main ledger, then those of workers."""
        main = self.folder / NAME
        return [path for path in (main, *sorted(self.folder.glob("ledger.*.jsonl"))) if path.is_file()]


@lru_cache(maxsize=32)
def _lines(states: tuple[tuple[Path, int, int, int], ...]) -> Mapping[str, Line]:
    """The lines of ledgers in these states: a run looks at each several times, and mostly nothing was written since.

    A state is path, inode, size and time of the last change.
    """
    lines: dict[str, Line] = {}
    for text in (text for path, *_ in states for text in _texts(path)):
        try:
            data = json.loads(text)
            item = data["item"]
            if data.get("forgotten"):
                lines.pop(item, None)
            else:
                lines[item] = Line(item, data["row"], data["arrays"], data["digest"], data["record"])
        except (ValueError, KeyError, TypeError):
            continue  # a line torn by a kill: its item counts as not done
    return lines


def _texts(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _is_whole(text: str) -> bool:
    """Whether a line was not torn by a kill."""
    try:
        return "row" in json.loads(text)
    except ValueError:
        return False
