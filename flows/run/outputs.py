"""The folder of a finished run."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from cascade.flows.engines.evaluate import STAGES, StageResult
from cascade.flows.run.prepare import Prepared
from cascade.storage.atomic import replacing, write_text
from cascade.storage.errors import ConfigError
from cascade.storage.names import safe_path
from cascade.storage.paths import require_writable
from cascade.tasks.aggregate import table_rows
from cascade.tasks.stage import Run
from cascade.tasks.tables.intervals import LEVEL, RESAMPLES
from cascade.tasks.tables.results import images_table, points_table, results_table, vanished_images
from cascade.tasks.training.april_gan import adapter_training

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
_TIME = "%Y%m%dT%H%M%S.%fZ"
_LATEST = "latest"
_HELD = {"run.json": "a run", "ablation.json": "an ablation", "reproduction.csv": "a reproduction"}
"""The files that say what a folder holds."""


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


def default_folder(runs: Path, name: str) -> Path:
    """``<runs>/<experiment>/<UTC time>``."""
    return runs / safe_path(name, "name of the experiment") / datetime.now(UTC).strftime(_TIME)


def require_unused(folder: Path) -> None:
    """Raise ``ConfigError`` if tables in a folder would replace others, or if it cannot be written to."""
    require_writable(folder)
    for file, held in _HELD.items():
        if (folder / file).exists():
            resume = f"go on with `cascade ablate --resume {folder}`, or " if file == "ablation.json" else ""
            raise ConfigError(f"{folder}: holds {held} already; {resume}choose another folder")


def link_latest(folder: Path) -> None:
    """Let ``latest`` beside a folder that :func:`default_folder` has named lead to the newest of them.

    Where there are no symbolic links, or something else has that name, there is none.
    """
    link = folder.with_name(_LATEST)
    fresh = folder.with_name(f".{_LATEST}.{folder.name}")
    try:
        datetime.strptime(folder.name, _TIME)
        if link.is_symlink() and link.readlink().name > folder.name:
            return
        fresh.symlink_to(folder.name, target_is_directory=True)
        fresh.replace(link)
    except (ValueError, OSError):
        fresh.unlink(missing_ok=True)


def _prompts(run: Run) -> dict[str, dict[str, Any]]:
    """By category and for all, images without prompt, and the share of good images that got one."""
    names = ("n_images", "n_no_prompt", "n_no_prompt_anomalous", "good_prompted")
    return {row["category"]: {name: row[name] for name in names} for row in table_rows(run)}


def _description(prepared: Prepared, results: Sequence[StageResult], engine: str) -> dict[str, Any]:
    run = prepared.run
    keys = {stage.name: stage.key(run) for stage in STAGES}
    training = adapter_training(run.weights["adapter"])
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
