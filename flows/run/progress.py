"""What a person sees of a run: a bar or a line now and then while a stage works, and one line when it has ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cascade.flows.engines.evaluate import StagePlan, StageResult
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared
from cascade.storage.errors import CorruptItem

LOGGER = logging.getLogger("cascade")
"""Hears what an observer is told where a program has none."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images for each second."""
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


_SLOW = 5.0
"""Seconds after which a log says that a stage is at work."""

_AGAIN = 60.0
"""Seconds between two such lines."""


class _Pulse:
    """Says how far a stage has come: once it proves to be a slow one, then every minute."""

    def __init__(self, plan: StagePlan, say: Callable[[str], None]) -> None:
        self._plan, self._say = plan, say
        self._computed = 0
        self._counting = threading.Lock()
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def item(self) -> None:
        """One more is computed."""
        with self._counting:
            self._computed += 1

    def stop(self) -> None:
        """Say no more."""
        self._over.set()

    def _beat(self) -> None:
        begin, pause = time.monotonic(), _SLOW
        while not self._over.wait(pause):
            pause = _AGAIN
            seconds = time.monotonic() - begin
            self._say(
                f"{self._plan.stage.name:<9} works {self._computed} of {self._plan.missing} after {seconds:.0f} s"
            )


class _Lines(Observer):
    """Whatever can say a line says how far a slow stage is, until the stage or the ``with`` block ends."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pulse: _Pulse | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.quiet()

    def started(self, plan: StagePlan) -> Callable[[], None]:
        """Say something if what is missing takes its time."""
        self.quiet()
        if not plan.missing:
            return lambda: None
        self._pulse = _Pulse(plan, self._say)
        return self._pulse.item

    def quiet(self) -> None:
        """Say no more of the stage."""
        if self._pulse is not None:
            self._pulse.stop()


class RichReporter(_Lines):
    """Bars on a terminal; on anything else lines, also while a stage takes its time."""

    def __init__(self, console: Console) -> None:
        super().__init__(self.say)
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def say(self, line: str | Text) -> None:
        """Print a line, in rich's markup."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        super().__exit__(kind, error, trace)

    def started(self, plan: StagePlan) -> Callable[[], None]:
        """Show a bar for what is missing."""
        if not self.console.is_terminal:
            return super().started(plan)
        bar = self._bars.add_task(plan.stage.name, total=plan.missing, visible=plan.missing > 0)
        if plan.missing:
            self._bars.start_task(bar)
        return lambda: self._bars.advance(bar)

    def finished(self, result: StageResult) -> None:
        """Replace the bar by a line: hit or miss, how many, how fast, and why."""
        self.quiet()
        for bar in self._bars.task_ids:
            self._bars.remove_task(bar)
        self.say(stage_line(result))

    def damaged(self, error: CorruptItem) -> None:
        """Say that an item has to be computed again."""
        self.say(Text.assemble(("damaged", "yellow"), f" {error}"))

    @contextmanager
    def computing(self, what: str) -> Iterator[None]:
        """Show a bar that only moves."""
        bar = self._bars.add_task(what, total=None)
        try:
            yield
        finally:
            self._bars.remove_task(bar)


class LogReporter(_Lines):
    """Lines in a log: of a flow that nobody watches, or of a program that has no observer of its own."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = LOGGER) -> None:
        super().__init__(logger.info)
        self._logger = logger

    def begins(self, prepared: Sequence[Prepared], folder: Path) -> None:
        """Log what has to be said of the images."""
        for line in dict.fromkeys(line for each in prepared for line in each.warnings):
            self._logger.warning(line)

    def variant(self, name: str) -> None:
        """Log which variant it is."""
        self._logger.info("variant %s", name)

    def finished(self, result: StageResult) -> None:
        """Log what the stage did."""
        self.quiet()
        self._logger.info(stage_line(result).plain)

    def damaged(self, error: CorruptItem) -> None:
        """Log that an item has to be computed again."""
        self._logger.warning("damaged: %s", error)

    def ended(self, folder: Path, remarks: Sequence[str]) -> None:
        """Log what has to be known, and where the tables are."""
        for line in remarks:
            self._logger.warning(line)
        self._logger.info("tables in %s", folder)


def stage_line(result: StageResult) -> Text:
    """One line on a stage, for example ``embed  miss  12 of 289 computed in 3.1 s (3.9/s): new items``."""
    if result.computed == 0:
        return Text.assemble(f"{result.stage:<9} ", ("hit ", "green"), f" {result.hits} of {result.items} in the store")
    rate = result.computed / max(result.seconds, 1e-9)
    computed = f" {result.computed} of {result.items} computed in {result.seconds:.1f} s ({rate:.1f}/s)"
    return Text.assemble(f"{result.stage:<9} ", ("miss", "cyan"), f"{computed}: {result.reason}")
