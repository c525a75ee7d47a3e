"""Whoever is told how a use case comes along: a command line, a log, or a program that shows it in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from cascade.flows.engines.choice import Engine
from cascade.flows.engines.evaluate import StagePlan, StageResult
from cascade.flows.run.prepare import Prepared
from cascade.storage.errors import CorruptItem


class Observer:
    """Told of everything, and silent; override what you want to hear. A use case enters it while it works."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def engine(self, engine: Engine) -> None:
        """The engine is chosen; what it needs starts now, which takes Prefect some seconds."""

    def begins(self, prepared: Sequence[Prepared], folder: Path) -> None:
        """All that can be refused has been, and nothing is written yet; the stages of these runs follow.

        ``folder`` is where their tables will be.
        """

    def variant(self, name: str) -> None:
        """The stages that follow are those of a variant of an ablation."""

    def started(self, plan: StagePlan) -> Callable[[], None]:
        """A stage begins; the function returned is called after each item."""
        return lambda: None

    def finished(self, result: StageResult) -> None:
        """A stage has ended."""

    def damaged(self, error: CorruptItem) -> None:
        """An item was damaged and will be computed again."""

    def computing(self, what: str) -> AbstractContextManager[object]:
        """Something that is no stage takes its time."""
        return nullcontext()

    def ended(self, folder: Path, remarks: Sequence[str]) -> None:
        """The tables are in ``folder``; ``remarks`` is what has to be known beside them, one line each."""
