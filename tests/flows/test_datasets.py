"""Datasets of the literature by command: each layout as small real files, descriptors, and what differs from them."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from cascade.configs.datasets import known_datasets
from cascade.storage.datasets import load_manifest, read_mask
from cascade.storage.datasets.layouts import LAYOUTS
from tests.flows.conftest import Bench, Cli

SIZE = (24, 32)  # height, width


def image(path: Path) -> None:
    """Noise of its own, of two values for none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode() + path.parent.as_posix().encode()))
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def mask(path: Path, *rows: int, value: int = 255) -> None:
    """Zeros, with some rows of four pixels each marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(SIZE, dtype=np.uint8)
    for row in rows:
        array[4 * row : 4 * row + 4, 4:20] = value
    Image.fromarray(array).save(path)


def like_mvtec(root: Path, categories: tuple[str, ...], good: str, bad: str, suffix: str, ending: str) -> None:
    """One training image, two good ones and one defective one of each."""
    for category in categories:
        for folder, number in ((f"train/{good}", 0), (f"test/{good}", 0), (f"test/{good}", 1), (f"test/{bad}", 0)):
            image(root / category / folder / f"{number:03}{suffix}")
        mask(root / category / "ground_truth" / bad / f"000{ending}.png", 2)


def mvtec(root: Path) -> None:
    like_mvtec(root, ("bottle", "screw"), "good", "scratch", ".png", "_mask")


def btad(root: Path) -> None:
    like_mvtec(root, ("01", "02", "03"), "ok", "ko", ".bmp", "")


def mpdd(root: Path) -> None:
    like_mvtec(root, ("connector", "tubes"), "good", "hole", ".png", "_mask")


def dtd(root: Path) -> None:
    like_mvtec(root, ("Woven_001", "Mesh_114"), "good", "bad", ".png", "_mask")


def loco(root: Path) -> None:
    """Two masks of one image, which are united."""
    own = root / "pushpins"
    for folder in ("train/good", "validation/good", "test/good", "test/logical_anomalies", "test/structural_anomalies"):
        image(own / folder / "000.png")
    mask(own / "ground_truth" / "logical_anomalies" / "000" / "000.png", 1)
    mask(own / "ground_truth" / "logical_anomalies" / "000" / "001.png", 4)
    mask(own / "ground_truth" / "structural_anomalies" / "000" / "000.png", 3)


def ad_2(root: Path) -> None:
    own = root / "can"
    for folder in ("train/good", "validation/good", "test_public/good", "test_public/bad", "test_private"):
        image(own / folder / "000.png")
    mask(own / "test_public" / "ground_truth" / "bad" / "000_mask.png", 2)


def visa(root: Path) -> None:
    lines = ["object,split,label,image,mask"]
    for split, label, kind, number in (
        ("train", "normal", "Normal", 0),
        ("test", "normal", "Normal", 1),
        ("test", "anomaly", "Anomaly", 0),
    ):
        path = f"candle/Data/Images/{kind}/{number:03}.JPG"
        image(root / path)
        marks = "candle/Data/Masks/Anomaly/000.png" if label == "anomaly" else ""
        lines.append(f"candle,{split},{label},{path},{marks}")
    mask(root / "candle/Data/Masks/Anomaly/000.png", 2, value=3)
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines))


def dagm(root: Path) -> None:
    for split, numbers in (("Train", (1,)), ("Test", (2, 3))):
        for number in numbers:
            image(root / "Class1" / split / f"{number:04}.PNG")
    mask(root / "Class1" / "Test" / "Label" / "0003_label.PNG", 2)


def ksdd(root: Path) -> None:
    for part in (0, 1):
        image(root / "kos01" / f"Part{part}.jpg")
        mask(root / "kos01" / f"Part{part}_label.bmp", *([2] if part else []))


def ksdd2(root: Path) -> None:
    for split, number in (("train", 10), ("test", 20), ("test", 21)):
        image(root / split / f"{number}.png")
        mask(root / split / f"{number}_GT.png", *([2] if number == 21 else []))


def real_iad(root: Path) -> None:
    rows: dict[str, Any] = {"meta": {"normal_class": "OK", "prefix": "usb/"}, "train": [], "test": []}
    for split, kind, place in (("train", "OK", "OK"), ("test", "OK", "OK"), ("test", "AK", "NG/AK")):
        path = f"{place}/S0001/{split}_{kind}.jpg"
        for size in ("realiad_1024", "realiad_256"):
            image(root / size / "usb" / path)
        marks = None if kind == "OK" else f"{place}/S0001/{split}_{kind}.png"
        if marks:
            mask(root / "realiad_1024" / "usb" / marks, 2)
        rows[split].append({"category": "usb", "anomaly_class": kind, "image_path": path, "mask_path": marks})
    (root / "realiad_jsons" / "realiad_jsons").mkdir(parents=True)
    (root / "realiad_jsons" / "realiad_jsons" / "usb.json").write_text(json.dumps(rows))


def meta_json(root: Path) -> None:
    """As AnomalyCLIP's script writes it for DAGM, one category of which is not here."""
    found: dict[str, Any] = {"Train": {"Class1": []}, "Test": {"Class1": [], "Class2": []}}
    for split, name, kind in (("Train", "a", ""), ("Test", "b", ""), ("Test", "c", "defect")):
        image(root / "pictures" / f"{name}.png")
        marks = f"truth/of_{name}.png" if kind else ""
        if kind:
            mask(root / marks, 2)
        row = {"img_path": f"pictures/{name}.png", "mask_path": marks, "specie_name": kind, "anomaly": int(bool(kind))}
        found[split]["Class1"].append(row | {"cls_name": "Class1", "dataset_name": "own"})
    found["Test"]["Class2"].append({"img_path": "gone.png", "mask_path": "", "anomaly": 0, "cls_name": "Class2"})
    (root / "meta.json").write_text(json.dumps(found))


