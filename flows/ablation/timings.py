"""What past runs on this machine say about the time of a stage."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Rates = Mapping[tuple[str, str, str], float]
"""Seconds for each item by stage, backbone and ``runtime.device``."""


def past_rates(runs: Path) -> Rates:
    """Seconds for each computed item, over every ``run.json`` and ``ablation.json`` below ``runs`` of this machine.

    A file that cannot be read tells nothing and is passed over.
    """
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    computed: dict[tuple[str, str, str], int] = defaultdict(int)
    for experiment, stages in _past(runs):
        for stage in stages:
            if stage["computed"]:
                group = rate_group(stage["stage"], experiment)
                seconds[group] += stage["seconds"]
                computed[group] += stage["computed"]
    return {group: seconds[group] / computed[group] for group in seconds}


def rate_group(stage: str, experiment: Mapping[str, Any]) -> tuple[str, str, str]:
    """Which past timings tell about a stage of an experiment (as plain data): those of its network and device."""
    section = "localise" if stage in ("tokens", "localise") else "embed"
    return stage, experiment[section]["backbone"], experiment["runtime"]["device"]


def _past(runs: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    for path in sorted(runs.rglob("*.json")):
        if path.name not in ("run.json", "ablation.json"):
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            own = data.get("variants", [data])
            told = [(each["experiment"], each["stages"]) for each in own if data.get("node") == platform.node()]
            for experiment, stages in told:  # raises here, not in the sums, if something is missing
                for stage in stages:
                    rate_group(stage["stage"], experiment), float(stage["seconds"]), int(stage["computed"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield from told
