"""Results of images that judged each other: they belong to their batch, and stand apart from those of single images."""

from __future__ import annotations

import pandas as pd

from cascade.storage.datasets import MEAN

COLUMN = "n_batch"
"""How many images judged each other in a category, and in all: 0 where each was judged alone."""


def batch_note(results: pd.DataFrame) -> str | None:
    """One line on the batches behind the rows of one run; ``None`` if each image was judged alone."""
    if COLUMN not in results or not results[COLUMN].any():
        return None
    counts = results[results["category"] != MEAN].drop_duplicates("category").set_index("category")[COLUMN]
    judged = ", ".join(f"{category} {'alone' if not count else int(count)}" for category, count in counts.items())
    return f"batch: images judged each other ({judged}); not to be held against results of single images"


def blocks(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of images that were judged alone, and those of batches, apart; without a block that has no rows."""
    if COLUMN not in table:
        return [table]
    judged = table[COLUMN] > 0
    return [each for each in (table[~judged], table[judged]) if len(each)]


def batch_change(baseline: float, run: float) -> str:
    """What two counts of ``COLUMN`` say of a difference; empty if both runs judged each image alone."""
    names = ["alone" if not count else f"batch of {count:.0f}" for count in (baseline, run)]
    return "" if not (baseline or run) else names[0] if names[0] == names[1] else " → ".join(names)
