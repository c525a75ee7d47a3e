"""Tiny datasets on disk, one builder per layout."""

from __future__ import annotations

import csv
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (12, 16)  # height, width


class Tree:
    """Writes images and masks below ``root``; every image has bytes of its own unless a seed is given."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def image(self, path: str, *, size: tuple[int, int] = SIZE, seed: int | None = None) -> Path:
        target = self._target(path)
        rng = np.random.default_rng(zlib.crc32(path.encode()) if seed is None else seed)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(target)
        return target

    def mask(self, path: str, *, size: tuple[int, int] = SIZE, values: tuple[int, ...] = (255,)) -> Path:
        """Zeros, with one row of each of ``values``."""
        target = self._target(path)
        array = np.zeros(size, dtype=np.uint8)
        for row, value in enumerate(values, start=1):
            array[row] = value
        Image.fromarray(array).save(target)
        return target

    def text(self, path: str, content: str = "") -> Path:
        target = self._target(path)
        target.write_text(content, encoding="utf-8")
        return target

    def table(self, path: str, columns: tuple[str, ...], *rows: tuple[str, ...]) -> Path:
        target = self._target(path)
        with target.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
        return target

    def move(self, source: str, target: str) -> None:
        shutil.move(self.root / source, self._target(target))

    def cut(self, path: str) -> None:
        """Keep the first two thirds of a file."""
        target = self.root / path
        content = target.read_bytes()
        target.write_bytes(content[: len(content) * 2 // 3])

    def _target(self, path: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def fill_mvtec(tree: Tree, category: str) -> None:
    """Two train, two normal test, one scratch and one dent."""
    for number in (0, 1):
        tree.image(f"{category}/train/good/{number:03}.png")
        tree.image(f"{category}/test/good/{number:03}.png")
    for defect in ("scratch", "dent"):
        tree.image(f"{category}/test/{defect}/000.png")
        tree.mask(f"{category}/ground_truth/{defect}/000_mask.png")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "set")


@pytest.fixture
def mvtec(tree: Tree) -> Tree:
    fill_mvtec(tree, "screw")
    fill_mvtec(tree, "nut")
    return tree


@pytest.fixture
def visa(tree: Tree) -> Tree:
    """One category on disk (ids 1 and 3 in its mask), one that is only listed."""
    rows = []
    for category in ("candle", "pcb1"):
        base = f"{category}/Data"
        rows += [
            (category, "train", "normal", f"{base}/Images/Normal/0000.JPG", ""),
            (category, "test", "normal", f"{base}/Images/Normal/0001.JPG", ""),
            (category, "test", "anomaly", f"{base}/Images/Anomaly/000.JPG", f"{base}/Masks/Anomaly/000.png"),
        ]
    tree.table("split_csv/1cls.csv", ("object", "split", "label", "image", "mask"), *rows)
    for name in ("Normal/0000.JPG", "Normal/0001.JPG", "Anomaly/000.JPG"):
        tree.image(f"candle/Data/Images/{name}")
    tree.mask("candle/Data/Masks/Anomaly/000.png", values=(1, 3))
    return tree


@pytest.fixture
def fill_category() -> Callable[[Tree, str], None]:
    return fill_mvtec


@pytest.fixture
def huge_header() -> bytes:
    """A PNG of a few bytes whose header claims 20000 x 20000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (20_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
