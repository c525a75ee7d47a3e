"""Descriptors of datasets: those of the literature, and a file of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cascade.configs.loader import read_yaml, validate
from cascade.configs.section import Section, Whole
from cascade.storage.errors import ConfigError, nearest

DATASETS = Path(__file__).parent / "datasets.yaml"

Number = Annotated[Whole, Field(ge=0)]


class Counts(Section):
    """Numbers of images; ``None`` where none is expected.

    Attributes:
        train: in the training split, of any kind.
        good: normal ones in the test split.
        defective: the others in the test split.
    """

    train: Number | None = None
    good: Number | None = None
    defective: Number | None = None


class KnownDataset(Section):
    """A dataset.

    Attributes:
        title: its usual name.
        folders: usual names of its folder, in lower case.
        layout: that it is read in, as ``dataset.layout`` takes it.
        tree: its paths, one pattern each.
        splits: what our splits are called there.
        licence: of the images.
        get: how to get it.
        notes: what to know before numbers are compared.
        auxiliary: the dataset on which an adapter that is tested on this one is trained.
        recipe: of that training, as ``--train`` takes it.
        categories: what is expected of each; without any, only all together.
        counts: what is expected of all together.
    """

    title: str
    folders: tuple[str, ...] = ()
    layout: Literal["auto", "mvtec", "visa", "real_iad", "meta", "beside", "folder", "manifest"] = "auto"
    tree: tuple[str, ...] = ()
    splits: dict[Literal["train", "test"], str] = Field(default_factory=dict)
    licence: str = ""
    get: str = ""
    notes: tuple[str, ...] = ()
    auxiliary: str = "visa"
    recipe: tuple[str, ...] = ("epochs=15",)
    categories: dict[str, Counts] = Field(default_factory=dict)
    counts: Counts = Counts()

    @property
    def images(self) -> int | None:
        """Number of test images; ``None`` if none is expected."""
        good, defective = self.counts.good, self.counts.defective
        return None if good is None or defective is None else good + defective


def known_datasets() -> Mapping[str, KnownDataset]:
    """The datasets of the literature, by name."""
    return {name: validate(KnownDataset, own) for name, own in read_yaml(DATASETS).items()}


def load_descriptor(name: str) -> KnownDataset:
    """A dataset of the literature by name, or a descriptor in a YAML file. Raises ``ConfigError`` if it is neither."""
    known = known_datasets()
    if name in known:
        return known[name]
    if Path(name).suffix.lower() in (".yaml", ".yml") or Path(name).is_file():
        return validate(KnownDataset, read_yaml(Path(name)))
    raise ConfigError(f"no dataset '{name}'; {nearest(name, known)}")


def find_dataset(root: Path, dataset: KnownDataset) -> Path | None:
    """The folder of a dataset below ``root`` by its usual names, in any case; ``None`` if there is none."""
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()} if root.is_dir() else {}
    return next((folders[name] for name in dataset.folders if name in folders), None)
