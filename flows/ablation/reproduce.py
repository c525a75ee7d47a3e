"""A published table: what it needs, what of it is on this machine, and our side of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cascade.configs.datasets import KnownDataset, find_dataset, known_datasets
from cascade.configs.grid import Variant, expand, load_grid
from cascade.configs.loader import as_override
from cascade.configs.published import PublishedTable, load_published, published_names
from cascade.configs.settings import Settings
from cascade.flows.ablation.ablate import EndedAblation, carry_out
from cascade.flows.ablation.state import Ablation, VariantState, new_ablation
from cascade.flows.ablation.variants import Candidates, prepare_variants
from cascade.flows.engines.choice import Engine, EngineName, ready_engine
from cascade.flows.run.folder import default_folder, link_latest, require_unused
from cascade.flows.run.observer import Observer
from cascade.flows.run.prepare import Prepared
from cascade.flows.run.progress import LogReporter
from cascade.storage.atomic import replacing
from cascade.storage.errors import ConfigError, DataError, LeakError, PipelineError, nearest
from cascade.tasks.execution.weights import missing_weights
from cascade.tasks.tables.reproduction import reproduction_table

TABLES = ("table1", "table2", "table3")


@dataclass(frozen=True)
class Part:
    """One dataset of a table: the variants that compute our side of it."""

    ablation: Ablation
    candidates: Candidates


@dataclass(frozen=True)
class Reproduction:
    """A published table, what of it can be run, and what is missing for the rest.

    Attributes:
        name: of the table.
        published: its numbers.
        parts: by dataset, as the table calls it.
        missing: a line for each thing that is not there, with the command that gets it.
        notes: lines on what can be run and is still not what the paper ran.
    """

    name: str
    published: PublishedTable
    parts: Mapping[str, Part]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def plan_reproduction(
    table: str,
    experiment: str,
    overrides: Sequence[str],
    root: Path,
    adapters: Sequence[str],
    store: Path,
    settings: Settings,
) -> Reproduction:
    """Look for datasets and checkpoints; nothing is written.

    Args:
        table: one of :data:`TABLES`.
        experiment: preset or file.
        overrides: ``key=value``.
        root: folder in which the datasets lie by their usual names.
        adapters: ``dataset=path``, the linear layers to test on each dataset.
        store: folder of the artefacts.
        settings: of this machine.

    Raises:
        ConfigError: there is no such table, dataset or configuration key.
    """
    if table not in TABLES:
        raise ConfigError(f"no table '{table}' to reproduce; {nearest(table, [*TABLES, *published_names()])}")
    published, datasets = load_published(table), known_datasets()
    grid = load_grid(published.grid or table)
    chosen = _adapters(adapters, datasets)
    parts: dict[str, Part] = {}
    missing: list[str] = []
    notes: list[str] = []
    for name in dict.fromkeys(row.dataset for row in published.rows):
        known = datasets[name]
        folder = find_dataset(root, known)
        own = [*overrides, *chosen.get(name, ())]
        if folder is not None:
            own.append(as_override("dataset.path", str(folder.resolve())))
        variants = expand(grid, experiment, own)
        lacking = [] if folder is not None else [_no_dataset(known, root)]
        lacking += _lacking_weights(name, known, datasets, experiment, variants, settings)
        if not lacking:
            ablation = new_ablation(grid, variants, store, allow_leak=False)
            try:
                parts[name] = Part(ablation, prepare_variants(ablation, settings))
                notes += _incomplete(known, parts[name])
            except LeakError as error:
                fault = str(error).partition(";")[0]
                lacking.append(f"{known.title}: {fault}; give another one with --adapter {name}=PATH")
            except PipelineError as error:
                lacking.append(f"{known.title}: {error}")
        missing += lacking
    return Reproduction(table, published, parts, tuple(dict.fromkeys(missing)), tuple(notes))


class NothingToReproduce(DataError):
    """A table of which nothing can be run on this machine."""


@dataclass(frozen=True, eq=False)
class Reproduced:
    """A reproduction that was run.

    Attributes:
        folder: where the tables are; those of a dataset in a folder of its name.
        table: see ``cascade.tasks.tables.reproduction.reproduction_table``.
        parts: by dataset.
    """

    folder: Path
    table: pd.DataFrame
    parts: Mapping[str, EndedAblation]

    @property
    def failed(self) -> tuple[VariantState, ...]:
        """The variants that did not come to an end, each with its error."""
        return tuple(variant for part in self.parts.values() for variant in part.failed)


def run_reproduction(
    planned: Reproduction,
    *,
    out: Path | None = None,
    engine: Engine | EngineName | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Reproduced:
    """Run what can be, and write ``reproduction.csv``: ours, the paper's and the difference.

    Args:
        planned: from :func:`plan_reproduction`.
        out: folder of the tables, which may not hold any yet; a new one under ``settings.runs`` by default.
        engine: see ``cascade.flows.run.run_experiment``.
        settings: folders of this machine; from the environment by default.
        observer: told how it comes along; the logger ``cascade`` by default.

    Raises:
        NothingToReproduce: all of it is missing.
    """
    folder = out or default_folder((settings or Settings()).runs, planned.name)
    for place in (folder, *(folder / name for name in planned.parts)):
        require_unused(place)
    if not planned.parts:
        raise NothingToReproduce(f"nothing of {planned.name} can be run: {'; '.join(planned.missing)}")
    with observer or LogReporter() as told:
        variants = [each for part in planned.parts.values() for each in part.ablation.variants]
        chosen = ready_engine(engine, [each.experiment.runtime for each in variants], told.engine)
        parts = {
            name: carry_out(part.ablation, part.candidates, folder / name, chosen, told)
            for name, part in planned.parts.items()
        }
        table = reproduction_table(planned.published, {name: part.runs for name, part in parts.items()})
        with replacing(folder / "reproduction.csv") as path:
            table.to_csv(path, index=False)
        link_latest(folder)
        told.ended(folder, (*planned.notes, *planned.missing))
    return Reproduced(folder, table, parts)


def _adapters(adapters: Sequence[str], datasets: Mapping[str, KnownDataset]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for text in adapters:
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(f"--adapter {text}: must have the form dataset=path, for example mvtec=visa.safetensors")
        if name not in datasets:
            raise ConfigError(f"--adapter {text}: no dataset '{name}'; {nearest(name, datasets)}")
        chosen[name] = [as_override("localise.adapter", path)]
    return chosen


def _no_dataset(known: KnownDataset, root: Path) -> str:
    return f"{known.title}: no folder {' or '.join(known.folders)} in {root}; {known.get}"


def _lacking_weights(
    name: str,
    known: KnownDataset,
    datasets: Mapping[str, KnownDataset],
    experiment: str,
    variants: Sequence[Variant],
    settings: Settings,
) -> list[str]:
    """The faults of the checkpoints, each once; a missing adapter with the paper's way to train it."""
    lines: dict[str, None] = {}
    for variant in variants:
        for role, fault in missing_weights(variant.experiment, settings.weights).items():
            if role == "adapter" and getattr(variant.experiment.localise, "adapter", "") is None:
                auxiliary = datasets[known.auxiliary]
                recipe = " ".join(f"--train {each}" for each in known.recipe)
                fault = (
                    f"{known.title}: no linear layers trained on {auxiliary.title}; run: cascade train april_gan "
                    f"--experiment {experiment} --dataset DIR/{auxiliary.folders[0]} {recipe} "
                    f"--out {known.auxiliary}.safetensors, then give --adapter {name}={known.auxiliary}.safetensors"
                )
            lines[fault] = None
    return list(lines)


def _incomplete(known: KnownDataset, part: Part) -> list[str]:
    ready = next(each for each in part.candidates.values() if isinstance(each, Prepared))
    images = len(ready.run.manifest)
    return (
        []
        if known.images in (None, images)
        else [f"{known.title}: {images} images, not the {known.images} of its test set"]
    )
