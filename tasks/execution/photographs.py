"""One decode of a photograph serves both encoders: ``embed`` scales it for the localiser while it has it open.

A photograph takes longer to decode than a GPU, or a CPU with the mini models, takes to encode it. ``embed`` comes
first; what the localiser will look at waits in memory, up to ``LIMIT``, and photographs beyond that are decoded twice.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascade.localisers.squares import squared

LIMIT = 1 << 30
"""Bytes that may wait: 1,300 photographs at 518 px, 350 at 448 and 896 px."""

Squares = list[NDArray[np.uint8]]


class Photographs:
    """What waits, by image and sides; it is a part of a run, ends with it, and is empty in another process."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, tuple[int, ...]], Squares] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Photographs], tuple[()]]:
        return Photographs, ()

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(self, image_id: str, photograph: NDArray[np.uint8], sides: Sequence[int]) -> Squares:
        """Scale a photograph to every side, unless too much is waiting already; what was made of it."""
        with self._lock:  # readers that look at the same time may go beyond the limit by a photograph each
            waiting = sum(square.nbytes for squares in self._waiting.values() for square in squares)
        if waiting + sum(3 * side * side for side in sides) > LIMIT:
            return []
        squares = [squared(photograph, side) for side in sides]
        with self._lock:
            self._waiting[image_id, tuple(sides)] = squares
        return squares

    def take(self, image_id: str, sides: Sequence[int]) -> Squares | None:
        """The squares of a photograph, which waits no longer; ``None`` if it does not wait."""
        with self._lock:
            return self._waiting.pop((image_id, tuple(sides)), None)
