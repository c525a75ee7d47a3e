"""The presets compute what they computed: key digests and tables of ``mini`` and ``paper``, kept in ``golden/presets``.

A change that is meant writes them anew: ``python -m tests.flows.run.test_presets``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cascade.configs.loader import load_experiment
from cascade.configs.settings import Settings
from cascade.flows.engines.evaluate import STAGES, evaluate
from cascade.flows.engines.local import execute_locally
from cascade.flows.generate import generate_dataset
from cascade.flows.run.prepare import prepare
from cascade.storage.datasets import Manifest
from cascade.storage.weights import LocatedWeights
from cascade.tasks.stage import Run
from cascade.tasks.tables.results import images_table, points_table, results_table
from tests.flows.conftest import Recorder

GOLDEN = Path(__file__).parents[2] / "golden" / "presets"
PRESETS = ("mini", "paper", "paper_strict")
SMALL = (
    "embed.backbone=mini",
    "localise.backbone=mini",
    "localise.pretrained=shipped",
    "localise.image_side=512",
    "localise.layers=[1,2]",
)
"""The mini networks in place of the large ones, whose weights are not here."""


def key_digests(preset: str, folder: Path) -> dict[str, str]:
    """The digest of each stage's key, whatever the images are; weights that are not here count as zeros."""
    experiment = load_experiment(preset)
    weights = {role: LocatedWeights(folder / role, "0" * 64, "path") for role in ("sam", "clip", "adapter")}
    run = Run(experiment, Manifest("none", folder, ()), folder, weights)
    return {stage.name: stage.key(run).digest for stage in STAGES}


def tables(preset: str, folder: Path) -> dict[str, pd.DataFrame]:
    """What a run of a preset on four generated images writes, with the mini networks."""
    data = folder / "data"
    if not data.exists():
        generate_dataset(data, categories=("carpet", "metal plate"), good=1, defective=1, size=192, seed=77)
    small = SMALL if preset != "mini" else ()
    experiment = load_experiment(preset, [f"dataset.path={data}", *small])
    prepared = prepare(experiment, folder / "store", Settings(weights=folder / "none"))
    evaluate(prepared.run, execute_locally, Recorder())
    return {
        "results": results_table(prepared.run),
        "images": images_table(prepared.run),
        "points": points_table(prepared.run),
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_no_key_of_a_preset_has_changed(preset: str, tmp_path: Path):
    assert key_digests(preset, tmp_path) == json.loads((GOLDEN / "keys.json").read_text())[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_no_table_of_a_preset_has_changed(preset: str, tmp_path: Path):
    for name, found in tables(preset, tmp_path).items():
        kept = pd.read_csv(GOLDEN / f"{preset}-{name}.csv")
        found.to_csv(tmp_path / "found.csv", index=False)
        found = pd.read_csv(tmp_path / "found.csv")
        assert list(found) == list(kept)
        for column in kept:
            if pd.api.types.is_float_dtype(kept[column]):  # another processor rounds otherwise
                np.testing.assert_allclose(found[column], kept[column], atol=2e-3, err_msg=f"{name}.{column}")
            else:
                assert found[column].astype(str).tolist() == kept[column].astype(str).tolist(), f"{name}.{column}"


def write_golden() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        keys = {preset: key_digests(preset, folder) for preset in PRESETS}
        (GOLDEN / "keys.json").write_text(json.dumps(keys, indent=1) + "\n")
        for preset in PRESETS:
            for name, table in tables(preset, folder).items():
                table.to_csv(GOLDEN / f"{preset}-{name}.csv", index=False)


if __name__ == "__main__":
    write_golden()
