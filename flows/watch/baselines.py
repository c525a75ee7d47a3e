"""Which run is accepted for each experiment and dataset: a small JSON file in the folder of the runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from cascade.flows.run.results import FinishedRun, read_finished, require_results
from cascade.storage.atomic import write_text
from cascade.storage.errors import ConfigError, DataError

FILE_NAME = "baselines.json"


@dataclass(frozen=True)
class Baseline:
    """The accepted run of an experiment on a dataset: its folder, and when it was accepted (UTC)."""

    experiment: str
    dataset: str
    folder: str
    accepted: str


def accept(runs: Path, run_folder: Path) -> Baseline:
    """Make a finished run the baseline of its experiment and dataset.

    Raises ``DataError`` if it is none, or has no metric that another run could be held against.
    """
    run = read_finished(run_folder)
    require_results(run, "a baseline")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = Baseline(run.experiment, run.dataset, str(run_folder.resolve()), now)
    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(runs / f"{FILE_NAME}.lock"):
        kept = [each for each in baselines(runs) if (each.experiment, each.dataset) != (new.experiment, new.dataset)]
        ordered = sorted([*kept, new], key=lambda each: (each.experiment, each.dataset))
        write_text(runs / FILE_NAME, json.dumps([asdict(each) for each in ordered], indent=2) + "\n")
    return new


def baselines(runs: Path) -> list[Baseline]:
    """Every accepted run, by experiment and dataset. Raises ``DataError`` if the file cannot be read."""
    path = runs / FILE_NAME
    if not path.exists():
        return []
    try:
        return [Baseline(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend it, or delete it and accept runs again") from error


def baseline_of(runs: Path, run_folder: Path) -> Path:
    """The accepted run that a run is held against. Raises ``ConfigError`` if none is accepted."""
    run = read_finished(run_folder)
    accepted = accepted_run(runs, run.experiment, run.dataset)
    if accepted is None:
        raise ConfigError(
            f"no baseline for {run.experiment} on {run.dataset}; accept a run with `cascade baseline set RUN`"
        )
    return accepted.folder


def accepted_run(runs: Path, experiment: str, dataset: str) -> FinishedRun | None:
    """The accepted run of an experiment on a dataset, if there is one. Raises ``DataError`` if it cannot be read."""
    for each in baselines(runs):
        if (each.experiment, each.dataset) == (experiment, dataset):
            return read_finished(Path(each.folder))
    return None
