"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tasks import overlap


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads for torch and for the pool of ``on_every_core``, whatever the number of cores."""
    before = torch.get_num_threads()
    monkeypatch.setattr(overlap, "_pool", [])
    torch.set_num_threads(2)
    yield
    for pool, _ in overlap._pool:
        pool.shutdown()
    torch.set_num_threads(before)
