"""Small odd datasets, each a kind of fault that people meet, and what has to happen with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

SIDE = 64


@dataclass(frozen=True)
class Case:
    """What ``make`` writes, and what has to happen with it.

    Attributes:
        make: writes the dataset into a folder and returns what is given to ``--dataset``.
        images: the numbers of good and of defective images that are read; None where a run must be refused.
        says: has to be said by ``check`` and by ``run``.
        options: settings of both.
    """

    make: Callable[[Path], Path]
    images: tuple[int, int] | None
    says: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the test's name."""
        return "+".join([self.make.__name__, *(option.partition("=")[0] for option in self.options)])


CASES: list[Case] = []


def case(
    images: tuple[int, int] | None,
    *says: str,
    options: tuple[str, ...] = (),
) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register what a function writes, as a :class:`Case`."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append(Case(make, images, says, options))
        return make

    return add


def photo(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Noise: uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(60, 190, (height, width, 3), dtype=np.uint8)


def blob(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A disc of 255 on 0: uint8 [H, W]."""
    y, x = np.mgrid[:height, :width]
    return ((x - width // 3) ** 2 + (y - height // 2) ** 2 < (width // 8) ** 2).astype(np.uint8) * 255


def save(array: np.ndarray | Image.Image, path: Path, **how: Any) -> None:
    """Write a picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **how)


def tree(root: Path, *, mask: np.ndarray | Image.Image | None = None, category: str = "screw") -> Path:
    """Two good and two defective images in the plain layout, which each case then spoils."""
    for n in range(2):
        save(photo(n), root / category / "test/good" / f"{n:03}.png")
        save(photo(10 + n), root / category / "test/crack" / f"{n:03}.png")
        save(blob() if mask is None else mask, root / category / "ground_truth/crack" / f"{n:03}_mask.png")
    return root


def table(root: Path, text: str, name: str = "table.csv") -> Path:
    """The plain tree and a table about it."""
    tree(root)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how a photograph is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# More than 8 bits


def _deep(root: Path, peak: float, kind: Any, suffix: str) -> Path:
    tree(root)
    for n, path in enumerate(sorted((root / "screw/test").rglob("*.png"))):
        values = (np.random.default_rng(n).random((SIDE, SIDE)) * peak).astype(kind)
        values[0, 0] = peak
        path.unlink()
        save(values, path.with_suffix(suffix))
    return root


@case((2, 2), "values up to 4095", "dataset.full_scale=4095")
@case((2, 2), options=("dataset.full_scale=4095",))
@case(None, "beyond dataset.full_scale", options=("dataset.full_scale=1023",))
def twelve_of_sixteen_bits(root: Path) -> Path:
    return _deep(root, 4095, np.uint16, ".png")


@case((2, 2))
def sixteen_of_sixteen_bits(root: Path) -> Path:
    return _deep(root, 60_000, np.uint16, ".png")


@case((2, 2), "dataset.full_scale=1048575")
def thirty_two_bits(root: Path) -> Path:
    return _deep(root, 900_000, np.int32, ".tif")


@case((2, 2), "dataset.full_scale=1 ")
def fractions_up_to_one(root: Path) -> Path:
    return _deep(root, 1.0, np.float32, ".tif")


@case(None, "negative or infinite")
def not_a_number(root: Path) -> Path:
    return _deep(root, np.nan, np.float32, ".tif")


@case((2, 2), "dataset.full_scale=4095")
def colours_of_sixteen_bits(root: Path) -> Path:
    tree(root)
    for path in sorted((root / "screw/test").rglob("*.png")):
        deep = np.asarray(Image.open(path)).astype(np.uint16) * 16
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), deep, photometric="rgb")
    return root


# Masks


@case(None, "marks 95% of the image", "inverted", "dataset.large_masks=true")
@case((2, 2), options=("dataset.large_masks=true",))
def inverted_mask(root: Path) -> Path:
    return tree(root, mask=255 - blob())


@case(None, "marks 100% of the image")
def white_mask(root: Path) -> Path:
    return tree(root, mask=np.full((SIDE, SIDE), 255, np.uint8))


@case(None, "no pixel is 0")
def red_on_white(root: Path) -> Path:
    mask = np.full((SIDE, SIDE, 3), 255, np.uint8)
    mask[blob() > 0] = (255, 0, 0)
    return tree(root, mask=mask)


