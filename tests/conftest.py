"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from cascade.tasks.execution import threads


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the threads of torch and of the pool of ``on_every_core``, whatever the number of cores."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_pool", [])

    def limit(count: int) -> None:
        while threads._pool:
            threads._pool.pop()[0].shutdown()
        torch.set_num_threads(count)

    yield limit
    limit(before)


@pytest.fixture
def two_cores(cores: Callable[[int], None]) -> None:
    """Two of them."""
    cores(2)
