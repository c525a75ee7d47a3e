"""Every refiner by command: run, tables, export, ablation, pictures, and a run that was killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from cascade.configs.loader import load_experiment
from cascade.configs.schema import Experiment
from cascade.configs.section import methods_of
from cascade.configs.settings import Settings
from cascade.flows.generate import generate_dataset
from cascade.flows.run.pictures import sheet_of
from cascade.flows.run.prepare import prepare
from cascade.localisers import make_localiser
from cascade.localisers.patch_text import LinearAdapter
from cascade.localisers.protocol import Trainable
from cascade.storage.weights import LocatedWeights, file_sha256
from cascade.tasks.execution import networks
from cascade.tasks.execution.networks import networks_of
from cascade.tasks.prompt import PROMPT
from cascade.tasks.refine import REFINE
from tests.flows.conftest import Bench, Cli, files_of
from tests.tiny import SMALL_CLIP

STEPS = {
    "cps": ["points", "points+logits", "points+box+logits"],
    "persam": ["points", "points+logits", "points+box+logits"],
    "mmr": ["points+box", "levels"],
    "none": [],
}
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


@pytest.mark.parametrize("method", ["mmr", pytest.param("persam", marks=pytest.mark.slow)])
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


LOCALISERS = methods_of(Experiment.model_fields["localise"])
SMALL = {"backbone": "small", "image_side": "128", "layers": "[2,4,6,8]", "share": "0.5", "batch.image_side": "128"}
"""Options of those localisers that have them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nine images of one category, enough for a batch, and a CLIP called ``small``."""
    folder = tmp_path_factory.mktemp("matrix")
    generate_dataset(folder / "data", categories=("carpet",), good=3, defective=6, size=96, seed=5)
    shutil.copy(networks.MODELS / "mini_clip.json", folder)
    (folder / "small_clip.json").write_text(json.dumps(SMALL_CLIP))
    torch.manual_seed(0)
    clip = open_clip.CLIP(SMALL_CLIP["embed_dim"], SMALL_CLIP["vision_cfg"], SMALL_CLIP["text_cfg"])
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "clip.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "MODELS", folder)
        yield folder


def overrides_of(method: str, place: Path) -> list[str]:
    """What makes a localiser of the preset ``mini`` one of small networks, with weights that are not trained."""
    fields = LOCALISERS[method].model_fields
    chosen = [f"localise.method={method}"]
    chosen += [f"localise.{name}={value}" for name, value in SMALL.items() if name.partition(".")[0] in fields]
    if method == "mutual":  # a network of features of its own, whose cells are 16 pixels wide
        chosen = [each for each in chosen if "backbone" not in each and "layers" not in each and "side" not in each]
        return [*chosen, "localise.image_side=256"]
    chosen.append(f"localise.weights={place / 'clip.safetensors'}")
    if "adapter" in fields:
        adapter = place / f"{method}.safetensors"
        experiment = load_experiment("mini", chosen)
        weights = place / "clip.safetensors"
        own = networks_of(experiment, {"clip": LocatedWeights(weights, file_sha256(weights), "path")})
        localiser = make_localiser(method, experiment.localise)
        torch.manual_seed(1)
        width, embed = SMALL_CLIP["vision_cfg"]["width"], SMALL_CLIP["embed_dim"]
        module = localiser.untrained(own) if isinstance(localiser, Trainable) else LinearAdapter(4, width, embed)
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, adapter)
        chosen.append(f"localise.adapter={adapter}")
    return chosen


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "april_gan" else [pytest.mark.slow]) for name in LOCALISERS]
)
def test_any_localiser_goes_with_any_refiner(cli: Cli, place: Path, tmp_path: Path, method: str) -> None:
    """CPS for the image and for each part, and the others, on one map; the parts have prompts of their own."""
    small = ("prompt.frame=96", "score.frame=96", "prompt.spacing.rank=40", "prompt.dilation.size=9")
    common = [*overrides_of(method, place), *small, *PARTS, "prompt.threshold.rule=quantile", "runtime.device=cpu"]
    variants = [{"refine.method": name} for name in STEPS] + [{"refine.method": "cps", "prompt.grouping": "component"}]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"axes": {"list": variants}}))
    settings = [part for each in common for part in ("--set", each)]
    places = ("--dataset", place / "data", "--store", place / "store", "--out", tmp_path / "out", "--engine", "local")
    done = cli("ablate", tmp_path / "grid.yaml", "--experiment", "mini", *places, *settings)
    assert done.code == 0, done.out + done.err
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    steps = table.groupby("variant", sort=False)["step"].unique().map(lambda own: list(own)[1:]).tolist()
    assert steps == [*STEPS.values(), STEPS["cps"]]
    assert (table.loc[table["step"] == table["step"].iloc[0]].groupby("category")["pixel_ap"].nunique() == 1).all()

    data = f"dataset.path={place / 'data'}"
    for variant in (variants[list(STEPS).index("mmr")], variants[-1]):
        chosen = [f"{name}={value}" for name, value in variant.items()]
        run = prepare(load_experiment("mini", [data, *common, *chosen]), place / "store", Settings()).run
        items = PROMPT.items(run)
        assert max(len(PROMPT.artefact(run).read(item.id).record["sets"]) for item in items) > 1
        assert all(REFINE.artefact(run).read(item.id).arrays["logits"].any() for item in items)
