"""Sums over blocks are the sums over all images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cascade.metrics import ScoreHistogram
from cascade.tasks import score, tally
from tests.flows.conftest import Bench, Outcome


@pytest.mark.parametrize("block", [1, 3, 256])
def test_blocks_add_up_to_all_images(bench: Bench, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(tally, "BLOCK", block)
    run = bench.run().prepared.run
    scores = score.SCORE.artefact(run)
    for category in run.manifest.categories:
        records = [record for record in run.manifest if record.category == category]
        expected = [ScoreHistogram.empty() for _ in run.steps]
        for record in records:
            own = score.histograms(scores.read(score.item_id(run, record)))
            expected = [total + each for total, each in zip(expected, own, strict=True)]
        found = tally.category_totals(run, category)
        assert len(tally.blocks(run, category)) == -(-len(records) // block)
        for mine, theirs in zip(found, expected, strict=True):
            assert np.array_equal(mine.negatives, theirs.negatives)
            assert np.array_equal(mine.positives, theirs.positives)
            np.testing.assert_allclose(mine.regions, theirs.regions, rtol=1e-12)
            assert mine.n_regions == theirs.n_regions


def test_categories_with_the_same_images_share_a_block(finished: tuple[Bench, Outcome]) -> None:
    run = finished[1].prepared.run
    twice = [replace(record, category=category) for category in ("one", "two") for record in run.manifest.records[:2]]
    words = {"one": "part", "two": "part"}
    experiment = run.experiment.model_copy(
        update={"dataset": run.experiment.dataset.model_copy(update={"words": words})}
    )
    manifest = replace(run.manifest, records=tuple(twice))
    assert len(tally.items(replace(run, experiment=experiment, manifest=manifest))) == 1