@case(None, "no pixel is 0")
def palette_without_black(root: Path) -> Path:
    mask = Image.fromarray((blob() > 0).astype(np.uint8), mode="P")
    mask.putpalette([0, 0, 200, 255, 255, 0])
    return tree(root, mask=mask)


@case((2, 2))
def red_on_black(root: Path) -> Path:
    mask = np.zeros((SIDE, SIDE, 3), np.uint8)
    mask[blob() > 0] = (255, 0, 0)
    return tree(root, mask=mask)


@case(None, "3 different values", "threshold it")
def labelled_mask(root: Path) -> Path:
    mask = (blob() > 0).astype(np.uint8)
    mask[:5, :5] = 2
    return tree(root, mask=mask)


@case(None, "different values")
def mask_as_jpeg(root: Path) -> Path:
    tree(root)
    save(blob(), root / "screw/ground_truth/crack/000_mask.jpg", quality=80)
    (root / "screw/ground_truth/crack/000_mask.png").unlink()
    return root


@case((2, 2))
def large_defect(root: Path) -> Path:
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[:, :8] = 0
    return tree(root, mask=mask)


@case(None, "000.jpg", "000.png", "keep one of these images")
def one_mask_two_photographs(root: Path) -> Path:
    tree(root)
    save(photo(80), root / "screw/test/crack/000.jpg")
    return root


@case(None, "has 2 masks", "000_mask.png", "000_mask.tif")
def two_masks_one_photograph(root: Path) -> Path:
    tree(root)
    save(blob(), root / "screw/ground_truth/crack/000_mask.tif")
    return root


@case(None, "screw/ground_truth and in screw/masks")
def two_mask_folders(root: Path) -> Path:
    tree(root)
    save(blob(), root / "screw/masks/crack/000.png")
    return root


@case(None, "no image goes with this mask")
def orphan_where_no_mask_means_good(root: Path) -> Path:
    for n in range(2):
        save(photo(n), root / f"images/{n}.png")
    save(blob(), root / "masks/0.png")
    save(blob(), root / "masks/one.png")
    return root


@case(None, "has the name of a mask")
def mask_among_photographs(root: Path) -> Path:
    tree(root)
    save(blob(), root / "screw/test/crack/000_mask.png")
    return root


@case(None, "has the name of a mask", "Mask_images/1_mask.png")
def masks_in_a_folder_of_another_name(root: Path) -> Path:
    for n in range(2):
        save(photo(n), root / f"Images/{n}.png")
    save(blob(), root / "Mask_images/1_mask.png")
    return root


@case(None, "has two colours and the name of", "as its mask has")
def real_iad(root: Path) -> Path:
    for n in range(2):
        save(photo(n), root / f"audiojack/OK/S0001/{n}.jpg")
        save(photo(10 + n), root / f"audiojack/NG/AK/S0002/{n}.jpg")
        save(blob(), root / f"audiojack/NG/AK/S0002/{n}.png")
    return root


@case(None, "no image in split 'test'", "dataset.split=train takes the 2 in 'train'")
def nothing_but_train(root: Path) -> Path:
    for n in range(2):
        save(photo(n), root / f"screw/train/good/{n}.png")
    return root


@case((3, 2), "has one colour")
def black_photograph(root: Path) -> Path:
    tree(root)
    save(np.zeros((SIDE, SIDE), np.uint8), root / "screw/test/good/black.png")
    return root


# Turned photographs


@case((2, 2), "EXIF turns this photograph")
def turned_square(root: Path) -> Path:
    tree(root)
    (root / "screw/test/crack/000.png").unlink()
    save(photo(20), root / "screw/test/crack/000.jpg", exif=turned(6))
    return root


@case((2, 2), "EXIF turns this photograph")
def turned_with_the_mask_as_shown(root: Path) -> Path:
    tree(root)
    save(photo(20, 48, 80), root / "screw/test/crack/000.png", exif=turned(8))
    save(blob(80, 48), root / "screw/ground_truth/crack/000_mask.png")
    return root