BUILDERS: dict[str, tuple[Callable[[Path], None], dict[str, tuple[int, int, int]]]] = {
    "mvtec": (mvtec, {"bottle": (1, 2, 1), "screw": (1, 2, 1)}),
    "visa": (visa, {"candle": (1, 1, 1)}),
    "btad": (btad, dict.fromkeys(("01", "02", "03"), (1, 2, 1))),
    "mpdd": (mpdd, dict.fromkeys(("connector", "tubes"), (1, 2, 1))),
    "dtd_synthetic": (dtd, dict.fromkeys(("Mesh_114", "Woven_001"), (1, 2, 1))),
    "dagm": (dagm, {"Class1": (1, 1, 1)}),
    "ksdd": (ksdd, {"ksdd": (0, 1, 1)}),
    "ksdd2": (ksdd2, {"ksdd2": (1, 1, 1)}),
    "mvtec_loco": (loco, {"pushpins": (1, 1, 2)}),
    "mvtec_ad_2": (ad_2, {"can": (1, 1, 1)}),
    "real_iad": (real_iad, {"usb": (1, 1, 1)}),
    "meta": (meta_json, {"Class1": (1, 1, 1)}),
}
"""By dataset, or layout: what builds it, and training, good and defective images of each category."""


@pytest.mark.parametrize("name", BUILDERS)
def test_each_layout_is_read_and_described_by_command(cli: Cli, tmp_path: Path, name: str) -> None:
    build, expected = BUILDERS[name]
    folder = tmp_path / name
    build(folder)
    result = cli("check", folder)
    assert result.code == 0, result.out
    layout = known_datasets()[name].layout if name in known_datasets() else name
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0][:2] == ["layout", f"{layout}:"]
    for category, (train, good, defective) in expected.items():
        if train:
            assert lines_of(lines, category, "train")[-3:] == [str(train), "0", "0"]
        assert lines_of(lines, category, "test")[-3:] == [str(good), str(defective), "0"]
    assert "0 errors" in result.out

    made = cli("datasets", "init", folder, "--out", tmp_path / "own.yaml")
    assert made.code == 0, made.err
    found = yaml.safe_load((tmp_path / "own.yaml").read_text())
    assert found["layout"] == layout
    kinds = ("train", "good", "defective")
    assert {own: tuple(found["categories"][own][kind] for kind in kinds) for own in found["categories"]} == expected
    assert f"cascade check {folder} --descriptor {tmp_path / 'own.yaml'}" in made.out
    assert (f"looks like {name}" in made.out) == (name in known_datasets())
    again = cli("check", folder, "--descriptor", tmp_path / "own.yaml")
    assert f"{name}: numbers of images: as expected" in again.out


