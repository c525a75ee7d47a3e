from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cascade.storage.datasets import Manifest, detect_layout, inspect_dataset, load_manifest, read_mask
from cascade.storage.errors import ConfigError, DataError


def truth(manifest: Manifest) -> dict[str, tuple[str, int | None, str | None]]:
    return {record.path: (record.defect, record.label, record.mask_path) for record in manifest}


def kinds(root: Path, **options: Any) -> Counter[tuple[str, str]]:
    report = inspect_dataset(root, decode=True, **options)
    return Counter((problem.severity, problem.kind) for problem in report.problems)


# MVTec AD and its relatives


def test_mvtec_categories(mvtec: Any) -> None:
    assert detect_layout(mvtec.root) == "mvtec"
    manifest = load_manifest(mvtec.root)
    assert manifest.categories == ("nut", "screw")
    screws = manifest.select(["screw"])
    assert truth(screws) == {
        "screw/test/dent/000.png": ("dent", 1, "screw/ground_truth/dent/000_mask.png"),
        "screw/test/good/000.png": ("good", 0, None),
        "screw/test/good/001.png": ("good", 0, None),
        "screw/test/scratch/000.png": ("scratch", 1, "screw/ground_truth/scratch/000_mask.png"),
    }
    assert [record.path for record in manifest.select(["nut"], split="train")] == [
        "nut/train/good/000.png",
        "nut/train/good/001.png",
    ]
    assert not kinds(mvtec.root)


def test_mvtec_root_may_be_one_category(mvtec: Any) -> None:
    manifest = load_manifest(mvtec.root / "nut")
    assert (manifest.name, manifest.categories, len(manifest)) == ("nut", ("nut",), 6)
    assert manifest.records[0].path == "test/dent/000.png"


def test_mvtec_root_may_hold_sources(tree: Any, fill_category: Callable[[Any, str], None]) -> None:
    for folder in ("maker/screw", "maker/nut", "other/nut"):
        fill_category(tree, folder)
    assert detect_layout(tree.root) == "mvtec"
    assert load_manifest(tree.root).categories == ("maker/nut", "other/nut", "screw")


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_btad_ok_and_ko(tree: Any, suffix: str) -> None:
    tree.image("01/train/ok/0000.bmp")
    tree.image("01/test/ok/0001.bmp")
    tree.image("01/test/ko/0002.bmp")
    tree.mask(f"01/ground_truth/ko/0002.{suffix}")
    assert truth(load_manifest(tree.root).select(split="test")) == {
        "01/test/ko/0002.bmp": ("ko", 1, f"01/ground_truth/ko/0002.{suffix}"),
        "01/test/ok/0001.bmp": ("good", 0, None),
    }


def test_capitals_and_deeper_folders_are_read(tree: Any) -> None:
    for path in ("Cat/Test/Good/0.png", "Cat/Test/Good/cam1/0.png", "Cat/Test/Crack/cam1/1.png", "dog/test/good/2.png"):
        tree.image(path)
    tree.mask("Cat/Ground_Truth/crack/cam1/1_MASK.png")
    assert truth(load_manifest(tree.root)) == {
        "Cat/Test/Crack/cam1/1.png": ("Crack", 1, "Cat/Ground_Truth/crack/cam1/1_MASK.png"),
        "Cat/Test/Good/0.png": ("good", 0, None),
        "Cat/Test/Good/cam1/0.png": ("good", 0, None),
        "dog/test/good/2.png": ("good", 0, None),
    }
    assert kinds(tree.root) == {("warning", "no-defective"): 1}


def test_loco_has_a_folder_of_masks_for_each_image(tree: Any) -> None:
    tree.image("box/test/good/000.png")
    tree.image("box/test/logical_anomalies/000.png")
    tree.image("box/validation/good/000.png")
    tree.mask("box/ground_truth/logical_anomalies/000/000.png", values=(236,))
    tree.mask("box/ground_truth/logical_anomalies/000/001.png", values=(0, 240))
    record = next(each for each in load_manifest(tree.root) if each.label)
    assert record.mask_path == "box/ground_truth/logical_anomalies/000"
    assert read_mask(tree.root / record.mask_path)[[1, 2]].all()
    assert kinds(tree.root) == {("note", "aside"): 1}
    first = record.mask_id
    tree.mask("box/ground_truth/logical_anomalies/000/001.png", values=(0, 0, 240))
    assert next(each for each in load_manifest(tree.root) if each.label).mask_id != first


