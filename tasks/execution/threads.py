"""What goes on beside a stage's own loop: reading ahead, computing on every core, writing behind."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from cascade.storage.artefacts import Artefact

if TYPE_CHECKING:
    import torch

Entry = TypeVar("Entry")
Result = TypeVar("Result")
Write = Callable[[str, Mapping[str, NDArray[Any]], Mapping[str, Any]], None]

_READERS = min(8, os.cpu_count() or 1)
"""A photograph takes up to 50 ms to decode, a GPU 15 ms to encode: one reader would leave it idle."""

_UNWRITTEN = 8


def read_ahead(entries: Iterable[Entry], read: Callable[[Entry], Result]) -> Iterator[tuple[Entry, Result]]:
    """Entries with their results in order, read by a few threads a few entries ahead."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from _ahead(pool, entries, read, 2 * _READERS)


def on_every_core(
    entries: Iterable[Entry], compute: Callable[[Entry], Result], device: torch.device | None = None
) -> Iterator[tuple[Entry, Result]]:
    """Entries with their results in order, as many at a time as torch had threads at first, each on one thread.

    Threads that share products as small as a decoder's wait for each other; with work of their own they do not, and
    what one computes does not depend on how many there are. On a GPU, ``device``, entries come one after another.
    """
    if device is None or device.type == "cpu":
        pool, cores = _cores()
        if cores > 1:
            yield from _ahead(pool, entries, compute, cores)
            return
    yield from ((entry, compute(entry)) for entry in entries)


@contextmanager
def written_behind(artefact: Artefact) -> Iterator[Write]:
    """``artefact.write`` in a thread of its own, a few items behind; once left, nothing more is written.

    Leaving waits for what is to be written; a second Ctrl-C gives it up. After a failed write nothing more is written,
    and one of the next calls raises its error, or leaving does, whatever else went wrong.
    """
    pool = ThreadPoolExecutor(1)
    pending: deque[Future[None]] = deque()
    failures: list[BaseException] = []
    given_up = threading.Event()

    def store(item: str, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
        if failures or given_up.is_set():
            return
        try:
            artefact.write(item, arrays, record)
        except BaseException as error:
            failures.append(error)
            raise

    def write(item: str, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
        while pending and (len(pending) >= _UNWRITTEN or pending[0].done()):
            pending.popleft().result()
        pending.append(pool.submit(store, item, arrays, record))

    def finish() -> None:
        try:
            pool.shutdown()
        except BaseException:
            given_up.set()
            pool.shutdown()
            raise

    try:
        yield write
    except Exception as error:
        finish()
        if failures and failures[0] is not error:
            raise failures[0] from error
        raise
    except BaseException:
        finish()
        raise
    finish()
    if failures:
        raise failures[0]


def batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Lists of at most ``size`` consecutive entries."""
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def encoded_at_once(size: int, device: torch.device) -> int:
    """How many images an encoder takes in one pass: ``size`` on a GPU, one on a CPU.

    A CPU is busy with one image, whose activations still fit its caches: each of four takes ViT-B 1.3 times as long.
    """
    return 1 if device.type == "cpu" else size


def pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values in memory from which a copy to a GPU need not be waited for; as they are if ``device`` is none."""
    return values.pin_memory() if device.type == "cuda" else values


def _ahead(
    pool: ThreadPoolExecutor, entries: Iterable[Entry], work: Callable[[Entry], Result], count: int
) -> Iterator[tuple[Entry, Result]]:
    pending: deque[tuple[Entry, Future[Result]]] = deque()
    try:
        for entry in entries:
            pending.append((entry, pool.submit(work, entry)))
            if len(pending) > count:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
    finally:
        for _, future in pending:
            future.cancel()


_lock = threading.Lock()
_pool: list[tuple[ThreadPoolExecutor, int]] = []


def _cores() -> tuple[ThreadPoolExecutor, int]:
    """The process's pool of threads that compute, and how many there are: as many as torch is allowed at first.

    A thread takes over torch's limit when it first asks for it, and keeps it when the limit changes for others.
    """
    import torch

    with _lock:
        if not _pool:
            cores = torch.get_num_threads()
            pool = ThreadPoolExecutor(cores, "core")
            together = threading.Barrier(cores)
            torch.set_num_threads(1)
            try:
                list(pool.map(lambda _: (torch.get_num_threads(), together.wait()), range(cores)))
            except BaseException:
                together.abort()  # else the threads that did start would wait for the others for ever
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(cores)
            _pool.append((pool, cores))
    return _pool[0]
