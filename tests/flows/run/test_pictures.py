"""The picture of a run: which images it shows, and that it shows what the run stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cascade.flows.run.pictures import sheet_of, write_pictures
from tests.flows.conftest import Bench, Cli, Outcome


def test_a_row_shows_photograph_map_mask_and_truth(cli: Cli, finished: tuple[Bench, Outcome], tmp_path: Path) -> None:
    bench, outcome = finished
    run = outcome.prepared.run
    sheet = sheet_of(run)
    panels = np.array(sheet.axes).reshape(-1, 4)
    assert [panel.get_title() for panel in panels[0]] == [
        "photograph",
        "map (clip)",
        "mask (points+box+logits)",
        "truth",
    ]
    names = [panel.get_ylabel().split("\n") for panel in panels[:, 0]]
    expected = []
    for category in ("carpet", "metal_plate"):
        paths = sorted((bench.dataset / category / "test").rglob("*.png"))
        defective = [path for path in paths if path.parent.name != "good"]
        good = [path for path in paths if path.parent.name == "good"]
        expected += [[category, f"{path.parent.name} {path.stem}"] for path in (*defective[:3], good[0])]
    assert [name[:2] for name in names] == expected

    assert cli(*bench.arguments(), "--out", tmp_path / "run").code == 0
    assert cli("export", tmp_path / "run", tmp_path / "maps").code == 0
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    images = images[images["step"] == "points+box+logits"].set_index("path")
    for row, (category, kind, score) in zip(panels, names, strict=True):
        defect, number = kind.rsplit(" ", 1)
        stored = images.loc[f"{category}/test/{defect}/{number}.png"]
        assert score == f"score {stored['image_score']:.2f}"
        shown = np.asarray(row[1].images[0].get_array())
        scored = np.load(tmp_path / "maps" / "maps" / "clip" / category / defect / f"{number}.npy")
        assert np.array_equal(shown, scored.astype(np.float32))
        photograph = Image.open(bench.dataset / category / "test" / defect / f"{number}.png").convert("RGB")
        assert np.array_equal(row[0].images[0].get_array(), np.asarray(photograph))  # 96 pixels, as the frame
        assert _coloured(row[2]).mean() == pytest.approx(stored["mask_area"])
        truth = np.zeros((96, 96), bool)
        if defect != "good":
            mask = bench.dataset / category / "ground_truth" / defect / f"{number}_mask.png"
            truth = np.asarray(Image.open(mask)) > 0
        assert np.array_equal(_coloured(row[3]), truth)


def test_images_without_truth_and_of_any_shape_are_shown(odd_sizes: Bench, tmp_path: Path) -> None:
    plain = tmp_path / "plain" / "screw"
    plain.mkdir(parents=True)
    for path in (odd_sizes.dataset / "screw" / "test").rglob("*.png"):
        path.rename(plain / f"{path.parent.name}.png")
    run = replace(odd_sizes, dataset=plain.parent).run().prepared.run
    panels = np.array(sheet_of(run).axes).reshape(-1, 4)
    assert [panel.get_box_aspect() for panel in panels[:, 0]] == [100 / 64, 80 / 120]
    assert [text.get_text() for panel in panels[:, 3] for text in panel.texts] == ["not known"] * 2
    assert not any(panel.images for panel in panels[:, 3])
    with Image.open(write_pictures(run, tmp_path / "pictures.png")) as sheet:
        assert sheet.format == "PNG"


def _coloured(panel: object) -> np.ndarray:
    """Where a picture is not grey."""
    shown = np.asarray(panel.images[0].get_array())  # type: ignore[attr-defined]
    return np.ptp(shown, axis=2) > 1e-6