def lines_of(lines: list[list[str]], category: str, split: str) -> list[str]:
    (line,) = [line for line in lines if line[:1] == [category] and split in line]
    return line


def test_every_dataset_of_the_literature_has_a_test_here() -> None:
    assert {*known_datasets(), "meta"} == set(BUILDERS)


def test_masks_of_one_image_are_united(tmp_path: Path) -> None:
    loco(tmp_path / "loco")
    manifest = load_manifest(tmp_path / "loco")
    record = next(each for each in manifest if each.defect == "logical_anomalies")
    marked = read_mask(tmp_path / "loco" / str(record.mask_path))
    assert np.flatnonzero(marked.any(axis=1)).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


@pytest.mark.parametrize("name", ["meta", "real_iad", "mvtec_loco"])
def test_a_listed_dataset_is_run(cli: Cli, empty: Bench, tmp_path: Path, name: str) -> None:
    BUILDERS[name][0](tmp_path / name)
    used = Bench(tmp_path / name, empty.store, empty.overrides)
    assert cli(*used.arguments(), "--out", tmp_path / "run").code == 0
    images = pd.read_parquet(tmp_path / "run" / "images.parquet").drop_duplicates("path")
    expected = list(BUILDERS[name][1].items())
    assert images["category"].unique().tolist() == [category for category, _ in expected]
    assert images["label"].value_counts().to_dict() == {0: expected[0][1][1], 1: expected[0][1][2]}


# Numbers


def test_descriptors_are_those_of_the_notes() -> None:
    """Sums of the categories are the numbers of the whole, and what is not known is not expected."""
    known = known_datasets()
    assert {name: each.images for name, each in known.items() if each.images} == {
        "mvtec": 1725,
        "visa": 2162,
        "btad": 741,
        "mpdd": 458,
        "dtd_synthetic": 1304,
        "ksdd": 399,
    }
    for name, each in known.items():
        assert each.layout in LAYOUTS
        assert each.tree, name
        assert set(each.splits) <= {"train", "test"}
        assert each.licence
        assert each.get
        for kind in ("train", "good", "defective"):
            parts = [getattr(own, kind) for own in each.categories.values()]
            if parts and None not in parts:
                assert sum(parts) == getattr(each.counts, kind), f"{kind} of {name}"
    assert [len(known[name].categories) for name in ("mvtec", "visa", "dtd_synthetic", "real_iad")] == [15, 12, 12, 30]


@pytest.fixture
def whole_mpdd(tmp_path: Path) -> Path:
    """As many test images as MPDD has."""
    folder = tmp_path / "MPDD"
    for category, counts in known_datasets()["mpdd"].categories.items():
        for number in range(counts.good or 0):
            image(folder / category / "test" / "good" / f"{number:03}.png")
        for number in range(counts.defective or 0):
            image(folder / category / "test" / "hole" / f"{number:03}.png")
            mask(folder / category / "ground_truth" / "hole" / f"{number:03}_mask.png", 2)
    return folder


def test_what_differs_from_the_published_numbers_is_one_line_each(cli: Cli, whole_mpdd: Path) -> None:
    assert "MPDD: numbers of images: as expected" in cli("check", whole_mpdd).out
    (whole_mpdd / "connector" / "test" / "good" / "003.png").unlink()
    shutil.rmtree(whole_mpdd / "tubes")
    image(whole_mpdd / "cup" / "test" / "good" / "000.png")
    result = cli("check", whole_mpdd)
    assert result.code == 0
    lines = [line.strip() for line in result.out.splitlines() if line.startswith("MPDD ")]
    assert lines == [
        "MPDD connector: 29 good, not 30",
        "MPDD tubes: not here (32 good, 69 defective expected)",
        "MPDD cup: no category of it",
    ]


def test_numbers_of_the_whole_and_no_training_images(cli: Cli, tmp_path: Path) -> None:
    dtd(tmp_path / "DTD-Synthetic")
    shutil.rmtree(tmp_path / "DTD-Synthetic" / "Mesh_114" / "train")
    shutil.rmtree(tmp_path / "DTD-Synthetic" / "Woven_001" / "train")
    lines = [line for line in cli("check", tmp_path / "DTD-Synthetic").out.splitlines() if line.startswith("DTD")]
    assert "DTD-Synthetic Blotchy_099: not here" in lines
    assert lines[-1] == "DTD-Synthetic no training images (1200 expected); zero-shot methods need none"
    ksdd(tmp_path / "sdd")
    assert "KolektorSDD all together: 1 good, not 347; 1 defective, not 52" in cli("check", tmp_path / "sdd").out


