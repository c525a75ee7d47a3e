"""An ablation from its grid to its folder: each stage that variants share runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cascade.configs.grid import expand, load_grid
from cascade.configs.settings import Settings
from cascade.flows.ablation.outputs import finished_table, write_failures, write_plots, write_tables
from cascade.flows.ablation.state import Ablation, VariantState, new_ablation, read_ablation, write_ablation
from cascade.flows.ablation.variants import Candidates, prepare_variants, run_variants
from cascade.flows.engines.choice import Engine, EngineName, ready_engine
from cascade.flows.engines.evaluate import Executor
from cascade.flows.run.folder import default_folder, link_latest, require_unused
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared
from cascade.flows.run.progress import LogReporter
from cascade.flows.run.reading import remember_checked
from cascade.tasks.stage import Run


@dataclass(frozen=True, eq=False)
class EndedAblation:
    """An ablation that was run.

    Attributes:
        folder: where the tables are.
        ablation: what has become of each variant.
        table: ``results`` of the variants that are done, a row for each category and step; ``None`` if none is.
        candidates: what was found out about the variants before they ran.
    """

    folder: Path
    ablation: Ablation
    table: pd.DataFrame | None
    candidates: Candidates

    @property
    def failed(self) -> tuple[VariantState, ...]:
        """The variants that did not come to an end, each with its error."""
        return tuple(each for each in self.ablation.variants if each.state == "failed")

    @property
    def runs(self) -> dict[str, Run]:
        """By variant, the runs that did."""
        done = {each.name for each in self.ablation.variants if each.state == "done"}
        return {name: each.run for name, each in _ready(self.candidates).items() if name in done}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has to be known beside the table, one line each."""
        leaks = dict.fromkeys(each.leak for each in _ready(self.candidates).values() if each.leak)
        return (
            *(f"not zero-shot: {leak}" for leak in leaks),
            *(f"failed {each.name}: {each.error}" for each in self.failed),
        )


def define_ablation(
    grid: str,
    experiment: str = "mini",
    overrides: Sequence[str] = (),
    *,
    store: Path | None = None,
    allow_leak: bool = False,
    settings: Settings | None = None,
) -> Ablation:
    """A grid over an experiment; nothing is done yet.

    Args:
        grid: preset or YAML file.
        experiment: preset or YAML file that it varies.
        overrides: ``key=value``, laid over the experiment.
        store: folder of the artefacts; that of ``settings`` by default.
        allow_leak: test an adapter on its own training data, and mark every table.
        settings: folders of this machine; from the environment by default.

    Raises:
        ConfigError: there is no such grid, experiment or key.
    """
    loaded = load_grid(grid)
    folder = store or (settings or Settings()).store
    return new_ablation(loaded, expand(loaded, experiment, overrides), folder, allow_leak=allow_leak)


def run_ablation(
    ablation: Ablation,
    *,
    out: Path | None = None,
    engine: Engine | EngineName | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> EndedAblation:
    """Evaluate every variant; one that fails is recorded, and the rest goes on.

    Args:
        ablation: from :func:`define_ablation`.
        out: folder of the tables, which may not hold any yet; a new one under ``settings.runs`` by default.
        engine: see ``cascade.flows.run.run_experiment``.
        settings: folders of this machine; from the environment by default.
        observer: told how it comes along; the logger ``cascade`` by default.

    Raises:
        PipelineError: no variant can start; nothing is written.
    """
    machine = settings or Settings()
    folder = out or default_folder(machine.runs, ablation.name)
    require_unused(folder)
    return _run(ablation, folder, engine, machine, observer)


def resume_ablation(
    folder: Path,
    *,
    engine: Engine | EngineName | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> EndedAblation:
    """Go on with the ablation of a folder, with the same tables. Raises ``DataError`` if it holds none."""
    return _run(read_ablation(folder), folder, engine, settings or Settings(), observer)


def carry_out(
    ablation: Ablation, candidates: Candidates, folder: Path, engine: Engine, told: Observer
) -> EndedAblation:
    """Run what is not in the store, and write the folder."""
    ready = list(_ready(candidates).values())
    told.begins(ready, folder)
    write_ablation(folder, ablation)
    for each in {id(each.run.manifest): each for each in ready}.values():
        remember_checked(each.images, each.run.store)

    def work(execute: Executor) -> Ablation:
        return run_variants(ablation, candidates, execute, told, lambda state: write_ablation(folder, state))

    runtime = max((each.run.experiment.runtime for each in ready), key=lambda own: own.workers)
    parameters = {"grid": ablation.name, "variants": [each.changes for each in ablation.variants]}
    ended = engine.work_on("ablate", ablation.name, parameters, runtime, work)
    table = finished_table(ended, candidates)
    if table is not None:
        write_tables(folder, ended, table)
        write_plots(folder, ended, table)
    write_failures(folder, ended)
    found = EndedAblation(folder, ended, table, candidates)
    told.ended(folder, found.remarks)
    return found


def _run(
    ablation: Ablation,
    folder: Path,
    engine: Engine | EngineName | None,
    settings: Settings,
    observer: Observer | None,
) -> EndedAblation:
    with observer or LogReporter() as told:
        chosen = ready_engine(engine, [each.experiment.runtime for each in ablation.variants], told.engine)
        found = carry_out(ablation, prepare_variants(ablation, settings), folder, chosen, told)
    link_latest(folder)
    return found


def _ready(candidates: Candidates) -> dict[str, Prepared]:
    return {name: each for name, each in candidates.items() if isinstance(each, Prepared)}
