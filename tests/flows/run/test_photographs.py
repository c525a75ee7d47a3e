"""A photograph is decoded once for both encoders, and what they see does not depend on it."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.storage.datasets import read_image
from cascade.storage.errors import StageError
from cascade.tasks import embed, tokens
from cascade.tasks.execution import photographs
from cascade.tasks.stage import StageItem
from tests.flows.conftest import Bench


@pytest.fixture
def empty(bench: Bench, tmp_path: Path) -> Bench:
    """With nothing in the store, and two sides for CLIP."""
    return replace(bench, store=tmp_path / "empty", overrides=(*bench.overrides, "localise.more_sides=[224]"))


@pytest.fixture
def decodes(monkeypatch) -> Counter[str]:
    """How often each photograph is decoded by an encoder."""
    counted: Counter[str] = Counter()

    def counting(path: Path, white: float | None = None):
        counted[path.name] += 1
        return read_image(path, white)

    for module in (embed, tokens):
        monkeypatch.setattr(module, "read_image", counting)
    return counted


def test_one_decode_serves_both_encoders(empty: Bench, decodes):
    outcome = empty.run()
    assert outcome.computed["embed"] == outcome.computed["tokens"] == decodes.total() > 1


def test_both_encoders_share_the_square_that_they_have_in_common(empty: Bench, monkeypatch, tmp_path):
    common = ("localise.image_side=224", "embed.square_side=224", "localise.more_sides=[]")
    shared = empty.run(*common).artefact("embed")
    monkeypatch.setattr(photographs, "LIMIT", 0)
    apart = replace(empty, store=tmp_path / "apart").run(*common).artefact("embed")
    for item in shared.done():
        assert np.array_equal(shared.read(item).arrays["embedding"], apart.read(item).arrays["embedding"])


def test_what_is_kept_is_what_a_decode_of_its_own_gives(empty: Bench, decodes, monkeypatch, tmp_path):
    kept = empty.run()
    images = decodes.total()
    monkeypatch.setattr(photographs, "LIMIT", 0)
    apart = replace(empty, store=tmp_path / "apart").run()
    assert decodes.total() == 3 * images
    one, other = kept.artefact("localise"), apart.artefact("localise")
    assert one.done() == other.done()
    for item in one.done():
        assert np.array_equal(one.read(item).arrays["logits"], other.read(item).arrays["logits"])


def test_nothing_is_kept_for_maps_that_are_there(bench: Bench, decodes):
    finished = bench.run()
    embeddings = finished.artefact("embed")
    for item in list(embeddings.done()):
        embeddings.forget(item)
    again = bench.run()
    assert again.computed["embed"] == decodes.total() > 1
    assert not len(again.prepared.run.photographs)


def test_what_waits_ends_with_its_run(empty: Bench, monkeypatch):
    waiting: list[int] = []

    def broken(run, item):
        waiting.append(len(run.photographs))
        raise StageError("no map today")

    monkeypatch.setattr(tokens, "squares_of", broken)
    with pytest.raises(StageError, match="no map today"):
        empty.run()
    assert waiting[0]
    assert not len(empty.prepare().run.photographs)


def test_what_waits_is_not_sent_to_another_process(empty: Bench):
    run = empty.prepare().run
    (record, *_) = run.manifest
    run.photographs.keep(record.image_id, read_image(run.image_path(record)), run.localiser.sides)
    assert len(run.photographs)
    assert not len(pickle.loads(pickle.dumps(run)).photographs)


def test_workers_of_other_runners_keep_nothing(empty: Bench):
    for runner, kept in (("threads", True), ("processes", False)):
        run = empty.prepare(f"runtime.runner={runner}").run
        assert bool(embed._localiser_will_look_at(run, embed.EMBED.items(run))) == kept


def test_a_photograph_that_does_not_fit_is_decoded_again(empty: Bench, decodes, monkeypatch):
    run = empty.prepare().run
    (record, *_) = run.manifest
    needed = sum(3 * side * side for side in run.experiment.localise.sides)
    monkeypatch.setattr(photographs, "LIMIT", needed - 1)
    assert run.photographs.keep(record.image_id, read_image(run.image_path(record)), run.localiser.sides) == []
    assert not len(run.photographs)
    squares = tokens.squares_of(run, StageItem(record.image_id, record))
    assert [square.shape for square in squares] == [(side, side, 3) for side in run.experiment.localise.sides]
    assert decodes.total() == 1