def test_a_folder_of_another_name_is_known_by_all_its_categories(cli: Cli, tmp_path: Path) -> None:
    btad(tmp_path / "download")
    assert "BTAD 01: 1 train, not 400; 2 good, not 21; 1 defective, not 49" in cli("check", tmp_path / "download").out
    assert "BTAD" not in cli("check", tmp_path / "download", "--descriptor", "mvtec").out
    mvtec(tmp_path / "other")
    assert "MVTec" not in cli("check", tmp_path / "other").out


# The commands


def test_the_list_and_a_description(cli: Cli) -> None:
    shown = cli("datasets", "ls")
    assert shown.code == 0
    for name, known in known_datasets().items():
        (line,) = [line for line in shown.out.splitlines() if line.split()[:1] == [name]]
        assert known.title in line
        assert known.licence[:12] in line
    described = cli("datasets", "describe", "mvtec_loco")
    assert described.code == 0
    assert "<category>/ground_truth/<defect>/<image>/<number>.png" in described.out
    assert "licence: CC BY-NC-SA 4.0" in described.out
    assert "splicing_connectors" in described.out
    lines = [line.split() for line in cli("datasets", "describe", "mvtec").out.splitlines()]
    assert ["screw", "320", "41", "119"] in lines
    assert ["all", "3629", "467", "1258"] in lines


def test_ones_own_descriptor_is_described_and_never_replaced(cli: Cli, tmp_path: Path) -> None:
    mvtec(tmp_path / "photos")
    assert cli("datasets", "init", tmp_path / "photos", "--out", tmp_path / "own.yaml").code == 0
    assert ["bottle", "1", "2", "1"] in [
        line.split() for line in cli("datasets", "describe", tmp_path / "own.yaml").out.splitlines()
    ]
    again = cli("datasets", "init", tmp_path / "photos", "--out", tmp_path / "own.yaml")
    assert "is there already; give another file with --out" in again.refusal()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["describe", "mvtek"], "no dataset 'mvtek'; did you mean 'mvtec'"),
        (["describe", "none.yaml"], "none.yaml: cannot be read"),
        (["init", "nowhere"], "nowhere: no such folder"),
        (["init", ".", "--layout", "mvtek"], "did you mean 'mvtec'"),
    ],
)
def test_wrong_arguments_get_one_line(cli: Cli, given: list[str], part: str) -> None:
    assert part in cli("datasets", *given).refusal()


def test_a_descriptor_with_an_unknown_key_is_refused_before_images_are_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("title: mine\nlayuot: mvtec\n")
    result = cli("check", tmp_path, "--descriptor", tmp_path / "own.yaml")
    assert "unknown configuration key 'layuot'" in result.refusal()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "not readable JSON"),
        ("[]", "no images under 'train' or 'test'"),
        ('{"test": {"a": 1}}', "'test' must hold a list of images for each category"),
        ('{"test": {"a": [{"img_path": "a.png", "anomaly": 2}]}}', "anomaly is 2; write 0 for normal, 1 for defective"),
        ('{"test": {"a": ["a.png"]}}', "test, a, image 1: must hold img_path"),
        ('{"test": {"a": [{"img_path": "", "anomaly": 0}]}}', "img_path is empty"),
    ],
)
def test_a_meta_json_that_is_wrong_says_where(cli: Cli, tmp_path: Path, content: str, part: str) -> None:
    image(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "meta.json").write_text(content)
    result = cli("check", tmp_path / "set")
    assert result.code == 2
    assert part in result.out + result.err


def test_lists_of_real_iad_that_are_wrong_say_where(cli: Cli, tmp_path: Path) -> None:
    real_iad(tmp_path / "set")
    lists = tmp_path / "set" / "realiad_jsons" / "realiad_jsons" / "usb.json"
    rows = json.loads(lists.read_text())
    rows["test"][1]["anomaly_class"] = None
    lists.write_text(json.dumps(rows))
    result = cli("check", tmp_path / "set")
    assert result.code == 2
    assert "test, image 2: must hold image_path, mask_path and anomaly_class" in result.out