def test_ad_2_has_the_masks_in_its_public_test_split(tree: Any) -> None:
    tree.image("can/test_public/good/000_regular.png")
    tree.image("can/test_public/bad/000_regular.png")
    tree.image("can/test_private/000_regular.png")
    tree.mask("can/test_public/ground_truth/bad/000_regular_mask.png")
    assert truth(load_manifest(tree.root)) == {
        "can/test_public/bad/000_regular.png": ("bad", 1, "can/test_public/ground_truth/bad/000_regular_mask.png"),
        "can/test_public/good/000_regular.png": ("good", 0, None),
    }
    assert kinds(tree.root) == {("note", "aside"): 1}


def test_names_match_in_both_forms_of_unicode(tree: Any) -> None:
    nfc, nfd = (partial(unicodedata.normalize, form) for form in ("NFC", "NFD"))
    for form in ("NFC", "NFD"):
        category = unicodedata.normalize(form, f"Gerät{form}")
        tree.image(f"{category}/test/good/0.png")
        tree.image(f"{category}/test/{nfd('löchrig')}/{nfc('ä')}.png")
        tree.mask(f"{category}/ground_truth/{nfc('löchrig')}/{nfd('ä')}_mask.png")
    assert not kinds(tree.root)
    assert sum(record.mask_path is not None for record in load_manifest(tree.root)) == 2


def test_what_is_not_read_is_named_once_for_each_reason(mvtec: Any) -> None:
    for name in ("readme.txt", "nut/test/good/Thumbs.db", "nut/test/good/._000.png", "nut/ground_truth/dent/a.json"):
        mvtec.text(name)
    mvtec.text(".cache/test/good/x.txt")
    assert kinds(mvtec.root) == {("note", "no-pictures"): 3, ("note", "hidden"): 1}
    assert len(load_manifest(mvtec.root)) == 12
    for name in ("a.gif", "b.gif", "c.HEIC"):
        mvtec.text(f"nut/test/good/{name}")
    mvtec.image("nut/test/loose.png")
    mvtec.image("other/1.png")
    mvtec.text("manifest.csv", "path")
    found = [problem for problem in inspect_dataset(mvtec.root).warnings]
    assert [(problem.kind, problem.path, problem.message.split(" not read")[0]) for problem in found] == [
        ("skipped", "nut/test/good/a.gif", "2 .gif files"),
        ("skipped", "nut/test/good/c.HEIC", "1 .heic file"),
        ("unread", "nut/test", "1 image"),
        ("unread", "other", "1 image"),
        ("unread-table", "manifest.csv", "this table is"),
    ]


def test_a_defect_may_be_called_label(tree: Any) -> None:
    tree.image("bottle/test/good/0.png")
    tree.image("bottle/test/label/0.png")
    tree.mask("bottle/ground_truth/label/0_mask.png")
    assert truth(load_manifest(tree.root))["bottle/test/label/0.png"][2] == "bottle/ground_truth/label/0_mask.png"
    assert not kinds(tree.root)


def test_masks_inside_a_defects_folder_are_no_photographs(tree: Any) -> None:
    """As in MVTec 3D-AD, which is not read."""
    tree.image("bagel/test/good/rgb/000.png")
    tree.image("bagel/test/crack/rgb/000.png")
    tree.mask("bagel/test/crack/gt/000.png")
    assert kinds(tree.root) == {
        ("error", "missing-mask"): 1,
        ("warning", "unread"): 1,
        ("warning", "no-defective"): 1,
    }


def test_jfif_is_jpeg(mvtec: Any) -> None:
    mvtec.image("nut/test/good/7.jpg").rename(mvtec.root / "nut/test/good/7.jfif")
    assert not kinds(mvtec.root)
    assert len(load_manifest(mvtec.root)) == 13


