"""The stream of generated scenes that feeds a training, made by a process of its own.

This module and the makers of examples import no torch, so that the process starts at once.
"""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import time
from collections.abc import Callable
from queue import Empty, Full
from types import TracebackType
from typing import Generic, Self, TypeVar

import cv2
import numpy as np

Example = TypeVar("Example")

VALIDATION_SEEDS = range(0, 100_000)
"""Scene seeds that no training run ever draws."""


def training_seed(seed: int) -> int:
    """First scene seed of a training run; runs with different ``seed`` share no scene."""
    return 1_000_000 + seed * 100_000_000


def _produce(make: Callable[[int], Example], first_seed: int, queue: mp.Queue[Example], parent: int) -> None:
    cv2.setNumThreads(1)
    for seed in itertools.count(first_seed):
        example = make(seed)
        while True:
            # A parent that was killed cannot stop this process; it has to notice by itself.
            if os.getppid() != parent:
                return
            try:
                queue.put(example, timeout=5)
                break
            except Full:
                continue


class ScenePool(Generic[Example]):
    """A ring of generated examples that a background process keeps renewing.

    Drawing ``n`` examples takes ``n / reuse`` new ones from the process and then samples the ring with
    replacement, so that the generator costs a fraction of a core and training still sees a moving set. The
    examples drawn depend on ``first_seed`` and ``rng`` only, not on timing.

    Args:
        make: a picklable function that turns a scene seed into an example.
        first_seed: first scene seed; the following ones are consecutive.
        reuse: how often an example is drawn on average.
        capacity: examples kept; the oldest are replaced.
        warm: examples present before the first draw.
    """

    def __init__(
        self, make: Callable[[int], Example], first_seed: int, *, reuse: float, capacity: int, warm: int
    ) -> None:
        context = mp.get_context("spawn")
        self._queue: mp.Queue[Example] = context.Queue(maxsize=16)
        self._process = context.Process(target=_produce, args=(make, first_seed, self._queue, os.getpid()), daemon=True)
        self._ring: list[Example] = []
        self._capacity, self._reuse, self._warm = capacity, reuse, min(warm, capacity)
        self._due = 0.0
        self.next_seed = first_seed
        self.waited = 0.0
        """Seconds spent waiting for the generator, the first filling included."""

    def __enter__(self) -> Self:
        """Starts the generator."""
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the generator."""
        self._process.terminate()
        self._process.join()

    def _next(self) -> Example:
        while True:
            try:
                return self._queue.get(timeout=5)
            except Empty:
                if not self._process.is_alive():
                    raise RuntimeError("the scene generator died; start the training again to continue") from None

    def draw(self, rng: np.random.Generator, count: int) -> list[Example]:
        """``count`` examples, sampled with replacement."""
        self._due += count / self._reuse
        while self._due >= 1 or len(self._ring) < self._warm:
            started = time.monotonic()
            fresh = self._next()
            self.waited += time.monotonic() - started
            if len(self._ring) < self._capacity:
                self._ring.append(fresh)
            else:
                self._ring[self.next_seed % self._capacity] = fresh
            self.next_seed += 1
            self._due = max(0.0, self._due - 1)
        return [self._ring[int(index)] for index in rng.integers(len(self._ring), size=count)]
