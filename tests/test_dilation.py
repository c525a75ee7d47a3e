"""The structuring elements and the ring of equation 3, drawn by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cascade.configs.schema import PromptConfig
from cascade.frames import InputFrame
from cascade.prompts.ppg import dilation_kernel, generate_prompts
from cascade.tasks.prompt import prompt_options

KERNELS = {
    ("cross", 2): ".# ##",
    ("cross", 3): ".#. ### .#.",
    ("cross", 4): "..#. ..#. #### ..#.",
    ("cross", 5): "..#.. ..#.. ##### ..#.. ..#..",
    ("rectangle", 2): "## ##",
    ("rectangle", 3): "### ### ###",
    ("rectangle", 4): "#### #### #### ####",
    ("rectangle", 5): "##### ##### ##### ##### #####",
    ("ellipse", 2): ".# ##",
    ("ellipse", 3): ".#. ### .#.",
    ("ellipse", 4): "..#. #### #### ####",
    ("ellipse", 5): "..#.. ##### ##### ##### ..#..",
    ("ellipse", 6): "...#.. .##### ###### ###### ###### .#####",
    ("ellipse", 7): "...#... .#####. ####### ####### ####### .#####. ...#...",
}
"""The anchor, at half the side, has one more row above it and one more column left of it if the side is even."""

# S_a is "o", the ring "#". An even kernel reaches one pixel further to the right and down, where its anchor is not.
RINGS = {
    ("cross", 2): """
        ........
        ........
        ...o#...
        ...oo#..
        ...##...
        ........
        ........""",
    ("rectangle", 2): """
        ........
        ........
        ...o#...
        ...oo#..
        ...###..
        ........
        ........""",
    ("cross", 4): """
        ........
        ...#....
        ..#o##..
        ..#oo##.
        ...##...
        ...##...
        ........""",
    ("rectangle", 4): """
        ........
        ..####..
        ..#o###.
        ..#oo##.
        ..#####.
        ..#####.
        ........""",
    ("ellipse", 4): """
        ........
        ..####..
        ..#o###.
        ..#oo##.
        ..#####.
        ...##...
        ........""",
    ("cross", 5): """
        ...#....
        ...##...
        .##o##..
        .##oo##.
        ...##...
        ...##...
        ........""",
    ("rectangle", 5): """
        .#####..
        .######.
        .##o###.
        .##oo##.
        .######.
        .######.
        ........""",
    ("ellipse", 5): """
        ...#....
        .#####..
        .##o###.
        .##oo##.
        .######.
        ...##...
        ........""",
}
AT_THE_BORDER = """
        ####....
        oo##....
        ####....
        ####....
        ........
        ......##
        ......#o"""
"""With a rectangle of 4 pixels."""


def picture(text: str, marks: str) -> np.ndarray:
    return np.array([[each in marks for each in row] for row in text.split()])


def kernel_of(shape: str, size: int) -> np.ndarray:
    """The structuring element pixel by pixel: an ellipse reaches the middle of each side of its anchor's square."""
    middle = size // 2
    kernel = np.zeros((size, size), bool)
    for y in range(size):
        for x in range(size):
            reach = round(middle * (1 - ((y - middle) / middle) ** 2) ** 0.5)
            inside = {"rectangle": True, "cross": middle in (x, y), "ellipse": abs(x - middle) <= reach}
            kernel[y, x] = inside[shape]
    return kernel


@pytest.mark.parametrize(("shape", "size"), KERNELS)
def test_kernels_are_those_drawn_by_hand(shape: str, size: int) -> None:
    drawn = picture(KERNELS[shape, size], "#")
    np.testing.assert_array_equal(dilation_kernel(shape, size), drawn)
    np.testing.assert_array_equal(kernel_of(shape, size), drawn)


@pytest.mark.parametrize("shape", ["ellipse", "rectangle", "cross"])
def test_kernels_of_every_size_follow_the_formula(shape: str) -> None:
    for size in range(2, 66):
        np.testing.assert_array_equal(dilation_kernel(shape, size), kernel_of(shape, size), err_msg=f"side {size}")


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [*((*each, text) for each, text in RINGS.items()), ("rectangle", 4, AT_THE_BORDER)],
)
def test_the_ring_is_the_one_drawn_by_hand(shape: str, size: int, expected: str) -> None:
    """Asked for more negative points than there are, PPG puts one on every pixel of the ring."""
    region = picture(expected, "o")
    options = replace(
        prompt_options(PromptConfig()),
        threshold_rule="absolute",
        threshold_absolute=0.5,
        min_area=1,
        negatives=256,
        spacing_rule="radius",
        spacing_radius=0.0,
        dilation_shape=shape,
        dilation_size=size,
    )
    anomaly = np.where(region, np.float32(0.9), np.float32(0.1))
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 4, 4)).astype(np.float32))
    (prompts,) = generate_prompts(anomaly, anomaly, features, InputFrame(64, (64, 64)), options).sets
    ring = np.zeros_like(region)
    for x, y in prompts.points[prompts.labels == 0].astype(int):
        ring[y, x] = True
    np.testing.assert_array_equal(ring, picture(expected, "#"))
    rows, columns = np.nonzero(picture(expected, "o#"))
    assert prompts.box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
