"""The state of an ablation on disk: ``ablation.json`` says what it is and how far it has come.

The file holds the whole configuration of every variant, so that an ablation can be resumed whatever has become of the
grid's or the preset's file since.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cascade.configs.grid import Grid, Variant, varied_keys
from cascade.configs.loader import validate
from cascade.configs.schema import Experiment
from cascade.configs.section import Section
from cascade.storage.atomic import write_text
from cascade.storage.errors import DataError

FILE = "ablation.json"


class VariantState(Section):
    """A variant, and what has become of it.

    Attributes:
        name: as in the tables.
        changes: the keys that it sets.
        experiment: its whole configuration.
        state: ``pending`` until it ends.
        error: of a failed variant, one line.
        stages: as in ``run.json``, those stages that computed something for this variant.
    """

    name: str
    changes: dict[str, Any]
    experiment: Experiment
    state: Literal["pending", "done", "failed"] = "pending"
    error: str | None = None
    stages: tuple[dict[str, Any], ...] = ()


class Ablation(Section):
    """A grid over an experiment, expanded.

    Attributes:
        name: of the grid.
        published: name of the table of published numbers that it is shown beside.
        store: folder of the artefacts.
        allow_leak: whether an adapter may be tested on its own training data, marked in the tables.
        node: the machine that ran it last.
        variants: in the grid's order.
        format: of this file.
    """

    name: str
    published: str | None
    store: Path
    allow_leak: bool
    node: str = Field(default_factory=platform.node)
    variants: tuple[VariantState, ...]
    format: Literal[1] = 1

    @property
    def keys(self) -> list[str]:
        """Every key that varies."""
        return varied_keys([variant.changes for variant in self.variants])

    def updated(self, variant: VariantState) -> Ablation:
        """The same with another state of the variant of that name."""
        states = [variant if each.name == variant.name else each for each in self.variants]
        return self.model_copy(update={"variants": tuple(states), "node": platform.node()})


def new_ablation(grid: Grid, variants: Sequence[Variant], store: Path, *, allow_leak: bool) -> Ablation:
    """An ablation of which nothing has been done."""
    states = [VariantState(name=each.name, changes=dict(each.changes), experiment=each.experiment) for each in variants]
    return Ablation(
        name=grid.name,
        published=grid.published,
        store=store.resolve(),
        allow_leak=allow_leak,
        variants=tuple(states),
    )


def read_ablation(folder: Path) -> Ablation:
    """The ablation of a folder. Raises ``DataError`` if there is none that can be resumed."""
    try:
        return validate(Ablation, json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # a ConfigError is a ValueError
        raise DataError(f"{folder}: no ablation to resume (no usable {FILE}); give the folder of one") from error


def write_ablation(folder: Path, ablation: Ablation) -> None:
    """Write ``ablation.json``, whole or not at all."""
    write_text(folder / FILE, ablation.model_dump_json(indent=2) + "\n")
