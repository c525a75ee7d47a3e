from __future__ import annotations

import multiprocessing as mp

import numpy as np
import pytest

from cascade.synthesis.patchwork import PIECES, Patchwork, _mottled, generate_patchwork

SIZE = 128


@pytest.fixture(scope="module")
def patchworks() -> list[Patchwork]:
    return [generate_patchwork(seed, SIZE) for seed in range(24)]


def test_same_seed_gives_same_bytes_in_another_process(patchworks: list[Patchwork]) -> None:
    with mp.get_context("spawn").Pool(1) as pool:
        others = pool.starmap(generate_patchwork, [(seed, SIZE) for seed in range(4)])
    for one, other in zip(patchworks, others, strict=False):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.pieces, other.pieces)
    assert len({own.image.tobytes() for own in patchworks}) == len(patchworks)


def test_every_pixel_is_in_one_region(patchworks: list[Patchwork]) -> None:
    for own in patchworks:
        assert own.image.shape == (SIZE, SIZE, 3)
        assert own.image.dtype == np.uint8
        assert (np.sum([*own.ground, *own.pieces], axis=0) == 1).all()
    assert max(len(own.pieces) for own in patchworks) >= PIECES[1] - 1


def test_pieces_are_small_and_large_and_stand_out(patchworks: list[Patchwork]) -> None:
    shares = np.array([piece.mean() for own in patchworks for piece in own.pieces])
    assert (shares < 0.02).any()
    assert (shares > 0.2).any()
    steps = []
    for own in patchworks:
        rest = np.any(own.ground, axis=0)
        for piece in own.pieces:
            if piece.mean() > 0.02 and rest.any():
                steps.append(np.abs(own.image[piece].mean(axis=0) - own.image[rest].mean(axis=0)).max())
    assert np.median(steps) > 15  # of 255


def test_spots_are_all_over_a_mottled_surface_and_never_all_of_it() -> None:
    black, white = np.zeros((SIZE, SIZE, 3), np.float32), np.ones((SIZE, SIZE, 3), np.float32)
    for seed in range(20):
        spots = _mottled(np.random.default_rng(seed), black, white)[..., 0]
        quarters = spots.reshape(2, SIZE // 2, 2, SIZE // 2).mean(axis=(1, 3))
        assert (quarters > 0.01).all()
        assert (quarters < 0.8).all()
