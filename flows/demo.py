"""What `cascade demo` runs: both mini presets, on photographs of defects and on generated ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cascade.configs.loader import as_override, load_experiment
from cascade.configs.schema import Experiment
from cascade.flows.generate import generate_dataset
from cascade.storage.paths import PHOTOGRAPHS, require_writable

PRESETS = ("mini", "mini_batch")
CATEGORIES = ("carpet", "metal plate")


def write_generated(folder: Path) -> Path:
    """Generate the dataset, and return its root. Raises ``ConfigError`` if nothing can be written there."""
    require_writable(folder)
    generate_dataset(folder / "data", categories=CATEGORIES, good=3, defective=6)
    return folder / "data"


def demonstrations(generated: Path) -> Iterator[tuple[str, Experiment]]:
    """The experiments with a name for each, as ``<dataset>-<preset>``."""
    for dataset, path in {"photographs": PHOTOGRAPHS, "generated": generated}.items():
        for preset in PRESETS:
            chosen = [as_override("dataset.path", str(path)), f"dataset.name={dataset}", f"name=demo_{preset}"]
            yield f"{dataset}-{preset}", load_experiment(preset, chosen)
