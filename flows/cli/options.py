"""Options that several commands share, and how they become an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from cascade.configs.schema import Experiment
    from cascade.flows.evaluate import Reporter, StageResult
    from cascade.tasks.stage import Run

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
    from cascade.configs.loader import load_experiment

    experiment = load_experiment(source, as_overrides(dataset, overrides, runner=runner, devices=devices))
    require_engine(experiment, engine)
    return experiment


def as_overrides(
    dataset: Path | None, overrides: list[str] | None, *, runner: str | None = None, devices: str | None = None
) -> list[str]:
    """The options as ``key=value``, those of ``--set`` last."""
    # a JSON string is the same string in YAML
    given = [f"dataset.path={json.dumps(str(dataset), ensure_ascii=False)}"] if dataset is not None else []
    given += [f"runtime.runner={runner}"] if runner is not None else []
    given += [f"runtime.devices={json.dumps(devices.split(','))}"] if devices is not None else []
    return [*given, *(overrides or [])]


def require_engine(experiment: Experiment, engine: Engine) -> None:
    """Raise ``ConfigError`` if the local engine is asked for other processes."""
    from cascade.storage.errors import ConfigError

    if engine == "local" and experiment.runtime.runner != "threads":
        raise ConfigError(f"runtime.runner '{experiment.runtime.runner}' needs --engine prefect")


def evaluator(engine: Engine) -> Callable[[Run, Reporter], Sequence[StageResult]]:
    """What runs all stages of a run on an engine; Prefect is imported only if it is asked for."""
    if engine == "local":
        from cascade.flows.evaluate import evaluate
        from cascade.flows.local_engine import execute_locally

        return lambda run, reporter: evaluate(run, execute_locally, reporter)
    from cascade.flows.prefect_engine import evaluate_on_prefect

    return evaluate_on_prefect