# Masks beside their images


def test_dagm(tree: Any) -> None:
    for split in ("Train", "Test"):
        for number in range(3):
            tree.image(f"Class1/{split}/{number:04}.PNG")
        tree.mask(f"Class1/{split}/Label/0001_label.PNG")
    assert detect_layout(tree.root) == "beside"
    manifest = load_manifest(tree.root)
    assert truth(manifest.select()) == {
        "Class1/Test/0001.PNG": ("bad", 1, "Class1/Test/Label/0001_label.PNG"),
        "Class1/Test/0000.PNG": ("good", 0, None),
        "Class1/Test/0002.PNG": ("good", 0, None),
    }
    assert manifest.categories == ("Class1",)
    assert len(manifest.select(split="train")) == 3
    assert not kinds(tree.root)
    tree.mask("Class1/Test/Label/0009_label.PNG")
    assert kinds(tree.root) == {("error", "orphan-mask"): 1}


@pytest.mark.parametrize(
    ("image", "mask"),
    [("test/{}.png", "test/{}_GT.png"), ("kos01/Part{}.jpg", "kos01/Part{}_label.bmp"), ("{}.png", "{}_mask.png")],
)
def test_kolektor_and_the_like(tree: Any, image: str, mask: str) -> None:
    for number in range(2):
        tree.image(image.format(number))
        tree.mask(mask.format(number), values=(255,) if number else ())
    assert detect_layout(tree.root) == "beside"
    assert truth(load_manifest(tree.root)) == {
        image.format(1): ("bad", 1, mask.format(1)),
        image.format(0): ("good", 0, mask.format(0)),
    }
    assert not kinds(tree.root)


def test_masks_beside_images_with_names(tree: Any) -> None:
    for path in ("good/a.png", "scratch/b.png", "scratch/c.png"):
        tree.image(path)
    tree.mask("scratch/b_mask.png")
    assert kinds(tree.root) == {("error", "missing-mask"): 1}
    tree.mask("scratch/c_mask.png")
    assert truth(load_manifest(tree.root))["scratch/c.png"] == ("scratch", 1, "scratch/c_mask.png")
    tree.mask("scratch/c_gt.bmp")
    tree.image("scratch/b.jpg")
    assert kinds(tree.root) == {("error", "two-masks"): 1, ("error", "shared-mask"): 1}


# VisA


def test_visa_follows_the_split_file_and_leaves_absent_categories_out(visa: Any) -> None:
    assert detect_layout(visa.root) == "visa"
    assert kinds(visa.root) == {("warning", "absent-category"): 1}
    manifest = load_manifest(visa.root)
    assert truth(manifest.select()) == {
        "candle/Data/Images/Anomaly/000.JPG": ("bad", 1, "candle/Data/Masks/Anomaly/000.png"),
        "candle/Data/Images/Normal/0001.JPG": ("good", 0, None),
    }
    assert len(manifest.select(split="train")) == 1


def test_visa_ids_are_all_defect(visa: Any) -> None:
    mask = read_mask(visa.root / "candle/Data/Masks/Anomaly/000.png")
    assert mask[[1, 2]].all()
    assert mask.sum() == 2 * mask.shape[1]


def test_visa_row_without_its_file_is_an_error(visa: Any) -> None:
    (visa.root / "candle/Data/Images/Normal/0001.JPG").unlink()
    assert kinds(visa.root)["error", "missing-image"] == 1


@pytest.mark.parametrize(("columns", "expected"), [(("object", "split", "label", "image"), "mask"), ((), "object")])
def test_visa_split_file_without_a_column(tree: Any, columns: tuple[str, ...], expected: str) -> None:
    tree.table("split_csv/1cls.csv", columns)
    with pytest.raises(DataError, match=f"no column {expected}"):
        inspect_dataset(tree.root)


def test_visa_row_that_means_nothing(visa: Any) -> None:
    with (visa.root / "split_csv/1cls.csv").open("a") as file:
        file.write("candle,test,broken,candle/x.JPG,\n")
    report = inspect_dataset(visa.root)
    assert [(problem.kind, problem.message[:7]) for problem in report.errors] == [("row", "line 8:")]


