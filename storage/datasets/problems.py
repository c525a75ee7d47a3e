"""What can be wrong with a dataset, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SHOWN = 3
"""Problems of one kind that are shown in full; the rest are counted."""


@dataclass(frozen=True)
class Problem:
    """One thing to know about a dataset.

    Attributes:
        severity: an ``error`` would make results wrong and stops a run; a ``warning`` would make them surprising; a
            ``note`` says what is left aside as it should be.
        kind: short name of the rule, see :mod:`cascade.storage.datasets.inspection`.
        path: of the file, relative to the dataset's root, or a category's name where the rule is about one.
        message: what is wrong and what to do, without the path.
        image: path of the image that a run can do without, if the problem is one of this image alone.
    """

    severity: Severity
    kind: str
    path: str
    message: str
    image: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """An image that a run did without, as its ``path`` and ``category`` are listed, and why."""

    path: str
    category: str
    kind: str
    reason: str


def summarised(problems: Iterable[Problem], shown: int = SHOWN) -> list[tuple[Problem, int]]:
    """The first ``shown`` problems of each kind, each with the number of further ones that it stands for.

    The number is 0 for all but the last one that is shown of a kind.
    """
    by_kind: defaultdict[tuple[Severity, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.severity, problem.kind].append(problem)
    lines = []
    for own in by_kind.values():
        kept, rest = own[:shown], own[shown:]
        lines += [(problem, 0) for problem in kept[:-1]] + [(kept[-1], len(rest))]
    return lines
