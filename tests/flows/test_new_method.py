"""A localiser and a refiner are added: a module each, a member of a union each, a preset, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import cascade
from cascade.flows.generate import generate_dataset

LOCALISER = """
from dataclasses import dataclass
import cv2, torch
from cascade.localisers.protocol import AnomalyMap, Kept, Localiser

@dataclass(frozen=True)
class Darkness(Localiser):
    VERSION = 1
    sides: tuple[int, ...]
    def inputs(self, squares): return [torch.from_numpy(squares[0]).float() / 255]
    def look(self, networks, inputs): return {"dark": 1 - inputs[0].mean(dim=-1)}
    def look_arrays(self, networks): return {"dark": Kept((self.sides[0], self.sides[0]), "float16")}
    def compare(self, networks, looks, texts, others=()):
        return {"dark": looks["dark"].numpy()}, looks["dark"].amax((1, 2)).numpy()
    def arrays(self, networks): return {"dark": Kept((self.sides[0], self.sides[0]), "float32")}
    def map_of(self, arrays, size): return AnomalyMap(*[cv2.resize(arrays["dark"], size[::-1])] * 2)

LOCALISER = Darkness
"""
REFINER = """
from dataclasses import dataclass
import numpy as np
from cascade.refiners.protocol import Refined, Refiner, Step

@dataclass(frozen=True)
class Disc(Refiner):
    VERSION, STEPS, MASKS = 1, ("disc",), 1
    radius: float
    def refine(self, decode, embeddings, points, labels, rows):
        grid = 4 * embeddings.shape[-1]
        y, x = np.mgrid[:grid, :grid] * (rows[0].frame.side / grid)
        discs = [self.radius - np.hypot(x - float(own[0, 0]), y - float(own[0, 1])) for own in points]
        return [Refined((Step(disc[None].astype(np.float32), np.ones(1, np.float32), 0),), False) for disc in discs]

REFINER = Disc
"""
LOCALISER_SECTION = """class Darkness(Localiser):
    method: Literal["darkness"] = "darkness"
    sides: tuple[Whole, ...] = (64,)


"""
REFINER_SECTION = """class Disc(Section):
    method: Literal["disc"] = "disc"
    radius: float = 60.0


"""
PRESET = """
name: toy
embed: {backbone: mini}
localise: {method: darkness}
refine: {method: disc}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the two methods in it."""
    folder = tmp_path_factory.mktemp("tree")
    package = folder / "cascade"
    shutil.copytree(Path(cascade.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "localisers" / "darkness.py").write_text(LOCALISER)
    (package / "refiners" / "disc.py").write_text(REFINER)
    (package / "configs" / "presets" / "toy.yaml").write_text(PRESET)
    _add(package / "configs" / "localisers.py", "LocaliseConfig = ", LOCALISER_SECTION, "Mutual", "Darkness")
    _add(package / "configs" / "refiners.py", "RefineConfig = ", REFINER_SECTION, "Unrefined", "Disc")
    generate_dataset(folder / "data", categories=("carpet",), good=1, defective=2, size=96)
    return folder


def _add(sections: Path, union: str, section: str, before: str, name: str) -> None:
    """Write a section before the union, and its name into it."""
    text = sections.read_text()
    for old, new in (
        (union, section + union),
        (f"Annotated[{before}, Tag(", f"Annotated[{name}, Tag({name.lower()!r})] | Annotated[{before}, Tag("),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    sections.write_text(text)


def python(tree: Path, *arguments: object) -> str:
    """What a process of the copy prints."""
    environment = os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "250"}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


CASCADE = ("-c", "from cascade.flows.cli import main; main()")


def test_through_the_command_line(tree: Path) -> None:
    python(tree, *CASCADE, "run", "toy", "--dataset", "data", "--out", "run")
    results = pd.read_csv(tree / "run" / "results.csv")
    assert list(results["step"].unique()) == ["map", "disc"]
    assert set(results["localiser"]) == {"darkness"}
    assert set(results["refiner"]) == {"disc"}
    assert results["pixel_auroc"].between(0, 1).all()
    images = pd.read_parquet(tree / "run" / "images.parquet")
    assert (images.loc[images["step"] == "disc", "mask_area"] > 0).all()
    python(tree, *CASCADE, "export", "run", "maps")
    assert {path.name for path in (tree / "maps" / "maps").iterdir()} == {"map", "disc"}
    python(tree, *CASCADE, "compare", "run", "run")


def test_through_an_ablation_with_the_others(tree: Path) -> None:
    (tree / "grid.yaml").write_text(
        "axes:\n  list:\n    - {refine.method: disc, refine.radius: 30.0}\n    - {refine.method: cps}\n"
        "    - {refine.method: none}\n"
    )
    python(tree, *CASCADE, "ablate", "grid.yaml", "--experiment", "toy", "--dataset", "data", "--out", "ablation")
    table = pd.read_csv(tree / "ablation" / "results.csv")
    steps = table.groupby("variant", sort=False)["step"].unique().map(list).tolist()
    assert steps == [["map", "disc"], ["map", "points", "points+logits", "points+box+logits"], ["map"]]
    assert len(set(table.loc[table["step"] == "map", "pixel_ap"].round(9))) <= 2  # of the category and of the mean


def test_through_a_segmenter(tree: Path) -> None:
    code = (
        "from cascade import Segmenter\n"
        "from pathlib import Path\n"
        "(path, *_) = sorted(Path('data').rglob('test/*/*.png'))\n"
        "found = Segmenter.from_preset('toy', device='cpu').predict(path)\n"
        "print(list(found.steps), found.map.shape, bool(found.mask.any()))\n"
    )
    assert python(tree, "-c", code) == "['map', 'disc'] (518, 518) True\n"


def test_an_option_of_another_method_is_refused_with_its_owner(tree: Path) -> None:
    command = [sys.executable, *CASCADE, "run", "toy", "--dataset", "data", "--set", "localise.adapter=x.pth"]
    ended = subprocess.run(
        command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 2
    line = ended.stderr
    assert line.startswith("error: localise.adapter is an option of 'april_gan', ")
    assert "'fused'" in line
    assert line.endswith("', and localise.method is 'darkness'; leave it out\n")
    assert line.count("\n") == 1
