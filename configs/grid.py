"""Ablation grids: which keys vary, and the experiment of every variant."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from cascade.configs.loader import key_hint, load_experiment, parse_override, read_yaml, validate
from cascade.configs.schema import Experiment, Name
from cascade.configs.section import Section, methods_of
from cascade.storage.errors import ConfigError, nearest
from cascade.storage.paths import expanded

GRIDS = Path(__file__).parent / "grids"
MAX_VARIANTS = 256
BASE = "base"
_SHORT_VALUE = 40

Values = Annotated[tuple[Any, ...], Field(min_length=1)]


class Axes(Section):
    """The directions of a grid; their product is the grid.

    Attributes:
        grid: values by key; every key is a direction of its own.
        zip: values by key, as many for each; all keys together are one direction.
        list: variants in full, each a mapping of keys to values; together they are one direction.
    """

    grid: dict[str, Values] = Field(default_factory=dict)
    zip: dict[str, Values] = Field(default_factory=dict)
    list: tuple[dict[str, Any], ...] = ()


class Grid(Section):
    """An ablation: the keys that vary, and the table of published numbers that it is shown beside."""

    name: Name = "grid"
    axes: Axes = Axes()
    published: str | None = Field(None, description="a name in configs/published")


@dataclass(frozen=True)
class Variant:
    """One experiment of a grid.

    Attributes:
        name: the varied keys and their values, for people; different for every variant of a grid.
        changes: value of every key that this variant sets.
        experiment: the whole configuration.
    """

    name: str
    changes: Mapping[str, Any]
    experiment: Experiment


def grid_names() -> list[str]:
    """The grids that come with the package."""
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def load_grid(source: str) -> Grid:
    """The grid of a preset name or a YAML file. Raises ``ConfigError`` with one line."""
    path = GRIDS / f"{source}.yaml" if source in grid_names() else expanded(source)
    if not path.is_file():
        raise ConfigError(f"no grid '{source}': neither a preset nor a file; {nearest(source, grid_names())}")
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    return validate(Grid, data)


def expand(grid: Grid, source: str, overrides: Sequence[str] = ()) -> list[Variant]:
    """Every variant of a grid over the experiment ``source`` with its ``key=value`` overrides, in the grid's order.

    Raises:
        ConfigError: nothing varies; there are too many variants; a key or value does not fit the schema; ``zip`` has
            values of unequal number; two variants are the same; or an override sets a key that the grid varies.
    """
    combinations = _combinations(grid)
    keys = varied_keys(combinations)
    for key in keys:
        _require_value_key(key)
    for override in overrides:
        names, _ = parse_override("--set", override)
        if ".".join(names) in keys:
            raise ConfigError(
                f"--set {override}: grid '{grid.name}' varies this key; leave it out, or use another grid"
            )
    variants = []
    for changes in combinations:
        # a JSON value is the same value in YAML
        own = [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
        variants.append(Variant(variant_name(changes, keys), changes, load_experiment(source, [*overrides, *own])))
    _require_different(grid, variants)
    return variants


def varied_keys(combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every key that any of the combinations sets, in the order of their first appearance."""
    return list(dict.fromkeys(key for changes in combinations for key in changes))


def value_at(experiment: Experiment, key: str) -> Any:
    """The value of a dotted key as plain data; ``None`` for an option of another method than the experiment's."""
    value: Any = experiment.model_dump(mode="json")
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def variant_name(changes: Mapping[str, Any], keys: Sequence[str]) -> str:
    """``shape=cross,size=20``: last names of keys where they are clear, and short values."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for key, value in changes.items():
        short = key.rpartition(".")[2]
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        parts.append(
            f"{short if last[short] == 1 else key}={text if len(text) <= _SHORT_VALUE else '…' + text[-_SHORT_VALUE:]}"
        )
    return ",".join(parts) or BASE


def directions_of(grid: Grid) -> list[list[dict[str, Any]]]:
    """The values of each direction, as the keys that they set. Raises ``ConfigError`` if nothing varies."""
    axes = grid.axes
    directions: list[list[dict[str, Any]]] = [[{key: value} for value in values] for key, values in axes.grid.items()]
    if axes.zip:
        lengths = {key: len(values) for key, values in axes.zip.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise ConfigError(f"grid '{grid.name}': the keys of zip need equally many values; {shown}")
        directions.append([dict(zip(axes.zip, values, strict=True)) for values in zip(*axes.zip.values(), strict=True)])
    if axes.list:
        directions.append(list(axes.list))
    if not directions:
        raise ConfigError(f"grid '{grid.name}': nothing varies; give axes.grid, axes.zip or axes.list some values")
    return directions


def _combinations(grid: Grid) -> list[dict[str, Any]]:
    directions = directions_of(grid)
    count = math.prod(len(direction) for direction in directions)
    if count > MAX_VARIANTS:
        raise ConfigError(f"grid '{grid.name}' has {count} variants, more than {MAX_VARIANTS}; split it, or vary less")
    repeated = [
        key for key, times in Counter(key for each in directions for key in varied_keys(each)).items() if times > 1
    ]
    if repeated:
        raise ConfigError(f"grid '{grid.name}': key '{repeated[0]}' varies in two directions; keep one of them")
    return [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*directions)]


def _require_value_key(key: str) -> None:
    """A grid varies single values; a wrong key is told from its nearest neighbour."""
    models: list[type[BaseModel]] = [Experiment]
    names = key.split(".")
    for depth, name in enumerate(names):
        if not models:
            raise ConfigError(f"grid key '{key}': '{'.'.join(names[:depth])}' is a value, not a section")
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        if not fields:
            raise ConfigError(f"unknown grid key '{key}'; {key_hint(Experiment, names[: depth + 1])}")
        models = [kind for field in fields for kind in methods_of(field).values()]
    if models:
        keys = dict.fromkeys(name for model in models for name in model.model_fields)
        raise ConfigError(f"grid key '{key}' is a section; vary one of its keys: {', '.join(keys)}")


def _require_different(grid: Grid, variants: Sequence[Variant]) -> None:
    seen: dict[str, str] = {}
    names: set[str] = set()
    for variant in variants:
        same = seen.setdefault(variant.experiment.model_dump_json(), variant.name)
        if variant.name in names or same != variant.name:
            raise ConfigError(f"grid '{grid.name}': variants '{same}' and '{variant.name}' are the same; remove one")
        names.add(variant.name)