@case(None, "80x48, but its image", "is 48x80 after the turn that its EXIF asks for")
def turned_with_the_mask_as_stored(root: Path) -> Path:
    tree(root)
    save(photo(20, 48, 80), root / "screw/test/crack/000.png", exif=turned(8))
    save(blob(48, 80), root / "screw/ground_truth/crack/000_mask.png")
    return root


# Layouts


@case((2, 3))
def nested_defects(root: Path) -> Path:
    tree(root)
    save(photo(30), root / "screw/test/crack/cam1/005.png")
    save(blob(), root / "screw/ground_truth/crack/cam1/005_mask.png")
    return root


@case((5, 4))
def capitals_beside_small_letters(root: Path) -> Path:
    tree(root)
    for n in range(2):
        save(photo(n, SIDE, 70), root / "Nut/Test/Good" / f"{n:03}.png")
        save(photo(70 + n), root / "Nut/Test/Crack" / f"{n:03}.png")
        save(blob(), root / "Nut/Ground_Truth/Crack" / f"{n:03}_mask.png")
    save(photo(31), root / "screw/test/good/cam1/000.png")
    return root


@case((3, 1))
def dagm(root: Path) -> Path:
    for n in range(4):
        save(photo(n), root / "Class1/Test" / f"{n:04}.PNG")
    save(blob(), root / "Class1/Test/Label/0001_label.PNG")
    return root


@case((2, 1))
def kolektor_2(root: Path) -> Path:
    for n in range(3):
        save(photo(n), root / "test" / f"2000{n}.png")
        save(blob() if n == 1 else 0 * blob(), root / "test" / f"2000{n}_GT.png")
    return root


