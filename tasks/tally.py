"""Stage ``tally``: histograms of up to 256 images of one category added up, the lower half of a tree of sums.

The upper half is ``aggregate``. Blocks are added by as many workers as there are, and images that are added later
leave all blocks but the last as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascade.metrics import ScoreHistogram
from cascade.storage.artefacts import ArraySpec, Artefact
from cascade.storage.datasets import ImageRecord
from cascade.storage.keys import digest_of
from cascade.tasks import score
from cascade.tasks.execution.threads import read_ahead
from cascade.tasks.score import SCORE
from cascade.tasks.stage import Run, Stage, StageItem, no_roles

VERSION = 1
BLOCK = 256
"""Images in a block."""


def blocks(run: Run, category: str) -> dict[str, list[str]]:
    """The blocks of a category: score items by the identity of their block, in the manifest's order."""
    members = [score.item_id(run, record) for record in run.manifest if record.category == category]
    slices = (members[start : start + BLOCK] for start in range(0, len(members), BLOCK))
    return {digest_of(block): block for block in slices}


def items(run: Run) -> list[StageItem]:
    """One item for each block of each category; two categories with the same images share theirs."""
    first: dict[str, ImageRecord] = {}
    for record in run.manifest:
        first.setdefault(record.category, record)
    entries = (
        StageItem(name, first[category], tuple(members))
        for category in run.manifest.categories
        for name, members in blocks(run, category).items()
    )
    return list({entry.id: entry for entry in entries}.values())


def arrays(run: Run, items: Sequence[StageItem]) -> dict[str, ArraySpec]:
    """By step the three histograms of ``score``, as it stores them."""
    return score.histogram_specs("int64", len(run.steps))


def compute(run: Run, items: Sequence[StageItem], artefact: Artefact) -> None:
    """Add each block up. The record holds ``regions``, the number of connected parts in all its masks."""
    scores = SCORE.artefact(run)
    for item in items:
        totals = {name: np.zeros(spec.shape, spec.dtype) for name, spec in arrays(run, [item]).items()}
        regions = 0
        for _, image in read_ahead(item.members, lambda name: scores.read(name, only=score.HISTOGRAMS)):
            regions += image.record["regions"]
            for name, counted in image.arrays.items():
                totals[name] += counted
        artefact.write(item.id, totals, {"regions": regions})


def category_totals(run: Run, category: str) -> list[ScoreHistogram]:
    """The histogram of each step over all images of a category, its blocks added pairwise."""
    tallies = TALLY.artefact(run)
    sums = [score.histograms(tallies.read(name)) for name in blocks(run, category)]
    while len(sums) > 1:
        paired = [
            [left + right for left, right in zip(first, second, strict=True)]
            for first, second in zip(sums[::2], sums[1::2], strict=False)
        ]
        sums = paired + sums[2 * len(paired) :]
    return sums[0]


TALLY = Stage(
    name="tally",
    version=lambda run: VERSION,
    config=lambda run: {},  # the scores, and nothing else; which images are added is the item's identity
    upstream=(SCORE,),
    roles=no_roles,
    items=items,
    arrays=arrays,
    compute=compute,
    per_task=8,
)
