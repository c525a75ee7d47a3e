"""The folder of a finished run, read again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cascade.configs.loader import load_experiment, preset_names
from cascade.storage.artefacts import Artefact, Store
from cascade.storage.errors import DataError, StoreError
from cascade.storage.keys import StageKey, leaves
from cascade.tasks.aggregate import METRICS

_SECTIONS = frozenset(
    ("finished", "engine", "experiment", "dataset", "store", "keys", "weights", "stages", "versions", "machine")
)


@dataclass(frozen=True)
class FinishedRun:
    """A folder that ``cascade.flows.run.outputs`` has written.

    Attributes:
        folder: where the tables are.
        description: the content of ``run.json``.
        scores: the scores in the run's store; they may be gone.
    """

    folder: Path
    description: Mapping[str, Any]
    scores: Artefact

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self.description["experiment"]["name"])

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.description["dataset"]["name"])

    @property
    def frame(self) -> str:
        """The evaluation frame, ``score.frame``."""
        return str(self.description["experiment"].get("score", {}).get("frame"))

    def steps(self) -> list[str]:
        """The steps of the results, in order. Raises ``DataError`` if they cannot be read."""
        return [str(step) for step in self.results()["step"].unique()]

    def images(self) -> pd.DataFrame:
        """``images.parquet``: one row for each image and step. Raises ``DataError`` if it cannot be read."""
        return self._table("images.parquet")

    def results(self) -> pd.DataFrame:
        """``results.parquet``: one row for each category and step. Raises ``DataError`` if it cannot be read."""
        return self._table("results.parquet")

    def _table(self, name: str) -> pd.DataFrame:
        path = self.folder / name
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); run the experiment again") from error

    def command(self) -> str:
        """A command that computes again what the store has lost: the nearest preset and all that differs from it."""
        wanted = dict(leaves(self.description["experiment"]))
        changes: dict[str, dict[str, Any]] = {}
        for name in preset_names():
            given = dict(leaves(load_experiment(name).model_dump(mode="json")))
            changes[name] = {key: value for key, value in wanted.items() if given.get(key) != value}
        preset = min(changes, key=lambda name: len(changes[name]))
        settings = [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in changes[preset].items()]
        return " ".join(["cascade run", preset, *settings, "--store", shlex.quote(self.description["store"])])


def read_finished(folder: Path) -> FinishedRun:
    """The run that was written to ``folder``. Raises ``DataError`` if there is none."""
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        components = {name: value for name, value in description["keys"]["score"].items() if name != "digest"}
        scores = Store(Path(description["store"])).artefact(StageKey(**components))
        run = FinishedRun(folder, description, scores)
        if not (run.experiment and run.dataset and description.keys() >= _SECTIONS):
            raise ValueError("sections are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not the folder of a finished run (no usable run.json)") from error
    return run


def require_results(run: FinishedRun, purpose: str) -> None:
    """Raise ``DataError`` if none of a run's metrics is defined; ``purpose`` is what needs one."""
    if not run.results().reindex(columns=list(METRICS)).notna().any(axis=None):
        raise DataError(
            f"{run.folder}: {purpose} needs metrics, and this run has none: its images have no labels or masks, or are "
            f"all of one kind; label them and run the experiment again"
        )


def require_scores(run: FinishedRun) -> Artefact:
    """The run's scores. Raises ``StoreError`` if the store does not hold them any more."""
    if not run.scores.exists:
        raise StoreError(f"{run.scores.path}: the scores of this run are gone; run the experiment again")
    return run.scores