# folder


def test_plain_folder_is_not_labelled(tree: Any) -> None:
    for path in ("a.png", "monday/b.png", "tuesday/deep/c.jpg"):
        tree.image(path)
    assert detect_layout(tree.root) == "folder"
    assert set(truth(load_manifest(tree.root)).values()) == {("", None, None)}
    assert load_manifest(tree.root).categories == ("set",)
    assert kinds(tree.root) == {("warning", "unlabelled"): 1}


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("Images", "Masks"), ("images", "ground_truth")])
def test_folder_masks_tell_normal_from_defective(tree: Any, images: str, masks: str) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "line2/a.jpg"):
        tree.image(f"{images}/{name}")
    tree.mask(f"{masks}/a.png")
    tree.mask(f"{masks}/b_mask.png", values=())
    tree.mask(f"{masks}/line2/a_mask.png")
    assert truth(load_manifest(tree.root)) == {
        f"{images}/a.jpg": ("bad", 1, f"{masks}/a.png"),
        f"{images}/b.jpg": ("good", 0, f"{masks}/b_mask.png"),
        f"{images}/c.jpg": ("good", 0, None),
        f"{images}/line2/a.jpg": ("line2", 1, f"{masks}/line2/a_mask.png"),
    }
    assert not kinds(tree.root)


def test_folder_named_good_makes_names_labels(tree: Any) -> None:
    for path in ("good/a.png", "scratch/b.png", "loose.png"):
        tree.image(path)
    assert truth(load_manifest(tree.root)) == {
        "good/a.png": ("good", 0, None),
        "scratch/b.png": ("scratch", 1, None),
        "loose.png": ("", None, None),
    }
    assert kinds(tree.root) == {("warning", "no-mask"): 1}


def test_folder_with_names_and_masks(tree: Any) -> None:
    for path in ("good/a.png", "scratch/b.png", "scratch/c.png"):
        tree.image(path)
    tree.mask("masks/scratch/b_mask.png")
    tree.mask("masks/scratch/c.png")
    assert truth(load_manifest(tree.root))["scratch/c.png"] == ("scratch", 1, "masks/scratch/c.png")
    (tree.root / "masks/scratch/c.png").unlink()
    assert kinds(tree.root) == {("error", "missing-mask"): 1}


def test_folders_too_deep_to_name_labels_are_named(tree: Any) -> None:
    for path in ("nut/good/a.png", "nut/bent/b.png", "bolt/good/c.png"):
        tree.image(path)
    found = [problem.path for problem in inspect_dataset(tree.root).warnings if problem.kind == "nested-labels"]
    assert found == ["bolt/good", "nut/good"]
    assert kinds(tree.root / "nut") == {("warning", "no-mask"): 1}


def test_a_mask_of_nobody_is_an_error_where_no_mask_means_good(tree: Any) -> None:
    tree.image("images/a.png")
    tree.image("images/b.png")
    tree.mask("masks/a.png")
    tree.mask("masks/b-defect.png")
    assert kinds(tree.root) == {("error", "orphan-mask"): 1}


def test_folder_says_which_masks_it_does_not_read(tree: Any) -> None:
    tree.image("line1/images/a.png")
    tree.mask("line1/masks/a.png")
    assert truth(load_manifest(tree.root)) == {"line1/images/a.png": ("", None, None)}
    assert kinds(tree.root)["warning", "nested-masks"] == 1


# manifest

COLUMNS = ("path", "category", "split", "defect", "label", "mask_path")


def test_table_with_paths_only(tree: Any) -> None:
    tree.image("x/a.png")
    tree.table("manifest.csv", ("path",), ("x/a.png",))
    assert detect_layout(tree.root) == "manifest"
    (record,) = load_manifest(tree.root)
    assert (record.category, record.split, record.defect, record.label) == ("set", "test", "", None)


