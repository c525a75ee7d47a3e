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
EngineOption = Annotated[Engine, typer.Option(help="Prefect, or plain Python without a server.")]


def load_with_options(source: str, dataset: Path | None, overrides: list[str] | None) -> Experiment:
    """A preset or YAML file with ``--dataset`` and ``--set`` laid over it."""
    from configs.loader import load_experiment

    return load_experiment(source, as_overrides(dataset, overrides))


def as_overrides(dataset: Path | None, overrides: list[str] | None) -> list[str]:
    """``--dataset`` and ``--set`` as overrides."""
    # a JSON string is the same string in YAML
    given = [f"dataset.path={json.dumps(str(dataset), ensure_ascii=False)}"] if dataset is not None else []
    return [*given, *(overrides or [])]