@case((2, 2))
def loco(root: Path) -> Path:
    for n in range(2):
        save(photo(n), root / "box/test/good" / f"{n:03}.png")
        save(photo(10 + n), root / "box/test/logical_anomalies" / f"{n:03}.png")
        save(blob() // 255 * 236, root / f"box/ground_truth/logical_anomalies/{n:03}/000.png")
        save(np.roll(blob(), 20, 1) // 255 * 240, root / f"box/ground_truth/logical_anomalies/{n:03}/001.png")
    return root


@case((2, 2))
def ad_2(root: Path) -> Path:
    for n in range(2):
        save(photo(n), root / "can/test_public/good" / f"{n:03}_regular.png")
        save(photo(10 + n), root / "can/test_public/bad" / f"{n:03}_regular.png")
        save(blob(), root / "can/test_public/ground_truth/bad" / f"{n:03}_regular_mask.png")
        save(photo(40 + n), root / "can/test_private" / f"{n:03}_regular.png")
    return root


@case((2, 2), "1 image not read")
def loose_image(root: Path) -> Path:
    tree(root)
    save(photo(32), root / "screw/test/009.png")
    return root


@case((3, 2), "1 .gif file not read", "2 .heic files not read")
def other_formats(root: Path) -> Path:
    tree(root)
    save(photo(33), root / "screw/test/good/7.jfif", format="JPEG")
    save(Image.fromarray(photo(34)), root / "screw/test/good/8.gif")
    for name in ("a.heic", "b.HEIC"):
        (root / "screw/test/good" / name).write_bytes(b"ftypheic")
    return root


@case(None, "screw: a link that leads out of the dataset", "dataset.follow_links=true")
@case((2, 2), options=("dataset.follow_links=true",))
def linked_category(root: Path) -> Path:
    tree(root.with_name(f"{root.name}_elsewhere"))
    root.mkdir(parents=True)
    (root / "screw").symlink_to(root.with_name(f"{root.name}_elsewhere") / "screw")
    return root


@case(None, "screw: a link that leads nowhere")
def lost_category(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "screw").symlink_to("gone/screw")
    return root


@case(None, "nut: a link that leads nowhere")
def lost_category_beside_another(root: Path) -> Path:
    (tree(root) / "nut").symlink_to("gone/nut")
    return root


@case((2, 1))
def two_forms_of_unicode(root: Path) -> Path:
    tree(root)
    name = "Größe ä"
    for path in ("test/crack", "ground_truth/crack"):
        for old in (root / "screw" / path).iterdir():
            old.unlink()
    save(photo(10), root / "screw/test/crack" / f"{unicodedata.normalize('NFC', name)}.png")
    save(blob(), root / "screw/ground_truth/crack" / f"{unicodedata.normalize('NFD', name)}_mask.png")
    return root


# Defects that vanish


@case((2, 2), "its only defect vanishes in the frame of 64 pixels")
def vanishing_point(root: Path) -> Path:
    return _fine(root, (slice(501, 502), slice(601, 602)))


@case((2, 2), "its only defect vanishes in the frame of 518 pixels", options=("score.frame=518",))
def vanishing_scratch(root: Path) -> Path:
    return _fine(root, (slice(501, 502), slice(100, 900)))


def _fine(root: Path, marked: tuple[slice, slice]) -> Path:
    tree(root)
    mask = np.zeros((1024, 1024), np.uint8)
    mask[marked] = 255
    save(photo(90, 1024, 1024), root / "screw/test/crack/000.png")
    save(mask, root / "screw/ground_truth/crack/000_mask.png")
    return root


# Tables

GOOD, BAD = "screw/test/good/000.png", "screw/test/crack/000.png"


@case((1, 1))
def semicolons_and_a_mark(root: Path) -> Path:
    return table(root, f"\ufeffpath;category;label\n{GOOD};screw;0\n{BAD};screw;1\n")


@case((1, 1))
def spaces_and_backslashes(root: Path) -> Path:
    return table(root, "path, label\nscrew\\test\\good\\000.png, 0\nscrew\\test\\crack\\000.png, 1\n")


@case((1, 1))
def capitals_and_absolute_paths(root: Path) -> Path:
    return table(root, f"Path\tLabel\n{root / GOOD}\t0\n{root / BAD}\t1\n")


@case(None, "column 'labels' would be ignored; call it 'label'")
def header_near_label(root: Path) -> Path:
    return table(root, f"path,labels\n{GOOD},0\n{BAD},1\n")


@case(None, "outside the dataset")
def absolute_path_outside(root: Path) -> Path:
    save(photo(1), root.parent / "outside.png")
    return table(root, f"path\n{root.parent / 'outside.png'}\n")


@case(None, "category '../../escaped' leads to another folder")
def climbing_category(root: Path) -> Path:
    return table(root, f"path,category,label\n{GOOD},../../escaped,0\n{BAD},../../escaped,1\n")


@case(None, "category '/tmp/escaped'")
def absolute_category(root: Path) -> Path:
    return table(root, f"path,category,label\n{GOOD},/tmp/escaped,0\n{BAD},/tmp/escaped,1\n")


@case(None, "defect '../x' leads to another folder")
def climbing_defect(root: Path) -> Path:
    return table(root, f"path,defect\n{GOOD},good\n{BAD},../x\n")


@case(None, "category 'a\\x1b[2Jb' has a control character")
def escape_in_a_category(root: Path) -> Path:
    return table(root, f"path,category\n{GOOD},a\x1b[2Jb\n")


@case(None, "screw/a\\x00b.png' has a control character")
def null_in_a_path(root: Path) -> Path:
    return table(root, f"path\n{GOOD}\nscrew/a\0b.png\n")


@case(None, "would be taken for the mean")
def category_called_mean(root: Path) -> Path:
    return tree(root, category="mean")


@case(None, "category '../../x' leads to another folder")
def climbing_visa(root: Path) -> Path:
    text = f"object,split,label,image,mask\n../../x,test,normal,{GOOD},\n"
    (root / "split_csv").mkdir(parents=True)
    return table(root, text, "split_csv/1cls.csv").parents[1]


# Words


@case((2, 2), "'photos', the name of the folder, which says nothing of what is shown", "dataset.words=")
@case((2, 2), options=('dataset.words={"photos": "screw"}',))
@case(None, "dataset.words: no category 'photo'", "did you mean 'photos'", options=('dataset.words={"photo": "nut"}',))
def photos(root: Path) -> Path:
    return tree(root, category="photos")


@case(None, "nothing is said of 'screw'", options=('dataset.words={"screw": " "}',))
def words_without_words(root: Path) -> Path:
    return tree(root)


@case((2, 2), "which has a date in it")
def damaged_on_a_date(root: Path) -> Path:
    return tree(root, category="damaged 2026-11-27 line 3")


@case((2, 2), "which has no words in it")
def digits(root: Path) -> Path:
    return tree(root, category="01")
