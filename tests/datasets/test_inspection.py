"""One test for each kind of problem, and what a report does with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade.storage.datasets import Problem, Rules, inspect_dataset, load_manifest, summarised
from cascade.storage.errors import DataError

SCRATCH = "nut/test/scratch/000.png"
SCRATCH_MASK = "nut/ground_truth/scratch/000_mask.png"
BLOB = np.zeros((12, 16), np.uint8)
BLOB[5:7, 6:9] = 255


def only(root: Path, *, decode: bool = True, layout: str = "auto") -> Problem:
    (problem,) = inspect_dataset(root, layout, decode=decode).problems
    return problem


def only_of(root: Path, rules: Rules) -> Problem:
    (problem,) = inspect_dataset(root, rules, decode=True).problems
    return problem


def check(problem: Problem, severity: str, kind: str, path: str, message: str = "") -> None:
    assert (problem.severity, problem.kind, problem.path) == (severity, kind, path)
    assert message in problem.message


def test_a_sound_dataset_has_no_problems(mvtec: Any) -> None:
    report = inspect_dataset(mvtec.root, decode=True)
    assert report.ok
    assert not report.problems
    assert report.manifest == load_manifest(mvtec.root)


@pytest.mark.parametrize(("name", "word"), [("readme.txt", "no known layout"), ("a.heic", "1 .heic file not read")])
def test_no_images(tree: Any, name: str, word: str) -> None:
    tree.text(f"nut/test/good/{name}")
    with pytest.raises(DataError, match=word):
        inspect_dataset(tree.root)
    tree.table("manifest.csv", ("path",))
    check(only(tree.root), "error", "empty", ".")


# images


def test_missing_image(tree: Any) -> None:
    tree.table("manifest.csv", ("path", "label"), ("gone.png", "0"), ("here.png", "1"))
    tree.image("here.png")
    (problem,) = inspect_dataset(tree.root).errors
    check(problem, "error", "missing-image", "gone.png")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_image(mvtec: Any, content: bytes) -> None:
    (mvtec.root / SCRATCH).write_bytes(content)
    check(only(mvtec.root, decode=False), "error", "unreadable-image", SCRATCH)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image_is_found_at_the_full_level(mvtec: Any, suffix: str) -> None:
    path = f"nut/test/good/cut.{suffix}"
    mvtec.image(path, size=(64, 64))
    mvtec.cut(path)
    assert inspect_dataset(mvtec.root).ok
    check(only(mvtec.root), "error", "truncated-image", path)


def test_oversized_image(mvtec: Any, huge_header: bytes) -> None:
    (mvtec.root / SCRATCH).write_bytes(huge_header)
    check(only(mvtec.root, decode=False), "error", "oversized-image", SCRATCH, "megapixels")


def test_damage_does_not_hide_in_one_image_per_run(mvtec: Any) -> None:
    for path in (SCRATCH, "screw/test/good/001.png"):
        (mvtec.root / path).write_bytes(b"")
    report = inspect_dataset(mvtec.root)
    assert [problem.path for problem in report.errors] == [SCRATCH, "screw/test/good/001.png"]
    assert len(report.manifest) == 10


# masks


def test_missing_mask(mvtec: Any) -> None:
    (mvtec.root / SCRATCH_MASK).unlink()
    check(only(mvtec.root, decode=False), "error", "missing-mask", SCRATCH)


def test_missing_mask_of_visa(visa: Any) -> None:
    mask = "candle/Data/Masks/Anomaly/000.png"
    (visa.root / mask).unlink()
    check(inspect_dataset(visa.root).errors[0], "error", "missing-mask", mask)


def test_defective_rows_without_masks_are_counted_per_category(tree: Any) -> None:
    tree.table("manifest.csv", ("path", "label"), ("a.png", "0"), ("b.png", "1"), ("c.png", "1"))
    for name in "abc":
        tree.image(f"{name}.png")
    check(only(tree.root), "warning", "no-mask", "set", "2 of 2")


def test_unreadable_mask(mvtec: Any) -> None:
    (mvtec.root / SCRATCH_MASK).write_bytes(b"?")
    check(only(mvtec.root, decode=False), "error", "unreadable-mask", SCRATCH_MASK)


def test_truncated_mask(mvtec: Any) -> None:
    mvtec.image(SCRATCH_MASK)
    mvtec.cut(SCRATCH_MASK)
    check(only(mvtec.root), "error", "truncated-mask", SCRATCH_MASK)


def test_oversized_mask(mvtec: Any, huge_header: bytes) -> None:
    (mvtec.root / SCRATCH_MASK).write_bytes(huge_header)
    check(only(mvtec.root, decode=False), "error", "oversized-mask", SCRATCH_MASK)


def test_mask_of_another_size(mvtec: Any) -> None:
    mvtec.mask(SCRATCH_MASK, size=(16, 12))
    check(
        only(mvtec.root, decode=False), "error", "mask-size", SCRATCH_MASK, f"12x16, but its image {SCRATCH} is 16x12"
    )


def test_mask_with_three_values(mvtec: Any) -> None:
    mvtec.mask(SCRATCH_MASK, values=(128, 255))
    assert inspect_dataset(mvtec.root).ok
    check(only(mvtec.root), "error", "mask-values", SCRATCH_MASK, "3 different values; threshold it")


@pytest.mark.parametrize("value", [1, 7, 255])
def test_mask_with_any_one_positive_value_is_sound(mvtec: Any, value: int) -> None:
    mvtec.mask(SCRATCH_MASK, values=(value,))
    assert not inspect_dataset(mvtec.root, decode=True).problems


def test_visa_masks_may_hold_several_ids(visa: Any) -> None:
    assert inspect_dataset(visa.root, decode=True).ok


def test_empty_mask_of_a_defective_image(mvtec: Any) -> None:
    mvtec.mask(SCRATCH_MASK, values=())
    check(only(mvtec.root), "error", "empty-mask", SCRATCH_MASK)


def test_mask_that_marks_a_normal_image(mvtec: Any) -> None:
    mvtec.mask("nut/ground_truth/good/000_mask.png")
    mvtec.mask("nut/ground_truth/good/001_mask.png", values=())
    check(only(mvtec.root), "error", "marked-normal", "nut/ground_truth/good/000_mask.png")


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (255 - BLOB, "inverted-mask"),
        (np.full_like(BLOB, 255), "inverted-mask"),
        (np.full_like(BLOB, 1), "inverted-mask"),
        (np.where(BLOB, 1, 2), "mask-background"),
        (np.where(BLOB[..., None], (255, 0, 0), (255, 255, 255)), "mask-background"),
        (np.where(BLOB[..., None], (255, 255, 255), (0, 0, 128)), "mask-background"),
    ],
)
def test_a_mask_whose_background_is_not_black(mvtec: Any, mask: np.ndarray, kind: str) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(mvtec.root / SCRATCH_MASK)
    check(only(mvtec.root), "error", kind, SCRATCH_MASK)


def test_an_inverted_mask_shows_by_its_border_even_where_the_defect_is_large(mvtec: Any) -> None:
    mask = np.full((12, 16), 255, np.uint8)
    mask[1:-1, 1:-1] = 0
    Image.fromarray(mask).save(mvtec.root / SCRATCH_MASK)
    check(only(mvtec.root), "error", "inverted-mask", SCRATCH_MASK, "dataset.large_masks=true")
    assert not inspect_dataset(mvtec.root, Rules(large_masks=True), decode=True).problems


@pytest.mark.parametrize("columns", [slice(0, 14), slice(2, 16)])
def test_a_large_defect_is_no_inverted_mask(mvtec: Any, columns: slice) -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[:, columns] = 255
    Image.fromarray(mask).save(mvtec.root / SCRATCH_MASK)
    assert not inspect_dataset(mvtec.root, decode=True).problems


def test_the_mask_of_a_turned_photograph(mvtec: Any) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.open(mvtec.root / SCRATCH).save(mvtec.root / SCRATCH, exif=exif)
    check(only(mvtec.root, decode=False), "error", "mask-size", SCRATCH_MASK, "after the turn")
    mvtec.mask(SCRATCH_MASK, size=(16, 12))
    check(only(mvtec.root), "warning", "turned", SCRATCH)
    (record,) = (each for each in load_manifest(mvtec.root) if each.path == SCRATCH)
    assert (record.height, record.width) == (16, 12)
    assert record.image_id == f"{record.digest}-turned"


def test_a_mask_of_two_photographs(mvtec: Any) -> None:
    mvtec.image("nut/test/scratch/000.jpg")
    check(only(mvtec.root), "error", "shared-mask", SCRATCH_MASK, "000.jpg and of nut/test/scratch/000.png")


@pytest.mark.parametrize("other", ["000_mask.tif", "000.png", "000_gt.bmp", "000/1.png"])
def test_two_masks_of_a_photograph(mvtec: Any, other: str) -> None:
    mvtec.mask(f"nut/ground_truth/scratch/{other}")
    assert [problem.kind for problem in inspect_dataset(mvtec.root).errors] == ["two-masks"]


def test_two_mask_folders(mvtec: Any, tree: Any) -> None:
    mvtec.mask("nut/masks/scratch/000.png")
    assert [problem.kind for problem in inspect_dataset(mvtec.root).errors][-1] == "two-mask-folders"
    for folder in ("masks", "ground_truth"):
        tree.mask(f"own/{folder}/a.png")
    tree.image("own/images/a.png")
    assert [problem.kind for problem in inspect_dataset(tree.root / "own").errors] == ["two-mask-folders"]


def test_a_mask_among_the_photographs(mvtec: Any) -> None:
    mvtec.mask("nut/test/scratch/000_mask.png")
    (problem,) = [each for each in inspect_dataset(mvtec.root).errors if each.kind == "mask-as-image"]
    check(problem, "error", "mask-as-image", "nut/test/scratch/000_mask.png", SCRATCH)


def test_a_mask_in_another_folder_of_photographs(tree: Any) -> None:
    tree.image("Defect_images/0001.png")
    tree.mask("Mask_images/0001_mask.png")
    kinds = {(problem.severity, problem.kind) for problem in inspect_dataset(tree.root, decode=True).problems}
    assert kinds == {("error", "mask-as-image"), ("warning", "unlabelled")}
    tree.move("Mask_images/0001_mask.png", "annotations/0001.png")
    (problem,) = inspect_dataset(tree.root, decode=True).errors
    check(problem, "error", "mask-as-image", "annotations/0001.png", "Defect_images/0001.png, as its mask has")


@pytest.mark.parametrize(("values", "word"), [((), "one colour"), ((255,), "two colours")])
def test_photographs_of_few_colours(mvtec: Any, values: tuple[int, ...], word: str) -> None:
    mvtec.mask("nut/test/good/000.png", values=values)
    check(only(mvtec.root), "warning", "few-colours", "nut/test/good/000.png", word)


def test_defective_photographs_that_differ_in_the_extension(tree: Any) -> None:
    for path in ("ok/a.jpg", "ok/a.png", "ng/b.jpg", "ng/b.png"):
        tree.image(path)
    found = [(each.severity, each.path) for each in inspect_dataset(tree.root).problems if each.kind == "same-name"]
    assert found == [("error", "ng/b.png"), ("warning", "ok/a.png")]


def test_defects_that_vanish_in_the_frame_are_counted(mvtec: Any) -> None:
    for number, lines in (("000", [40]), ("001", [40, 41, 42, 80])):
        mvtec.image(f"nut/test/scratch/{number}.png", size=(100, 100))
        mask = np.zeros((100, 100), np.uint8)
        mask[lines] = 255
        Image.fromarray(mask).save(mvtec.root / f"nut/ground_truth/scratch/{number}_mask.png")
    found = [each for each in inspect_dataset(mvtec.root, decode=True, frame=37).warnings if each.kind == "vanishing"]
    assert [(each.path[-7:], each.message.split(" in ")[0]) for each in found] == [
        ("000.png", "its only defect vanishes"),
        ("001.png", "1 of its 2 defects vanish"),
    ]
    assert not inspect_dataset(mvtec.root, decode=True, frame=100).problems


# more than 8 bits


def deep(path: Path, peak: float, kind: Any = np.uint16) -> None:
    values = np.linspace(0, peak, 12 * 16).reshape(12, 16).astype(kind)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("kind", "suffix", "peak", "white"),
    [
        (np.uint16, "png", 4000, 4095),
        (np.uint16, "tif", 200, 255),
        (np.uint16, "png", 60_000, 65_535),
        (np.int32, "tif", 100_000, 2**20 - 1),
        (np.float32, "tif", 0.75, 1),
        (np.float32, "tif", 1.0004, 1),
        (np.float32, "tif", 200.5, 256),
        (np.float32, "tif", 4.7, 8),
        (np.float32, "tif", 0.01, 1 / 64),
    ],
)
def test_deep_images_share_the_white_of_the_dataset(
    mvtec: Any, kind: Any, suffix: str, peak: float, white: float
) -> None:
    for number, share in enumerate((1, 0.01), start=5):
        deep(mvtec.root / f"nut/test/good/{number}.{suffix}", peak * share, kind)
    report = inspect_dataset(mvtec.root)
    own = [record for record in report.manifest if record.white is not None]
    assert [record.white for record in own] == [white, white]
    usual = white == 65_535
    assert [record.image_id == record.digest for record in own] == [usual, usual]
    assert len(report.problems) == (0 if usual else 1)
    for problem in report.problems:
        check(problem, "warning", "depth", own[0].path, f"dataset.full_scale={white}")


def test_the_white_can_be_given(mvtec: Any) -> None:
    deep(mvtec.root / "nut/test/good/5.png", 3000)
    assert not inspect_dataset(mvtec.root, Rules(full_scale=4095)).problems
    check(only_of(mvtec.root / "screw", Rules(full_scale=4095)), "warning", "unused-full-scale", ".")
    problem = only_of(mvtec.root, Rules(full_scale=1023))
    check(problem, "error", "beyond-full-scale", "nut/test/good/5.png", "3000")


def test_what_is_known_is_not_decoded_again(mvtec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deep(mvtec.root / "nut/test/good/5.png", 3000)
    first = inspect_dataset(mvtec.root, decode=True)
    seen = {record.image_id.partition("-")[0]: first.pixels[record.path] for record in first.manifest}
    for name in ("largest_value", "read_image", "read_mask_codes"):
        monkeypatch.setattr(f"cascade.storage.datasets.pixels.{name}", lambda path: pytest.fail("decoded"))
    again = inspect_dataset(mvtec.root, decode=True, known=lambda record: seen.get(record.digest))
    assert (again.manifest, again.problems) == (first.manifest, first.problems)


def test_mask_without_image(mvtec: Any) -> None:
    mvtec.mask("nut/ground_truth/scratch/777_mask.png")
    check(only(mvtec.root), "warning", "orphan-mask", "nut/ground_truth/scratch/777_mask.png")


# paths


@pytest.mark.parametrize("path", ["/etc/hostname.png", "../outside.png", "x/../a.png", "C:/outside.png"])
@pytest.mark.parametrize("column", ["path", "mask_path"])
def test_paths_that_leave_the_dataset(tree: Any, path: str, column: str) -> None:
    tree.image("a.png")
    tree.image("../outside.png")
    row = {"path": "a.png", "mask_path": "", column: path}
    tree.table("manifest.csv", tuple(row), tuple(row.values()))
    check(inspect_dataset(tree.root).errors[0], "error", "escape", path)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_links_may_stay_inside_the_dataset_only(mvtec: Any, tmp_path: Path) -> None:
    outside = mvtec.image("../outside.png")
    (mvtec.root / "nut/test/good/link.png").symlink_to(outside)
    mvtec.move(SCRATCH, "pool/1.png")
    (mvtec.root / SCRATCH).symlink_to(mvtec.root / "pool/1.png")
    link, pool = inspect_dataset(mvtec.root).problems
    check(link, "error", "link", "nut/test/good/link.png", "dataset.follow_links=true")
    check(pool, "warning", "unread", "pool", "1 image")
    linked_root = tmp_path / "shortcut"
    linked_root.symlink_to(mvtec.root / "screw")
    assert inspect_dataset(linked_root).ok


def test_a_link_that_leaves_the_dataset_is_one_problem_or_is_read(mvtec: Any) -> None:
    for number in range(5):
        mvtec.image(f"../elsewhere/bent/{number}.png")
        mvtec.mask(f"../elsewhere/truth/{number}.png")
    (mvtec.root / "nut/test/bent").symlink_to(mvtec.root.parent / "elsewhere/bent")
    (mvtec.root / "nut/ground_truth/bent").symlink_to(mvtec.root.parent / "elsewhere/truth")
    for layout in ("auto", "folder"):
        links = [problem for problem in inspect_dataset(mvtec.root, layout).errors if problem.kind == "link"]
        assert [problem.path for problem in links] == ["nut/ground_truth/bent", "nut/test/bent"]
    report = inspect_dataset(mvtec.root, Rules(follow_links=True), decode=True)
    assert not report.problems
    bent = [record for record in report.manifest if record.defect == "bent"]
    assert [record.mask_path for record in bent] == [f"nut/ground_truth/bent/{number}.png" for number in range(5)]


def test_links_in_a_circle_end(mvtec: Any) -> None:
    (mvtec.root / "nut/test/good/again").symlink_to(mvtec.root)
    (mvtec.root / "nut/test/good/self.png").symlink_to("self.png")
    assert len(inspect_dataset(mvtec.root).manifest) == 12


def test_a_row_that_a_link_leads_away(mvtec: Any) -> None:
    mvtec.image("../elsewhere/a.png")
    (mvtec.root / "away").symlink_to(mvtec.root.parent / "elsewhere")
    table = mvtec.table("list.csv", ("path",), ("away/a.png",))
    (problem,) = inspect_dataset(table).errors
    check(problem, "error", "link", "away/a.png", "dataset.follow_links=true")
    assert inspect_dataset(table, Rules(follow_links=True)).ok


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(mvtec: Any) -> None:
    (mvtec.root / "nut/test/dent").chmod(0)
    try:
        (problem,) = inspect_dataset(mvtec.root).errors
    finally:
        (mvtec.root / "nut/test/dent").chmod(0o755)
    check(problem, "error", "unreadable-folder", "nut/test/dent")


@pytest.mark.parametrize("name", ["a\x1b[2J.png", "a\nb.png", "a\udce9.png", f"{'x' * 210}.png"])
def test_a_file_name_that_cannot_be_written_in_a_table(mvtec: Any, name: str) -> None:
    mvtec.image("plain.png").rename(mvtec.root / "nut/test/good" / name)
    check(only(mvtec.root), "error", "name", f"nut/test/good/{name}", "choose another name")


@pytest.mark.parametrize("name", ["../../x", "/x", "a\\b", "a\x1b", "mean", "x" * 201, "a//b"])
def test_a_category_that_cannot_be_a_folder_or_a_row(tree: Any, name: str) -> None:
    for path in ("a.png", "b.png", "c.png"):
        tree.image(path)
    table = tree.table("t.csv", ("path", "category", "label"), ("a.png", name, "0"), ("b.png", name, "0"))
    (problem,) = inspect_dataset(table).errors
    check(problem, "error", "name", "a.png", "choose another name")


def test_a_defect_that_cannot_be_a_folder(tree: Any) -> None:
    tree.image("a.png")
    (problem,) = inspect_dataset(tree.table("t.csv", ("path", "defect"), ("a.png", "../x"))).errors
    check(problem, "error", "name", "a.png", "defect")


def test_case_collision(mvtec: Any) -> None:
    mvtec.image("nut/test/good/A.png")
    mvtec.image("nut/test/good/a.PNG")
    if len(list((mvtec.root / "nut/test/good").iterdir())) < 4:
        pytest.skip("this file system cannot hold both names")
    problem = only(mvtec.root)
    check(problem, "warning", "case-collision", "nut/test/good/a.PNG", "nut/test/good/A.png")


def test_repeated_path(tree: Any) -> None:
    tree.image("a.png")
    tree.image("b.png")
    tree.table("manifest.csv", ("path", "label"), ("a.png", "0"), ("b.png", "0"), ("./a.png", "0"))
    (problem,) = inspect_dataset(tree.root).errors
    check(problem, "error", "repeated-path", "a.png")


# between images


def test_duplicates_with_the_same_truth(mvtec: Any) -> None:
    mvtec.image("nut/test/good/001.png", seed=5)
    mvtec.image("nut/test/good/002.png", seed=5)
    check(only(mvtec.root, decode=False), "warning", "duplicate", "nut/test/good/002.png", "nut/test/good/001.png")


def test_duplicates_across_splits_say_so(mvtec: Any) -> None:
    mvtec.image("nut/test/good/001.png", seed=5)
    mvtec.image("nut/train/good/001.png", seed=5)
    check(only(mvtec.root), "warning", "duplicate", "nut/train/good/001.png", "other split")


def test_duplicates_with_another_label(mvtec: Any) -> None:
    mvtec.image("nut/test/good/001.png", seed=5)
    mvtec.image(SCRATCH, seed=5)
    check(only(mvtec.root, decode=False), "error", "duplicate", SCRATCH, "nut/test/good/001.png")


def test_duplicates_with_another_mask(mvtec: Any) -> None:
    mvtec.image("nut/test/dent/000.png", seed=5)
    mvtec.image(SCRATCH, seed=5)
    assert only(mvtec.root).severity == "warning"
    mvtec.mask(SCRATCH_MASK, values=(0, 0, 255))
    check(only(mvtec.root), "error", "duplicate", SCRATCH)


# categories


def test_category_without_defective_images(tree: Any) -> None:
    tree.image("nut/test/good/0.png")
    check(only(tree.root), "warning", "no-defective", "nut")


def test_category_without_normal_images(mvtec: Any) -> None:
    for number in (0, 1):
        (mvtec.root / f"nut/test/good/00{number}.png").unlink()
    check(only(mvtec.root), "warning", "no-normal", "nut")


def test_category_without_labels(tree: Any) -> None:
    tree.image("a.png")
    check(only(tree.root), "warning", "unlabelled", "set")


def test_absent_category(visa: Any) -> None:
    check(only(visa.root), "warning", "absent-category", "pcb1", "3 images")


# what a report does


def test_errors_come_first_and_the_order_is_fixed(mvtec: Any) -> None:
    mvtec.mask("nut/ground_truth/scratch/777_mask.png")
    (mvtec.root / SCRATCH).write_bytes(b"")
    mvtec.mask("screw/ground_truth/dent/000_mask.png", size=(3, 3))
    first, second = (inspect_dataset(mvtec.root).problems for _ in range(2))
    assert first == second
    assert [problem.severity for problem in first] == ["error", "error", "warning"]


def test_loading_raises_one_line_with_the_first_errors_and_the_command(mvtec: Any) -> None:
    for path in sorted(mvtec.root.glob("*/test/*/*.png"))[:5]:
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_manifest(mvtec.root)
    message = str(caught.value)
    assert "\n" not in message
    assert "nut/test/dent/000.png" in message
    assert "and 4 more" in message
    assert f"`cascade check {mvtec.root}`" in message
    assert "--skip-bad" in message


def test_loading_tolerates_warnings(visa: Any) -> None:
    assert load_manifest(visa.root, name="my visa").name == "my visa"


def test_bad_images_can_be_left_out(mvtec: Any) -> None:
    (mvtec.root / SCRATCH).write_bytes(b"")
    (mvtec.root / "nut/ground_truth/dent/000_mask.png").unlink()
    report = inspect_dataset(mvtec.root, skip_bad=True)
    assert report.ok
    assert [(each.path, each.category, each.kind) for each in report.left_out] == [
        ("nut/test/dent/000.png", "nut", "missing-mask"),
        (SCRATCH, "nut", "unreadable-image"),
    ]
    assert len(report.manifest) == 10
    assert [problem.kind for problem in report.warnings] == ["no-defective"]


def test_what_is_not_clear_is_not_left_out(mvtec: Any) -> None:
    mvtec.image("nut/test/scratch/000.jpg")
    report = inspect_dataset(mvtec.root, skip_bad=True)
    assert [problem.kind for problem in report.errors] == ["shared-mask"]


def test_problems_of_a_kind_are_counted() -> None:
    problems = [Problem("warning", "turned", f"{number}.png", "x") for number in range(5)]
    problems += [Problem("error", "turned", "z.png", "x")]
    assert [(problem.path, more) for problem, more in summarised(problems)] == [
        ("0.png", 0),
        ("1.png", 0),
        ("2.png", 2),
        ("z.png", 0),
    ]
