"""Processes that train one module together, each on its share of every batch (``torchrun``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

Item = TypeVar("Item")

_LONGEST = timedelta(days=2)
"""The others wait while the first looks at the images."""


@dataclass(frozen=True)
class Workers:
    """This process among those of a training.

    Attributes:
        rank: its number; the first, 0, writes and reports.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's items of a batch; there may be none."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def sum_gradients(self, module: nn.Module) -> None:
        """Add up the gradients of all processes, in each of them."""
        if self.size == 1:
            return
        for weight in module.parameters():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(weight.grad)

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        summed = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(summed)
        return float(summed)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def workers() -> Iterator[Workers]:
    """The processes that ``torchrun`` has started, or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Workers()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("gloo", timeout=_LONGEST)  # trained parts are small
    try:
        yield Workers(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
