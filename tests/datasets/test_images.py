from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile, ImageOps
from torchvision import transforms

from cascade.storage.datasets import MAX_PIXELS, ImageError, image_size, mask_in_frame, read_image, read_mask
from cascade.storage.datasets.images import largest_value, read_header
from cascade.storage.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)


def save(array: npt.NDArray[Any], path: Path, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_formats_give_the_stored_pixels(tmp_path: Path, suffix: str) -> None:
    path = save(RGB, tmp_path / f"a.{suffix}")
    assert image_size(path) == (10, 14)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_decode(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    image = read_image(save(flat, tmp_path / f"a.{suffix}", quality=95))
    assert np.abs(image.astype(int) - flat).max() <= 4


def test_content_and_not_the_extension_tells_the_format(tmp_path: Path) -> None:
    path = save(RGB, tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(path), RGB)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(save(RGB[..., 0], tmp_path / "a.png"))
    np.testing.assert_array_equal(image, np.stack([RGB[..., 0]] * 3, axis=-1))


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    transparent = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    np.testing.assert_array_equal(read_image(save(transparent, tmp_path / "a.png")), RGB)


def test_palette_is_looked_up(tmp_path: Path) -> None:
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    indexed.putpalette([10, 20, 30, 200, 150, 100])
    indexed.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[10, 20, 30], [200, 150, 100]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("white", "expected"),
    [
        (None, [[0, 0, 1], [15, 128, 255]]),
        (65535, [[0, 0, 1], [15, 128, 255]]),
        (4095, [[0, 15, 16], [255, 255, 255]]),
        (255, [[0, 255, 255], [255, 255, 255]]),
    ],
)
def test_more_than_8_bits_are_scaled_by_the_white_and_not_by_the_image(
    tmp_path: Path, suffix: str, white: float | None, expected: list[list[int]]
) -> None:
    values = np.array([[0, 255, 256], [4095, 32768, 65535]], np.uint16)
    image = read_image(save(values, tmp_path / f"a.{suffix}"), white)
    assert image[..., 0].tolist() == expected
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_colours_of_16_bits_keep_their_values(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(
            path, RGB.astype(np.uint16) * 16, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]
        )
        expected = RGB if orientation == 1 else np.rot90(RGB, -1)
    else:
        cv2.imwrite(str(path), (RGB.astype(np.uint16) * 16)[..., ::-1])
        expected = RGB
    header = read_header(path)
    assert (header.deep, header.fractions, largest_value(path)) == (True, False, int(RGB.max()) * 16)
    np.testing.assert_array_equal(read_image(path, 4095), expected)
    assert (read_image(path) <= 15).all()


def test_fractions_need_a_white(tmp_path: Path) -> None:
    path = save(np.array([[0, 0.5], [1, 2]], np.float32), tmp_path / "a.tif")
    with pytest.raises(ImageError, match="white"):
        read_image(path)
    assert read_image(path, 1.0)[..., 0].tolist() == [[0, 128], [255, 255]]
    assert read_image(path, 2.0)[..., 0].tolist() == [[0, 64], [128, 255]]


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_values_without_a_grey_are_refused(tmp_path: Path, value: float) -> None:
    path = save(np.array([[0, value]], np.float32), tmp_path / "a.tif")
    with pytest.raises(ImageError, match="negative or infinite"):
        read_image(path, 1.0)


def test_32_bits_are_read_like_16(tmp_path: Path) -> None:
    path = save(np.array([[0, 70_000, 2**20 - 1]], np.int32), tmp_path / "a.tif")
    assert read_image(path, largest_value(path))[..., 0].tolist() == [[0, 17, 255]]


def test_a_folder_of_masks_is_their_union(tmp_path: Path) -> None:
    first, second = np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)
    first[0, 0], second[1, 2] = 236, 240
    save(first, tmp_path / "000.png")
    save(second, tmp_path / "001.png")
    assert read_mask(tmp_path).tolist() == [[True, False, False], [False, False, True]]
    save(np.zeros((3, 3), np.uint8), tmp_path / "002.png")
    with pytest.raises(ImageError, match="different sizes"):
        read_mask(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    how = {"tiffinfo": {274: orientation}} if suffix == "tif" else {"exif": exif}
    path = save(RGB, tmp_path / f"a.{suffix}", **how)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]


