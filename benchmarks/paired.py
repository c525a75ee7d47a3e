"""Timing of two ways to do the same work, in alternation, so that whatever else the machine does meets both."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import torch


@dataclass(frozen=True)
class Comparison:
    """Medians in milliseconds per unit of work, and how many times faster ours is.

    ``ratio`` is the median of the rounds' own ratios, ``low`` and ``high`` the smallest and largest of them.
    """

    name: str
    peer: str
    unit: str
    ours_ms: float
    peer_ms: float
    ratio: float
    low: float
    high: float


def compare(
    name: str,
    peer_name: str,
    unit: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    count: float,
    rounds: int,
) -> Comparison:
    """Runs both once to warm up, then ``rounds`` times in turn; each call does ``count`` units of work."""
    ours()
    peer()
    return of_pairs(name, peer_name, unit, [(_seconds(ours), _seconds(peer)) for _ in range(rounds)], count)


def of_pairs(name: str, peer_name: str, unit: str, pairs: Sequence[tuple[float, float]], count: float) -> Comparison:
    """From the seconds of ours and the peer in each round."""
    ratios = [theirs / own for own, theirs in pairs]
    own_ms, peer_ms = (1000 * statistics.median(column) / count for column in zip(*pairs, strict=True))
    return Comparison(name, peer_name, unit, own_ms, peer_ms, statistics.median(ratios), min(ratios), max(ratios))


def publish(comparisons: Sequence[Comparison], facts: Mapping[str, object], *, as_json: bool) -> None:
    """Print the comparisons and what else was found: a line each, or one document with device, versions and date."""
    if as_json:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "segment-anything", "numpy", "scikit-learn")},
            "results": [asdict(each) for each in comparisons],
            **facts,
        }
        print(json.dumps(document, indent=2))
        return
    for each in comparisons:
        print(
            f"{each.name}: {each.ours_ms:.1f} ms per {each.unit} against {each.peer_ms:.1f} ms ({each.peer}): "
            f"{each.ratio:.2f} times faster ({each.low:.2f} to {each.high:.2f})"
        )
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {value}")


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
