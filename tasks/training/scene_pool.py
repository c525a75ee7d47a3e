"""The stream of generated scenes that feeds a training, made by processes of its own.

This module and the makers of examples import no torch, so that these processes start at once.
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


def _produce(
    make: Callable[[int], Example], first_seed: int, stride: int, queue: mp.Queue[Example], parent: int
) -> None:
    cv2.setNumThreads(1)
    for seed in itertools.count(first_seed, stride):
        example = make(seed)
        while True:
            # A parent that was killed cannot stop this process; it has to notice by itself.
            if os.getppid() != parent:
                queue.cancel_join_thread()  # else it would wait for a reader of what it has made already
                return
            try:
                queue.put(example, timeout=5)
                break
            except Full:
                continue


class ScenePool(Generic[Example]):
    """A ring of generated examples that background processes keep renewing.

    Drawing ``n`` examples takes ``n / reuse`` new ones from the processes and then samples the ring with
    replacement, so that the generator costs a fraction of a core and training still sees a moving set. The
    examples drawn depend on ``first_seed`` and ``rng`` only, neither on timing nor on the number of processes.

    Args:
        make: a picklable function that turns a scene seed into an example.
        first_seed: first scene seed; the following ones are consecutive.
        reuse: how often an example is drawn on average.
        capacity: examples kept; the oldest are replaced.
        warm: examples present before the first draw.
        workers: generating processes.
    """

    def __init__(
        self,
        make: Callable[[int], Example],
        first_seed: int,
        *,
        reuse: float,
        capacity: int,
        warm: int,
        workers: int = 1,
    ) -> None:
        context = mp.get_context("spawn")
        self._first_seed = first_seed
        self._queues: list[mp.Queue[Example]] = [context.Queue(maxsize=16) for _ in range(workers)]
        self._processes = [
            context.Process(target=_produce, args=(make, first_seed + number, workers, queue, os.getpid()), daemon=True)
            for number, queue in enumerate(self._queues)
        ]
        self._ring: list[Example] = []
        self._capacity, self._reuse, self._warm = capacity, reuse, min(warm, capacity)
        self._due = 0.0
        self.next_seed = first_seed
        self.waited = 0.0
        """Seconds spent waiting for the generator, the first filling included."""

    def __enter__(self) -> Self:
        """Starts the generator."""
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the generator."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def _next(self) -> Example:
        turn = (self.next_seed - self._first_seed) % len(self._queues)
        while True:
            try:
                return self._queues[turn].get(timeout=5)
            except Empty:
                if not self._processes[turn].is_alive():
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