def test_table_columns_and_their_defaults(tree: Any) -> None:
    for name in "abcdef":
        tree.image(f"{name}.png")
    tree.mask("m/marked.png")
    tree.mask("m/empty.png", values=())
    table = tree.table(
        "list.csv",
        COLUMNS,
        ("./a.png", "gear", "train", "good", "0", ""),
        ("b.png", "gear", "test", "crack", "", "m/marked.png"),
        ("c.png", "gear", "", "", "1", "m/marked.png"),
        ("d.png", "gear", "", "", "", "m/empty.png"),
        ("e.png", "gear", "", "", "", "m/marked.png"),
        ("f.png", "gear", "", "", "", ""),
    )
    manifest = load_manifest(table)
    assert truth(manifest) == {
        "a.png": ("good", 0, None),
        "b.png": ("crack", 1, "m/marked.png"),
        "c.png": ("bad", 1, "m/marked.png"),
        "d.png": ("good", 0, "m/empty.png"),
        "e.png": ("bad", 1, "m/marked.png"),
        "f.png": ("", None, None),
    }
    assert [record.split for record in manifest.select(split="train")] == ["train"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("layout", ["mvtec", "visa", "folder"])
def test_a_manifest_written_as_a_table_reads_back_equal(
    request: pytest.FixtureRequest, tree: Any, layout: str, suffix: str
) -> None:
    if layout == "folder":
        for path in ("good/a.png", "scratch/b.png", "c.png"):
            tree.image(path)
    else:
        request.getfixturevalue(layout)
    manifest = load_manifest(tree.root, layout)
    path = tree.root / f"manifest.{suffix}"
    frame = manifest.to_frame()
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert load_manifest(path) == manifest
    assert load_manifest(tree.root, "manifest") == manifest


def test_table_labels_with_gaps_may_come_as_floats(tree: Any) -> None:
    for name in "abc":
        tree.image(f"{name}.png")
    frame = pd.DataFrame({"path": ["a.png", "b.png", "c.png"], "label": [0.0, float("nan"), 1.0]})
    frame.to_parquet(tree.root / "manifest.parquet")
    assert {path: label for path, (_, label, _) in truth(load_manifest(tree.root)).items()} == {
        "a.png": 0,
        "b.png": None,
        "c.png": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "", "", "", "", ""), "path is empty"),
        (("a.png", "", "val", "", "", ""), "split is 'val'"),
        (("a.png", "", "", "", "yes", ""), "label is 'yes'"),
        (("a.png", "", "", "good", "1", ""), "contradicts"),
    ],
)
def test_table_rows_that_cannot_be_used(tree: Any, row: tuple[str, ...], message: str) -> None:
    tree.image("a.png")
    tree.image("b.png")
    tree.table("manifest.csv", COLUMNS, ("b.png", "", "", "", "", ""), row)
    (problem,) = inspect_dataset(tree.root).errors
    assert (problem.kind, problem.path) == ("row", "manifest.csv")
    assert "row 2" in problem.message
    assert message in problem.message


def test_table_columns_that_are_ignored_are_named(tree: Any) -> None:
    tree.image("a.png")
    tree.table("manifest.csv", ("path", "camera"), ("a.png", "3"))
    (problem,) = [p for p in inspect_dataset(tree.root).warnings if p.kind == "columns"]
    assert "camera;" in problem.message


def test_a_mask_that_two_rows_share_is_named(tree: Any) -> None:
    for name in ("a", "b"):
        tree.image(f"{name}.png")
    tree.mask("m.png")
    table = tree.table("t.csv", ("path", "label", "mask_path"), ("a.png", "TRUE", "m.png"), ("b.png", "1", "m.png"))
    report = inspect_dataset(table)
    assert [problem.kind for problem in report.problems] == ["no-normal", "shared-mask"]
    assert [record.label for record in report.manifest] == [1, 1]


