"""Which images two runs share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cascade.tasks.tables.evidence import ScoredImage


@dataclass(frozen=True)
class Matching:
    """Which images two runs share, by category and image.

    Attributes:
        pairs: the image in the run and in the baseline, ordered by category and image.
        only_run: images that the baseline does not have.
        only_baseline: images that the run does not have.
    """

    pairs: tuple[tuple[ScoredImage, ScoredImage], ...]
    only_run: tuple[ScoredImage, ...]
    only_baseline: tuple[ScoredImage, ...]


def match_images(run: Sequence[ScoredImage], baseline: Sequence[ScoredImage]) -> Matching:
    """Pair images of the same category and bytes; copies of an image are paired one by one, in the order of paths."""
    own, other = _numbered(run), _numbered(baseline)
    return Matching(
        pairs=tuple((own[name], other[name]) for name in sorted(own.keys() & other.keys())),
        only_run=tuple(own[name] for name in sorted(own.keys() - other.keys())),
        only_baseline=tuple(other[name] for name in sorted(other.keys() - own.keys())),
    )


def truth_of(image: ScoredImage) -> str:
    """What the item's name says of the ground truth: digest of the mask, or the label."""
    return image.item.rpartition("/")[2]


def _numbered(images: Sequence[ScoredImage]) -> dict[tuple[str, str, int], ScoredImage]:
    seen: Counter[tuple[str, str]] = Counter()
    numbered = {}
    for image in sorted(images, key=lambda each: each.path):
        name = image.category, image.image_id
        numbered[(*name, seen[name])] = image
        seen[name] += 1
    return numbered
