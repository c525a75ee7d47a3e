"""One evaluation of an experiment: prepared, planned once, carried out, and written to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cascade.configs.schema import Experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.choice import Engine, EngineName, ready_engine
from cascade.flows.engines.evaluate import StageResult, plan
from cascade.flows.run.folder import default_folder, require_unused
from cascade.flows.run.history import remember_run
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared, prepare, require_metrics
from cascade.flows.run.progress import LogReporter
from cascade.flows.run.reading import remember_checked
from cascade.flows.run.results import write_run
from cascade.storage.datasets import SHOWN
from cascade.storage.errors import PipelineError
from cascade.storage.names import printable
from cascade.tasks.stage import Run
from cascade.tasks.tables.batch import batch_note
from cascade.tasks.tables.intervals import result_intervals
from cascade.tasks.tables.results import vanished_images


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An experiment that was run.

    Attributes:
        folder: where the tables are.
        table: ``results``, one row for each category and step, metrics in [0, 1].
        prepared: the run, its images and what was found out about them.
        results: what each stage did.
        warnings: what came to light while it ran, one line each.
    """

    folder: Path
    table: pd.DataFrame
    prepared: Prepared
    results: tuple[StageResult, ...]
    warnings: tuple[str, ...]

    @property
    def leak(self) -> str | None:
        """Why the test was not a fair one, where that was allowed."""
        return self.prepared.leak

    @property
    def left_out(self) -> int:
        """How many images could not be used and are listed in ``skipped.csv``."""
        return len(self.prepared.images.left_out)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has to be known beside the table, one line each."""
        lines = [*self.warnings]
        if note := batch_note(self.table):
            lines.append(note)
        if self.leak:
            lines.append(f"not zero-shot: {self.leak}")
        if self.left_out:
            lines.append(f"{_images(self.left_out)} left out, listed with reasons in {self.folder / 'skipped.csv'}")
        return tuple(lines)


def run_experiment(
    experiment: Experiment,
    *,
    store: Path | None = None,
    out: Path | None = None,
    engine: Engine | EngineName | None = None,
    allow_leak: bool = False,
    intervals: bool = False,
    skip_bad: bool = False,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Evaluate an experiment on its dataset; what the store has is not computed again.

    Args:
        experiment: as ``cascade.configs.loader.load_experiment`` returns it.
        store: folder of the artefacts; that of ``settings`` by default.
        out: folder of the tables, which may not hold a run yet; a new one under ``settings.runs`` by default.
        engine: ``local`` or ``prefect``; Prefect where a server is configured or a runner needs it, unless said here.
        allow_leak: test an adapter on its own training data, and mark every table.
        intervals: add 95 % bootstrap intervals over images to the table.
        skip_bad: leave out images that cannot be used, and list them.
        settings: folders of this machine; from the environment by default.
        observer: told how it comes along; the logger ``cascade`` by default.

    Raises:
        ConfigError, DataError, WeightsError, LeakError: it cannot run; nothing is written.
        StageError, StoreError: it went wrong; what was finished is kept.
    """
    machine = settings or Settings()
    folder = out or default_folder(machine.runs, experiment.name)
    require_unused(folder)
    with observer or LogReporter() as told:
        chosen = ready_engine(engine, [experiment.runtime], told.engine)
        prepared = prepare(experiment, store or machine.store, machine, allow_leak=allow_leak, skip_bad=skip_bad)
        if intervals:
            require_metrics(prepared.run.manifest, "an interval")
        plan(prepared.run)  # refuses what could not run before anything is written
        return carry_out(prepared, folder, chosen, machine.runs, told, intervals=intervals)


def carry_out(
    prepared: Prepared, folder: Path, engine: Engine, runs: Path, told: Observer, *, intervals: bool = False
) -> Evaluation:
    """Run the stages of a run that has been planned; write its folder, and its row of the history in ``runs``."""
    run = prepared.run
    told.begins([prepared], folder)
    remember_checked(prepared.images, run.store)
    results = engine.evaluate(run, told)
    bounds = None
    if intervals:
        with told.computing("drawing images"):
            bounds = result_intervals(run)
    table = write_run(folder, prepared, results, engine.name, bounds)
    warnings = (*_not_remembered(runs, folder), *_vanished(run))
    found = Evaluation(folder, table, prepared, tuple(results), warnings)
    told.ended(folder, found.remarks)
    return found


def _not_remembered(runs: Path, folder: Path) -> list[str]:
    """Why a run is not in the history. Its tables are complete all the same."""
    try:
        remember_run(runs, folder)
    except (PipelineError, OSError) as error:
        return [f"not in the history: {error}"]
    return []


def _vanished(run: Run) -> list[str]:
    lost = vanished_images(run)
    if not lost:
        return []
    names = ", ".join(printable(record.path) for record in lost[:SHOWN]) + ("" if len(lost) <= SHOWN else ", …")
    return [
        f"in the frame of {run.experiment.score.frame} pixels (score.frame) nothing is left of the defects of "
        f"{_images(len(lost))}, whose pixels count as good: {names}"
    ]


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"