def test_cells_may_be_quoted(tree: Any) -> None:
    tree.image("a, b.png")
    tree.text("t.csv", 'path, defect\n"a, b.png", "two\nlines"\n')
    (problem,) = inspect_dataset(tree.root / "t.csv").errors
    assert "two\\nlines" in problem.message
    tree.text("t.csv", 'path, defect\n"a, b.png", "bent"\n')
    assert [record.defect for record in load_manifest(tree.root / "t.csv")] == ["bent"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_other_programs(tree: Any, separator: str, mark: str, end: str) -> None:
    tree.image("sub/a, b.png") if separator != "," else tree.image("sub/a b.png")
    name = "sub\\a, b.png" if separator != "," else "sub\\a b.png"
    rows = [("Path ", " LABEL", "Camera"), (name, " 1 ", ""), (str(tree.root / "sub" / name[4:]), "1", "")]
    tree.text("t.csv", mark + end.join(separator.join(row) for row in rows[:2]) + end)
    (record,) = load_manifest(tree.root / "t.csv")
    assert (record.path, record.label) == (name.replace("\\", "/"), 1)
    tree.text("t.csv", mark + end.join(separator.join(row) for row in (rows[0], rows[2])))
    assert [each.path for each in load_manifest(tree.root / "t.csv")] == [record.path]


def test_a_table_may_name_files_in_the_other_form_of_unicode_and_another_case(tree: Any) -> None:
    tree.image(unicodedata.normalize("NFD", "Grün/ä.PNG"))
    table = tree.table("t.csv", ("path",), (unicodedata.normalize("NFC", "grün/Ä.png"),))
    (record,) = load_manifest(table)
    assert record.path == unicodedata.normalize("NFD", "Grün/ä.PNG")


def test_a_table_may_name_its_folder_through_a_link(tree: Any, tmp_path: Path) -> None:
    tree.image("a.png")
    (tmp_path / "link").symlink_to(tree.root)
    tree.table("t.csv", ("path",), (str(tmp_path / "link" / "a.png"),))
    assert [record.path for record in load_manifest(tmp_path / "link" / "t.csv")] == ["a.png"]


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("labels", "label"),
        ("Lable", "label"),
        ("anomaly", "label"),
        ("mask", "mask_path"),
        ("maskpath", "mask_path"),
        ("categorie", "category"),
        ("Defects", "defect"),
    ],
)
def test_a_header_that_is_nearly_ours_is_refused(tree: Any, header: str, meant: str) -> None:
    tree.image("a.png")
    table = tree.table("t.csv", ("path", header), ("a.png", "1"))
    with pytest.raises(DataError, match=f"'{header}'.*'{meant}'"):
        load_manifest(table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label,Label\na.png,0,1\n", "twice"),
        ("path;label\na.png;0;extra\n", "row 1: has 3 cells"),
        ("path\na.png\n".encode("utf-16"), "UTF-8"),
        ("path,label\nä.png,0\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_tables_with_a_cause_that_is_named(tree: Any, content: str | bytes, message: str) -> None:
    tree.image("a.png")
    (tree.root / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        load_manifest(tree.root / "t.csv")


@pytest.mark.parametrize(("name", "content"), [("t.csv", "image\na.png\n"), ("t.parquet", "no"), ("t.csv", "")])
def test_tables_that_cannot_be_read(tree: Any, name: str, content: str) -> None:
    with pytest.raises(DataError, match=name):
        load_manifest(tree.text(name, content))


# detection


def test_detection_names_what_it_looked_for(tree: Any) -> None:
    tree.text("notes.txt")
    with pytest.raises(DataError, match=r"1cls\.csv.*test/<defect>.*manifest\.csv.*image"):
        detect_layout(tree.root)
    with pytest.raises(DataError, match="no such folder"):
        detect_layout(tree.root / "elsewhere")


def test_a_wrong_layout_is_told_apart_from_a_wrong_root(mvtec: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mvtec'"):
        load_manifest(mvtec.root, "mvtek")
    with pytest.raises(DataError, match="layout visa"):
        load_manifest(mvtec.root, "visa")
    with pytest.raises(DataError, match="layout manifest"):
        load_manifest(mvtec.root, "manifest")
    with pytest.raises(DataError, match="layout mvtec"):
        load_manifest(mvtec.root / "nut" / "test", "mvtec")
    with pytest.raises(DataError, match="no such folder"):
        load_manifest(mvtec.root / "gone", "folder")
