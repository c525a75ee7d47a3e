"""Work beside a stage's loop changes when things happen, and nothing else."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cascade.tasks.execution.threads import batches, on_every_core, read_ahead, written_behind


@pytest.mark.parametrize("ahead", [read_ahead, on_every_core])
def test_results_come_in_order(two_cores, ahead):
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number * number

    assert list(ahead(range(30), slow_first)) == [(number, number * number) for number in range(30)]


def test_every_core_computes_on_one_thread(two_cores):
    torch.ones(4).sum()
    together = threading.Barrier(2, timeout=20)

    def threads(number: int) -> int:
        together.wait()  # only passes if two entries are computed at the same time
        return torch.get_num_threads()

    assert [own for _, own in on_every_core(range(4), threads)] == [1] * 4
    assert torch.get_num_threads() == 2
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start(), later.join()
    assert seen == [2], "a thread that starts later has torch's limit, not the pool's"


def test_a_gpu_is_asked_from_one_thread(two_cores):
    asked = {own for _, own in on_every_core(range(3), lambda _: threading.get_ident(), torch.device("cuda"))}
    assert asked == {threading.get_ident()}


@pytest.mark.parametrize("ahead", [read_ahead, on_every_core])
def test_an_error_stops_what_has_not_begun(two_cores, ahead):
    begun: list[int] = []

    def fails(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError("entry 1")
        time.sleep(0.01)
        return number

    with pytest.raises(ValueError, match="entry 1"):
        list(ahead(range(1000), fails))
    assert len(begun) < 50


class _Slow:
    """What ``written_behind`` needs of an artefact."""

    def __init__(self, broken: str = "") -> None:
        self.written: list[str] = []
        self._broken = broken

    def write(self, item, arrays, record):
        time.sleep(0.01)
        if item == self._broken:
            raise OSError(f"no space for {item}")
        self.written.append(item)


def test_everything_is_written_on_leaving():
    artefact = _Slow()
    names = [str(number) for number in range(20)]
    with written_behind(artefact) as write:
        for name in names:
            write(name, {}, {})
    assert artefact.written == names


def test_what_was_computed_before_an_error_is_written():
    artefact = _Slow()

    def computed() -> None:
        with written_behind(artefact) as write:
            write("first", {}, {})
            raise ValueError("next image")

    with pytest.raises(ValueError, match="next image"):
        computed()
    assert artefact.written == ["first"]


@pytest.mark.parametrize("broken", [3, 19])
def test_a_failed_write_is_raised_and_the_last(broken):
    artefact = _Slow(str(broken))

    def computed() -> None:
        with written_behind(artefact) as write:
            for number in range(20):
                write(str(number), {}, {})

    with pytest.raises(OSError, match=f"no space for {broken}"):
        computed()
    assert artefact.written == [str(number) for number in range(broken)]


def test_a_failed_write_is_not_hidden_by_what_follows_from_it():
    artefact = _Slow("first")

    def computed() -> None:
        with written_behind(artefact) as write:
            write("first", {}, {})
            time.sleep(0.1)
            raise ValueError("next image")

    with pytest.raises(OSError, match="no space for first") as raised:
        computed()
    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize("interrupts", [1, 2])
def test_nothing_is_written_after_leaving(monkeypatch, interrupts):
    artefact = _Slow()
    names = [str(number) for number in range(6)]
    left = interrupts - 1
    plain = ThreadPoolExecutor.shutdown

    def interrupted(self, *args, **kwargs):
        nonlocal left
        if left:
            left -= 1
            raise KeyboardInterrupt
        plain(self, *args, **kwargs)

    def computed() -> None:
        with written_behind(artefact) as write:
            for name in names:
                write(name, {}, {})
            raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        computed()
    after = list(artefact.written)
    time.sleep(0.1)
    assert artefact.written == after
    assert after == names if interrupts == 1 else len(after) < len(names)


def test_a_pool_that_cannot_start_fails_and_ends(monkeypatch, two_cores):
    plain, started, before = ThreadPoolExecutor.submit, [], set(threading.enumerate())

    def second_fails(self, *args, **kwargs):
        started.append(self)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", second_fails)
    with pytest.raises(RuntimeError, match="start new thread"):
        list(on_every_core(range(3), lambda number: number))
    assert set(threading.enumerate()) <= before
    assert torch.get_num_threads() == 2


def test_batches_are_consecutive():
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
