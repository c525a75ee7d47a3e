"""Options that several commands share, and how they become an experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from configs.schema import Experiment

Engine = Literal["prefect", "local"]
DatasetOption = Annotated[Path | None, typer.Option("--dataset", help="Folder of images, dataset root or table.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change one key, e.g. prompt.positives=5.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Folder of the artefacts.")]
RunnerOption = Annotated[
    Literal["threads", "processes", "dask", "ray"] | None,
    typer.Option("--runner", help="Where Prefect's tasks run; the same as --set runtime.runner=."),
]
DevicesOption = Annotated[
    str | None, typer.Option("--devices", help="Devices for worker processes to share, e.g. cuda:0,cuda:1.")
]
EngineOption = Annotated[Engine, typer.Option(help="Prefect, or plain Python without a server.")]


def load_with_options(
    source: str,
    dataset: Path | None,
    overrides: list[str] | None,
    *,
    engine: Engine = "prefect",
    runner: str | None = None,
    devices: str | None = None,
) -> Experiment:
    """A preset or YAML file with the options laid over it.

    Raises:
        ConfigError: a key or value does not fit, or the local engine is asked for other processes.
    """
    from configs.loader import load_experiment
    from storage.errors import ConfigError

    # a JSON string is the same string in YAML
    given = [f"dataset.path={json.dumps(str(dataset), ensure_ascii=False)}"] if dataset is not None else []
    given += [f"runtime.runner={runner}"] if runner is not None else []
    given += [f"runtime.devices={json.dumps(devices.split(','))}"] if devices is not None else []
    experiment = load_experiment(source, [*given, *(overrides or [])])
    if engine == "local" and experiment.runtime.runner != "threads":
        raise ConfigError(f"runtime.runner '{experiment.runtime.runner}' needs --engine prefect")
    return experiment
