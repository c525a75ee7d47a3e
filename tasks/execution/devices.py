"""Which of several devices a worker process computes on: each process claims one, and keeps it."""

from __future__ import annotations

import getpass
import itertools
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout


@lru_cache(maxsize=1)
def claim_device(devices: tuple[str, ...]) -> str:
    """The device of this process: the one with the fewest other processes of this machine on it.

    A claim is a lock file of the operating system, so it ends with the process, however that ends.
    """
    device, _lock = claim(devices, Path(tempfile.gettempdir()) / f"cascade-devices-{getpass.getuser()}")
    _HELD.append(_lock)
    return device


_HELD: list[FileLock] = []


def claim(devices: Sequence[str], folder: Path) -> tuple[str, FileLock]:
    """The first device with a free slot in ``folder``, and the lock that holds it; slots are filled in turn."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for slot in itertools.count():
        for number, device in enumerate(devices):
            lock = FileLock(folder / f"{number}-{device.replace(':', '-')}.{slot}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return device, lock
    raise AssertionError("unreachable")
