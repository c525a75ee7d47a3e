"""The folder of a finished run: written here, and read here."""

from __future__ import annotations

import json
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from cascade.configs.loader import load_experiment, preset_names
from cascade.flows.engines.evaluate import StageResult, stages_of
from cascade.flows.run.folder import link_latest
from cascade.flows.run.prepare import Prepared
from cascade.storage.artefacts import Artefact, Store
from cascade.storage.atomic import replacing, write_text
from cascade.storage.errors import DataError, StoreError
from cascade.storage.keys import StageKey, leaves
from cascade.tasks.aggregate import METRICS, table_rows
from cascade.tasks.execution.adapters import adapter_training
from cascade.tasks.stage import Run
from cascade.tasks.tables.intervals import LEVEL, RESAMPLES
from cascade.tasks.tables.results import images_table, points_table, results_table, vanished_images

_PACKAGES = (
    "clip-sam-cascade",
    "torch",
    "torchvision",
    "open_clip_torch",
    "segment-anything",
    "zarr",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scipy",
    "prefect",
)
_SECTIONS = frozenset(
    ("finished", "engine", "experiment", "dataset", "store", "keys", "weights", "stages", "versions", "machine")
)
"""Of ``run.json``."""


def write_run(
    out: Path,
    prepared: Prepared,
    results: Sequence[StageResult],
    engine: str,
    intervals: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Write ``results`` (with ``intervals`` if given), ``images``, ``points`` and, last, ``run.json``.

    Returns the results.

    Images that were left out are listed in ``skipped.csv``. Every file is written beside its name and moved there, so a
    folder with ``run.json`` is complete.
    """
    run, leak = prepared.run, prepared.leak is not None
    left_out = prepared.images.left_out
    skipped = Counter(each.category for each in left_out)
    table = results_table(run, leak=leak, intervals=intervals, skipped=skipped)
    with replacing(out / "results.csv") as path:
        table.to_csv(path, index=False)
    if left_out:
        with replacing(out / "skipped.csv") as path:
            pd.DataFrame([asdict(each) for each in left_out]).to_csv(path, index=False)
    tables = {"results": table, "images": images_table(run, leak=leak), "points": points_table(run, leak=leak)}
    for name, each in tables.items():
        with replacing(out / f"{name}.parquet") as path:
            each.to_parquet(path, index=False)
    description = _description(prepared, results, engine) | {"intervals": None}
    if intervals is not None:
        description["intervals"] = {"method": "BCa", "level": LEVEL, "resamples": RESAMPLES}
    write_text(out / "run.json", json.dumps(description, indent=2) + "\n")
    link_latest(out)
    return table


@dataclass(frozen=True)
class FinishedRun:
    """A folder that :func:`write_run` has written.

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


def _prompts(run: Run) -> dict[str, dict[str, Any]]:
    """By category and for all, images without prompt, and the share of good images that got one."""
    names = ("n_images", "n_no_prompt", "n_no_prompt_anomalous", "good_prompted")
    return {row["category"]: {name: row[name] for name in names} for row in table_rows(run)}


def _description(prepared: Prepared, results: Sequence[StageResult], engine: str) -> dict[str, Any]:
    run = prepared.run
    keys = {stage.name: stage.key(run) for stage in stages_of(run)}
    training = adapter_training(run.weights["adapter"]) if "adapter" in run.weights else {}
    training.pop("image_ids", None)
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": engine,
        "experiment": run.experiment.model_dump(mode="json"),
        "dataset": {
            "name": run.manifest.name,
            "root": str(run.manifest.root),
            "images": len(run.manifest),
            "categories": list(run.manifest.categories),
            "words": {record.category: run.words(record) for record in run.manifest},
        },
        "prompts": _prompts(run),
        "store": str(run.store),
        "keys": {name: {"digest": key.digest} | key.components for name, key in keys.items()},
        "weights": {
            role: {"path": str(located.path), "sha256": located.sha256} for role, located in run.weights.items()
        },
        "adapter": training,
        "leak": prepared.leak,
        "warnings": list(prepared.warnings),
        "skipped": len(prepared.images.left_out),
        "vanished": [record.path for record in vanished_images(run)],
        "stages": [asdict(result) for result in results],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "node": platform.node(),
    }
