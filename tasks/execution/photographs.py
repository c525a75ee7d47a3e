"""One decode of a photograph serves both encoders: ``embed`` scales it for CLIP too while it has it open.

A photograph takes longer to decode than a GPU, or a CPU with the mini models, takes to encode it. ``embed`` comes
first; what CLIP will look at waits in memory, up to ``LIMIT``, and photographs beyond that are decoded twice.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from cascade.storage.datasets import ImageRecord, read_image
from cascade.tasks.stage import Run

LIMIT = 1 << 30
"""Bytes that may wait: 1,300 photographs at 518 px, 350 at 448 and 896 px."""

_waiting: dict[tuple[str, int], NDArray[np.uint8]] = {}
_lock = threading.Lock()


def keep_for_clip(run: Run, record: ImageRecord, photograph: NDArray[np.uint8]) -> dict[int, NDArray[np.uint8]]:
    """Scale a photograph [H, W, 3] to every side of the run's CLIP, unless too much is waiting already.

    Returns:
        What was made of it, uint8 [side, side, 3], by side.
    """
    from cascade.backbones.clip.backbone import squared

    sides = run.experiment.localise.sides
    with _lock:  # readers that look at the same time may go beyond the limit by a photograph each
        waiting = sum(own.nbytes for own in _waiting.values())
    if waiting + sum(3 * side * side for side in sides) > LIMIT:
        return {}
    squares = {side: squared(photograph, side) for side in sides}
    with _lock:
        _waiting.update({(record.image_id, side): square for side, square in squares.items()})
    return squares


def forget_photographs() -> None:
    """Drop what still waits: CLIP's stage failed, or another process was faster."""
    with _lock:
        _waiting.clear()


def squares_for_clip(run: Run, record: ImageRecord) -> list[NDArray[np.uint8]]:
    """A photograph as uint8 [side, side, 3] for each side of the run's CLIP; it waits no longer."""
    from cascade.backbones.clip.backbone import squared

    sides = run.experiment.localise.sides
    with _lock:
        found = [_waiting.pop((record.image_id, side), None) for side in sides]
    kept = [own for own in found if own is not None]
    if len(kept) == len(sides):
        return kept
    photograph = read_image(run.image_path(record), record.white)
    return [squared(photograph, side) for side in sides]
