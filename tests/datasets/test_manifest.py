from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cascade.storage.datasets import ImageRecord, Manifest, load_manifest
from cascade.storage.errors import ConfigError


def record(category: str, defect: str, path: str) -> ImageRecord:
    return ImageRecord(
        image_id=hashlib.sha256(path.encode()).hexdigest(),
        path=path,
        category=category,
        split="test",
        defect=defect,
        label=int(defect != "good"),
        mask_path=None,
        mask_id=None,
        width=4,
        height=3,
    )


def test_ids_are_digests_of_the_bytes(mvtec: Any) -> None:
    for found in load_manifest(mvtec.root):
        assert found.image_id == hashlib.sha256((mvtec.root / found.path).read_bytes()).hexdigest()
        if found.mask_path:
            assert found.mask_id == hashlib.sha256((mvtec.root / found.mask_path).read_bytes()).hexdigest()
        else:
            assert found.mask_id is None
        assert (found.height, found.width) == (12, 16)


def test_a_moved_file_keeps_its_id(mvtec: Any) -> None:
    before = {found.path: found.image_id for found in load_manifest(mvtec.root)}
    mvtec.move("nut/test/good/000.png", "nut/test/good/zzz.png")
    after = {found.path: found.image_id for found in load_manifest(mvtec.root)}
    assert after.pop("nut/test/good/zzz.png") == before.pop("nut/test/good/000.png")
    assert after == before


def test_the_order_is_category_defect_path_whatever_the_order_of_discovery() -> None:
    records = [
        record(category, defect, f"{top}/{below}/{number}.png")
        for category, top in (("a", "2"), ("b", "1"))
        for defect, below in (("crack", "y"), ("good", "x"))
        for number in range(3)
    ]
    shuffled = random.Random(0).sample(records, k=len(records))
    assert Manifest("x", Path(), tuple(shuffled)).records == tuple(records)


def test_select(mvtec: Any) -> None:
    manifest = load_manifest(mvtec.root)
    assert manifest.select() == manifest.select(["nut", "screw"])
    assert manifest.select(exclude=["nut"]).categories == ("screw",)
    assert len(manifest.select(["nut"], exclude=["nut"])) == 0
    assert {found.split for found in manifest.select(split="train")} == {"train"}


@pytest.mark.parametrize("arguments", [{"categories": ["scrwe"]}, {"exclude": ["scrwe"]}])
def test_select_of_an_unknown_category(mvtec: Any, arguments: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'screw'"):
        load_manifest(mvtec.root).select(**arguments)


def test_frame_has_one_row_per_record_and_keeps_unknown_labels_apart(tree: Any) -> None:
    tree.image("good/a.png")
    tree.image("b.png")
    manifest = load_manifest(tree.root)
    frame = manifest.to_frame()
    assert list(frame.columns) == [field.name for field in dataclasses.fields(ImageRecord)]
    assert frame["path"].tolist() == [found.path for found in manifest]
    assert frame["label"].tolist() == [pd.NA, 0]
    assert frame["mask_path"].isna().all()


def test_an_empty_frame_has_the_same_columns() -> None:
    frame = Manifest("x", Path(), ()).to_frame()
    assert frame.empty
    assert "image_id" in frame
