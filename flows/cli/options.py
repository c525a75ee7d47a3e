"""Options that several commands share, and how they become an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from cascade.configs.schema import Experiment

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
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be used, list them, and end with code 1.")
]
EngineOption = Annotated[
    Literal["local", "prefect"] | None,
    typer.Option(help="local, or prefect where PREFECT_API_URL is set or --runner needs it, unless said here."),
]


def load_with_options(
    source: str,
    dataset: Path | None,
    overrides: list[str] | None,
    *,
    runner: str | None = None,
    devices: str | None = None,
) -> Experiment:
    """A preset or YAML file with the options laid over it.

    Raises:
        ConfigError: a key or value does not fit.
    """
    from cascade.configs.loader import load_experiment

    return load_experiment(source, as_overrides(dataset, overrides, runner=runner, devices=devices))


def as_overrides(
    dataset: Path | None, overrides: list[str] | None, *, runner: str | None = None, devices: str | None = None
) -> list[str]:
    """The options as ``key=value``, those of ``--set`` last."""
    from cascade.configs.loader import as_override

    given = [as_override("dataset.path", str(dataset))] if dataset is not None else []
    given += [as_override("runtime.runner", runner)] if runner is not None else []
    given += [as_override("runtime.devices", devices.split(","))] if devices is not None else []
    return [*given, *(overrides or [])]