def test_a_mask_is_turned_like_its_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    mask = np.zeros((10, 14), np.uint8)
    mask[0] = 255
    path = save(mask, tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(path), np.rot90(mask > 0, -1))


@pytest.mark.parametrize("content", [b"Exif\0\0nonsense", b"", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"])
def test_damaged_exif_means_upright(tmp_path: Path, content: bytes) -> None:
    path = save(RGB, tmp_path / "a.jpg", exif=content)
    assert image_size(path) == (10, 14)
    assert read_image(path).shape == (10, 14, 3)


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(RGB)])
    with pytest.raises(ImageError, match="2 pictures"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("text.png", b"not a picture", "unreadable"), ("empty.jpg", b"", "unreadable"), ("none.png", None, "missing")],
)
def test_unusable_files_name_themselves(tmp_path: Path, name: str, content: bytes | None, kind: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=name) as caught:
        read_image(path)
    assert isinstance(caught.value, ImageError)
    assert caught.value.kind == kind


def test_a_format_outside_the_list_is_unreadable(tmp_path: Path) -> None:
    path = save(RGB, tmp_path / "a.png", format="PPM")
    with pytest.raises(ImageError, match="convert"):
        read_image(path)


def test_a_huge_header_is_refused_before_decoding(tmp_path: Path, huge_header: bytes) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_header)
    for read in (image_size, read_image, read_mask):
        with pytest.raises(ImageError, match="100 megapixels") as caught:
            read(path)
        assert caught.value.kind == "oversized"


def test_the_cap_itself_is_allowed(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / "a.png"
    Image.new("1", (side, side)).save(path)
    assert image_size(path) == (side, side)
    Image.new("1", (side + 1, side)).save(path)
    with pytest.raises(ImageError, match=f"{side + 1}x{side}"):
        image_size(path)


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "PNG"}])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_file_cut_anywhere_never_gives_other_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], lenient: bool
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, **options)
    content = buffer.getvalue()
    path = tmp_path / "a"
    path.write_bytes(content)
    whole = read_image(path)
    refused = []
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        # Some other library may have asked Pillow to invent what is missing.
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
        try:
            np.testing.assert_array_equal(read_image(path), whole)
        except ImageError as error:
            refused.append(error.kind)
    assert set(refused) == {"truncated", "unreadable"}
    assert len(refused) > 0.9 * len(content) / 3


def test_masks_are_positive_values_in_any_encoding(tmp_path: Path) -> None:
    expected = np.array([[False, True], [True, False]])
    ids = np.array([[0, 1], [7, 0]], np.uint8)
    np.testing.assert_array_equal(read_mask(save(ids, tmp_path / "ids.png")), expected)
    np.testing.assert_array_equal(read_mask(save(ids.astype(bool), tmp_path / "bits.png")), expected)
    np.testing.assert_array_equal(read_mask(save(ids.astype(np.uint16), tmp_path / "wide.png")), expected)
    colour = np.zeros((2, 2, 4), np.uint8)
    colour[..., 3] = 255
    colour[0, 1, 2] = colour[1, 0, 0] = 1
    np.testing.assert_array_equal(read_mask(save(colour, tmp_path / "colour.png")), expected)
    indexed = Image.fromarray(np.array([[1, 0], [0, 1]], np.uint8), mode="P")
    indexed.putpalette([255, 255, 255, 0, 0, 0])
    indexed.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), expected)


masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
frames = st.tuples(st.integers(1, 50), st.integers(1, 50))


@given(mask=masks, size=frames)
def test_mask_in_frame_is_the_evaluation_transform_of_april_gan(
    mask: npt.NDArray[np.bool_], size: tuple[int, int]
) -> None:
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8), mode="L")
    resized = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])(picture)
    expected = (resized > 0.5)[0].numpy()
    result = mask_in_frame(mask, size)
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(result, expected)


@given(mask=masks)
def test_mask_in_its_own_frame_is_itself(mask: npt.NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(mask_in_frame(mask, (mask.shape[0], mask.shape[1])), mask)


@given(size=frames, value=st.booleans())
def test_a_constant_mask_stays_constant(size: tuple[int, int], value: bool) -> None:
    assert (mask_in_frame(np.full((9, 13), value), size) == value).all()


def test_a_hairline_scratch_is_lost_when_the_frame_shrinks_enough() -> None:
    mask = np.zeros((100, 100), bool)
    mask[50] = True
    assert not mask_in_frame(mask, (37, 37)).any()
