"""A re-evaluation: run an experiment on the data as it is now, and hold it against the accepted baseline.

It knows no Prefect; ``cascade.flows.watch.schedules`` makes it a scheduled flow, ``cascade reevaluate`` a command for
cron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from cascade.configs.schema import Experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.choice import Engine, EngineName, ready_engine
from cascade.flows.engines.evaluate import StagePlan, plan
from cascade.flows.run.experiment import carry_out
from cascade.flows.run.folder import default_folder
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared, prepare, require_metrics
from cascade.flows.run.progress import LogReporter
from cascade.flows.run.reading import remember_checked
from cascade.flows.run.results import FinishedRun, read_finished
from cascade.flows.watch.baselines import accepted_run
from cascade.flows.watch.changes import describe, what_changed
from cascade.flows.watch.compare import compare_runs, require_comparable, scored_images
from cascade.flows.watch.comparison import Comparison, write_comparison
from cascade.flows.watch.limits import complete_limits
from cascade.storage.errors import DataError, StageError
from cascade.tasks import score
from cascade.tasks.stage import Run
from cascade.tasks.tables.matching import match_images


@dataclass(frozen=True)
class Gate:
    """What a run has to pass; see ``cascade.flows.watch.compare.compare_runs``."""

    limits: Mapping[str, float]
    allow_vanished: bool


@dataclass(frozen=True)
class Reevaluation:
    """What a re-evaluation found.

    Attributes:
        state: ``unchanged`` since the last run and still accepted, ``passed`` the gate against the baseline or found
            it ``closed``, or ``no baseline`` to hold it against.
        run: the run, the last one if nothing has changed.
        changes: what changed since the last run, one line each; empty for the first.
        warnings: what has to be said of the images, and of what came to light in the run, one line each.
        comparison: with the baseline, if there is one.
    """

    state: Literal["unchanged", "passed", "closed", "no baseline"]
    run: FinishedRun
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    comparison: Comparison | None

    @property
    def message(self) -> str:
        """One line: what happened, and why."""
        name = f"{self.run.experiment} on {self.run.dataset}"
        if self.state == "closed" and self.comparison is not None:
            return f"{name}: " + "; ".join(self.comparison.reasons)
        if self.state == "no baseline":
            return f"{name}: no baseline; accept this run with `cascade baseline set {self.run.folder}`"
        if self.state == "unchanged":
            return f"{name}: nothing has changed since {self.run.folder}"
        return f"{name}: " + ("nothing was compared" if self.comparison is None else self.comparison.passed)

    def markdown(self) -> str:
        """The report: what changed since the last run, then the comparison with the baseline."""
        lines = [f"# {self.message}", "", f"Tables: `{self.run.folder}`", "", "## Since the last run", ""]
        lines += [f"- {line}" for line in self.changes or ("this is the first run",)]
        compared = "" if self.comparison is None else "\n" + self.comparison.markdown()
        return "\n".join(lines) + "\n" + compared


def reevaluate(
    experiment: Experiment,
    *,
    store: Path | None = None,
    engine: Engine | EngineName | None = None,
    limits: Mapping[str, float] | None = None,
    allow_vanished: bool = False,
    skip_bad: bool = False,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Reevaluation:
    """Check the data, run what is new, and compare with the accepted run of this experiment and dataset.

    If nothing differs from the last run, none is made, and the last one is compared again: a baseline that was not
    met stays unmet.

    Args:
        experiment: the configuration.
        store: folder of the artefacts; that of ``settings`` by default.
        engine: see ``cascade.flows.run.run_experiment``.
        limits: how far each metric may fall; see ``cascade.flows.watch.limits``.
        allow_vanished: see ``cascade.flows.watch.compare_runs``.
        skip_bad: leave out images that cannot be used; ``skipped.csv`` of the run lists them.
        settings: folders of this machine, from the environment by default; runs, baselines and history are under
            ``settings.runs``.
        observer: told how it comes along; the logger ``cascade`` by default.

    Raises:
        PipelineError: as ``cascade run`` and ``cascade compare`` do; all that can be is found before any work.
        StageError: another re-evaluation of this experiment is still at work.
    """
    machine, gate = settings or Settings(), Gate(complete_limits(limits), allow_vanished)
    with observer or LogReporter() as told:
        chosen = ready_engine(engine, [experiment.runtime], told.engine)
        folder = machine.runs / experiment.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "reevaluate.lock", timeout=0):
                prepared = prepare(experiment, store or machine.store, machine, skip_bad=skip_bad)
                return _reevaluated(prepared, chosen, machine.runs, gate, told)
        except Timeout:
            raise StageError(
                f"{experiment.name}: the re-evaluation before is still at work; this one is skipped"
            ) from None


def _reevaluated(prepared: Prepared, engine: Engine, runs: Path, gate: Gate, told: Observer) -> Reevaluation:
    run = prepared.run
    name, dataset = run.experiment.name, run.manifest.name
    require_metrics(run.manifest, "a re-evaluation")
    baseline = accepted_run(runs, name, dataset)
    if baseline is not None:
        require_comparable(baseline, str(run.experiment.score.frame))
    planned, last = plan(run), last_run(runs, name, dataset)
    if last is not None and is_the_same(last, run, planned):
        remember_checked(prepared.images, run.store)
        return _judged(last, (), prepared.warnings, baseline, gate, new=False)
    found = carry_out(prepared, default_folder(runs, name), engine, runs, told)
    made = read_finished(found.folder)
    changes = () if last is None else _changes(made, last)
    return _judged(made, changes, (*prepared.warnings, *found.warnings), baseline, gate, new=True)


def last_run(runs: Path, experiment: str, dataset: str) -> FinishedRun | None:
    """The newest finished run of an experiment on a dataset in the default folders."""
    for path in sorted((runs / experiment).glob("2*/run.json"), reverse=True):
        try:
            run = read_finished(path.parent)
        except DataError:
            continue
        if run.dataset == dataset:
            return run
    return None


def is_the_same(last: FinishedRun, run: Run, planned: Sequence[StagePlan]) -> bool:
    """Whether a run now would repeat the last one: the same stage keys, images and ground truth, all in the store."""
    keys = {each.stage.name: each.artefact.key.digest for each in planned}
    if keys != {name: key["digest"] for name, key in last.description["keys"].items()}:
        return False
    items = sorted((record.category, score.item_id(run, record)) for record in run.manifest)
    before = sorted((image.category, image.item) for image in scored_images(last.images()))
    return items == before and not any(each.missing for each in planned)


def _changes(run: FinishedRun, last: FinishedRun) -> tuple[str, ...]:
    matching = match_images(scored_images(run.images()), scored_images(last.images()))
    return tuple(describe(what_changed(run, last, matching)))


def _judged(
    run: FinishedRun,
    changes: tuple[str, ...],
    warnings: tuple[str, ...],
    baseline: FinishedRun | None,
    gate: Gate,
    *,
    new: bool,
) -> Reevaluation:
    if baseline is None:
        return Reevaluation("no baseline", run, changes, warnings, None)
    comparison = compare_runs(run.folder, baseline.folder, gate.limits, allow_vanished=gate.allow_vanished)
    write_comparison(comparison, run.folder)
    if comparison.reasons:
        return Reevaluation("closed", run, changes, warnings, comparison)
    return Reevaluation("passed" if new else "unchanged", run, changes, warnings, comparison)
