"""One test for each kind of problem, and what a report does with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cascade.storage.datasets import Problem, inspect_dataset, load_manifest
from cascade.storage.errors import DataError

SCRATCH = "nut/test/scratch/000.png"
SCRATCH_MASK = "nut/ground_truth/scratch/000_mask.png"


def only(root: Path, *, decode: bool = True, layout: str = "auto") -> Problem:
    (problem,) = inspect_dataset(root, layout, decode=decode).problems
    return problem


def check(problem: Problem, severity: str, kind: str, path: str, message: str = "") -> None:
    assert (problem.severity, problem.kind, problem.path) == (severity, kind, path)
    assert message in problem.message


def test_a_sound_dataset_has_no_problems(mvtec: Any) -> None:
    report = inspect_dataset(mvtec.root, decode=True)
    assert report.ok
    assert not report.problems
    assert report.manifest == load_manifest(mvtec.root)


def test_no_images(tree: Any) -> None:
    tree.text("nut/test/good/readme.txt")
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
    check(only(tree.root), "warning", "missing-mask", "set", "2 of 2")


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
    check(only(mvtec.root), "error", "escape", "nut/test/good/link.png")
    linked_root = tmp_path / "shortcut"
    linked_root.symlink_to(mvtec.root / "screw")
    assert inspect_dataset(linked_root).ok


def test_linked_folders_that_leave_the_dataset(mvtec: Any, tree: Any) -> None:
    outside = mvtec.image("../elsewhere/a.png").parent
    (mvtec.root / "nut/test/bent").symlink_to(outside)
    (problem,) = inspect_dataset(mvtec.root).errors
    check(problem, "error", "escape", "nut/test/bent/a.png")
    (problem,) = inspect_dataset(mvtec.root, "folder").errors
    check(problem, "error", "escape", "nut/test/bent", "link")


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
    assert "and 2 more" in message
    assert f"`cascade check {mvtec.root}`" in message


def test_loading_tolerates_warnings(visa: Any) -> None:
    assert load_manifest(visa.root, name="my visa").name == "my visa"
