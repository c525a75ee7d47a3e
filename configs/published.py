"""Published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from cascade.configs.grid import value_at
from cascade.configs.loader import read_yaml, validate
from cascade.configs.schema import Experiment
from cascade.configs.section import Section
from cascade.storage.errors import ConfigError, nearest

PUBLISHED = Path(__file__).parent / "published"

Percent = Annotated[float, Field(ge=0.0, le=100.0)]


class PublishedRow(Section):
    """One row of a published table.

    Attributes:
        method: as the source calls it.
        dataset: a name in ``configs/datasets.yaml``.
        step: which of our rows computes the same; ``None`` for a method that this project does not have.
        changes: keys and values that an experiment must have to be this row.
        frame: in which frame its source counts pixels; that of the table when absent.
        source: one of the table's ``sources``; that of the table when absent.
        note: what to know before it is compared.
        values: metric, as in our tables, to its value in per cent. ``pixel_pro`` is the PRO of this literature, by 200
            thresholds up to a false-positive rate of 0.3, and not our exact ``pixel_aupro``.
    """

    method: str
    dataset: str
    step: str | None = None
    changes: dict[str, Any] = Field(default_factory=dict)
    frame: str | None = None
    source: str | None = None
    note: str = ""
    values: dict[str, Percent]


class PublishedTable(Section):
    """A published table.

    Attributes:
        title: what it shows.
        source: where the numbers stand.
        frame: in which frame the source counts pixels, as far as it says.
        grid: the grid that computes our side of it; ``None`` if the table is only shown beside one.
        sources: where the numbers of single rows stand, by a short name.
        rows: in the order of the source.
        transductive: rows of methods that see all test images of a category before they judge one, another setting.
    """

    title: str
    source: str
    frame: str
    grid: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    rows: tuple[PublishedRow, ...]
    transductive: tuple[PublishedRow, ...] = ()

    @model_validator(mode="after")
    def _sources_are_named(self) -> PublishedTable:
        for row in (*self.rows, *self.transductive):
            if row.source is not None and row.source not in self.sources:
                raise ValueError(f"{row.method}: no source '{row.source}'; {nearest(row.source, self.sources)}")
        return self


def published_names() -> list[str]:
    """The tables that come with the package."""
    return sorted(path.stem for path in PUBLISHED.glob("*.yaml"))


def load_published(name: str) -> PublishedTable:
    """A table by name. Raises ``ConfigError`` naming the nearest one that exists."""
    if name not in published_names():
        raise ConfigError(f"no published table '{name}'; {nearest(name, published_names())}")
    return validate(PublishedTable, read_yaml(PUBLISHED / f"{name}.yaml"))


def is_row_of(row: PublishedRow, experiment: Experiment) -> bool:
    """Whether an experiment has every value that a published row names."""
    return all(value_at(experiment, key) == value for key, value in row.changes.items())
