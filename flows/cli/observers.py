"""What commands print while a use case is at work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cascade.flows.cli.console import plain, show_problems
from cascade.flows.engines.choice import Engine
from cascade.flows.run.prepare import Prepared
from cascade.flows.run.progress import RichReporter


class CommandObserver(RichReporter):
    """The engine if it takes its time to start, and a store that is new; then the stages."""

    def engine(self, engine: Engine) -> None:
        """Say that Prefect starts: it takes some silent seconds."""
        if engine.name == "prefect":
            whose = "a server for this run" if engine.server is None else f"server {engine.server}"
            self.say(f"starting Prefect, {whose} ...")

    def begins(self, prepared: Sequence[Prepared], folder: Path) -> None:
        """Say where the store will be, if there is none yet."""
        for store in dict.fromkeys(each.run.store for each in prepared):
            if not store.exists():
                self.say(f"new store in {plain(str(store.resolve()))}")


class RunObserver(CommandObserver):
    """What CLIP is told and what is wrong with the images, before the stages of one run."""

    def begins(self, prepared: Sequence[Prepared], folder: Path) -> None:
        """Print them."""
        super().begins(prepared, folder)
        for each in prepared:
            if each.run.localiser.WORDS:
                told = ", ".join(f"'{words}'" for words in dict.fromkeys(each.images.words.values()))
                self.say(f"CLIP is told: {plain(told)}")
            show_problems(self.console, each.images.report.warnings)
            for line in each.alone:
                self.say(f"[yellow]warning[/yellow] {plain(line)}")


class AblationObserver(CommandObserver):
    """What is wrong with the images, each variant by name, and after Ctrl-C the command that goes on."""

    _folder: Path | None = None

    def begins(self, prepared: Sequence[Prepared], folder: Path) -> None:
        """Print the warnings of all variants, each once."""
        for line in dict.fromkeys(line for each in prepared for line in each.warnings):
            self.say(f"[yellow]warning[/yellow] {plain(line)}")
        super().begins(prepared, folder)
        self._folder = folder

    def variant(self, name: str) -> None:
        """Print its name."""
        self.say(f"[bold]{plain(name)}[/bold]")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt) and self._folder is not None:
            self.say(plain(f"cascade ablate --resume {self._folder} goes on from here"))

    def ended(self, folder: Path, remarks: Sequence[str]) -> None:
        """There is nothing to go on with any more."""
        self._folder = None
