"""Every refiner by command: run, tables, export, ablation, pictures, and a run that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cascade.flows.run.pictures import sheet_of
from cascade.tasks.prompt import PROMPT
from cascade.tasks.refine import REFINE
from tests.flows.conftest import Bench, Cli, files_of

STEPS = {
    "cps": ["points", "points+logits", "points+box+logits"],
    "persam": ["points", "points+logits", "points+box+logits"],
    "mmr": ["points+box", "levels"],
    "none": [],
}
OTHERS = ("mmr", "persam")
PARTS = ("prompt.threshold.quantile=0.9", "prompt.threshold.min_area=2")
"""So that S_a has several parts."""

KILLED = """
import os, signal, sys
from cascade.storage import artefacts

write, left = artefacts.Artefact.write, [int(sys.argv[1])]

def counted(self, *arguments):
    write(self, *arguments)
    if self.path.parent.name == "refine":
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

artefacts.Artefact.write = counted
from cascade.flows.cli import main
sys.argv = ["cascade", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize("method", STEPS)
def test_its_steps_are_in_every_table_and_file(cli: Cli, bench: Bench, tmp_path: Path, method: str) -> None:
    chosen = (f"refine.method={method}", *PARTS)
    done = cli(*bench.arguments(*chosen), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    steps = ["clip", *STEPS[method]]
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    assert list(results["step"].unique()) == steps
    assert set(results["refiner"]) == {method}
    assert results[["pixel_auroc", "pixel_ap", "pixel_f1max"]].stack().between(0, 1).all()
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    assert list(images["step"].unique()) == steps
    panels = sheet_of(bench.run(*chosen).prepared.run).axes
    assert panels[2].get_title() == f"mask ({steps[-1]})"
    assert cli("export", tmp_path / "run", tmp_path / "maps").code == 0
    assert {path.name for path in (tmp_path / "maps" / "maps").iterdir()} == set(steps)
    again = cli(*bench.arguments(*chosen), "--out", tmp_path / "again")
    assert "miss" not in again.out


def test_persam_has_one_positive_and_one_negative(bench: Bench) -> None:
    """Whatever the experiment says; the positive is the first of CPS's, the negative anywhere outside of S_a."""
    ours = bench.run("refine.method=persam", "prompt.positives=5", "prompt.similarity=max").prepared.run
    theirs = bench.run("prompt.prototype_features=raw").prepared.run
    for item in PROMPT.items(ours):
        (own,), (other,) = (PROMPT.artefact(run).read(item.id).record["sets"] for run in (ours, theirs))
        assert own["labels"] == [1, 0]
        assert own["points"][0] == other["points"][0]
        assert own["values"][1] <= min(other["values"][3:]) + 1e-6
        refined = REFINE.artefact(ours).read(item.id)
        assert [len(each) for each in refined.record["predicted_iou"]] == [1, 3, 3]
    assert PROMPT.key(bench.prepare("refine.method=persam").run) == PROMPT.key(ours)


def test_mmr_has_a_box_and_positive_points_for_each_part(bench: Bench) -> None:
    run = bench.run("refine.method=mmr", *PARTS).prepared.run
    several = 0
    for item in PROMPT.items(run):
        sets = PROMPT.artefact(run).read(item.id).record["sets"]
        several += len(sets) > 1
        scale = np.array([96 / item.record.width, 96 / item.record.height])
        for own in sets:
            assert set(own["labels"]) == {1}
            x0, y0, x1, y1 = own["box"]
            for x, y in np.array(own["points"]) * scale:
                assert x0 - 1e-6 <= x <= x1 + 1e-6
                assert y0 - 1e-6 <= y <= y1 + 1e-6
        record = REFINE.artefact(run).read(item.id).record
        assert record["boxes"] == [[own["box"] for own in sets]] * 2
    assert several


def test_an_ablation_has_the_steps_of_each(cli: Cli, bench: Bench, tmp_path: Path) -> None:
    grid = "axes:\n  list:\n" + "".join(f"    - {{refine.method: {method}}}\n" for method in STEPS)
    (tmp_path / "grid.yaml").write_text(grid)
    settings = [part for override in bench.overrides for part in ("--set", override)]
    places = ("--dataset", bench.dataset, "--store", bench.store, "--out", tmp_path / "ablation")
    done = cli("ablate", tmp_path / "grid.yaml", "--experiment", "mini", *places, "--engine", "local", *settings)
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "ablation" / "results.csv")
    steps = table.groupby("variant", sort=False)["step"].unique().map(list).tolist()
    assert steps == [["clip", *own] for own in STEPS.values()]
    maps = table[table["step"] == "clip"].groupby("category")["pixel_ap"]
    assert (maps.nunique() == 1).all()


@pytest.mark.parametrize("method", OTHERS)
def test_a_killed_run_goes_on_to_the_same_bytes(empty: Bench, cli: Cli, tmp_path: Path, method: str) -> None:
    arguments = empty.arguments(f"refine.method={method}", *PARTS)
    command = [sys.executable, "-c", KILLED, "3", *arguments, "--out", str(tmp_path / "killed")]
    assert subprocess.run(command, capture_output=True).returncode == -9
    ended = cli(*arguments, "--out", tmp_path / "ended")
    assert ended.code == 0, ended.err
    whole = Bench(empty.dataset, tmp_path / "whole", empty.overrides)
    assert cli(*whole.arguments(f"refine.method={method}", *PARTS), "--out", tmp_path / "reference").code == 0
    first, second = (
        {name: data for name, data in files_of(store).items() if "/c/" in name} for store in (empty.store, whole.store)
    )
    assert first == second
    assert len(first) > 20
    tables = [(tmp_path / name / "results.csv").read_bytes() for name in ("ended", "reference")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "localiser",
    [
        ("localise.method=april_gan",),
        ("localise.method=mutual", "localise.image_side=256", "localise.share=0.5"),
        ("localise.method=fused", "localise.batch.image_side=128", "localise.batch.share=0.5"),
    ],
    ids=lambda own: own[0].partition("=")[2],
)
@pytest.mark.parametrize("refiner", [("refine.method=cps", "prompt.grouping=component"), ("refine.method=mmr",)])
def test_parts_have_prompts_of_their_own_on_the_map_of_any_localiser(
    cli: Cli, nine: Path, tmp_path: Path, localiser: tuple[str, ...], refiner: tuple[str, ...]
) -> None:
    small = (
        "prompt.frame=96",
        "score.frame=96",
        "prompt.spacing.rank=40",
        "prompt.dilation.size=9",
        "runtime.device=cpu",
        "prompt.threshold.rule=quantile",
    )
    settings = [part for each in (*localiser, *refiner, *small, *PARTS) for part in ("--set", each)]
    places = ("--dataset", nine, "--store", nine.parent / "store", "--out", tmp_path / "run", "--engine", "local")
    done = cli("run", "mini", *places, *settings)
    assert done.code == 0, done.err
    points = pd.read_parquet(tmp_path / "run" / "points.parquet")
    assert points.groupby("path")["set"].nunique().max() > 1
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    last = images[images["step"] == images["step"].iloc[-1]]
    assert (last["mask_area"] > 0).any()


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of one category: enough for a batch."""
    from cascade.flows.generate import generate_dataset

    folder = tmp_path_factory.mktemp("nine") / "data"
    generate_dataset(folder, categories=("carpet",), good=3, defective=6, size=96, seed=5)
    return folder
