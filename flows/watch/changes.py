"""What made two runs differ: images, masks, weights, configuration, stage versions and libraries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascade.flows.run.results import FinishedRun
from cascade.storage.keys import differences, digest_of
from cascade.tasks.tables.matching import Matching, truth_of

_SHOWN = 12
_LISTED = 20


@dataclass(frozen=True)
class Change:
    """One thing that differs; ``what`` names it, with its old and new value where it has one."""

    kind: str
    what: str


def what_changed(run: FinishedRun, baseline: FinishedRun, matching: Matching) -> tuple[Change, ...]:
    """Everything that ``run.json`` and the images' digests tell apart, the run against the older baseline."""
    own, other = run.description, baseline.description
    sections = {
        "weights": [{role: each["sha256"] for role, each in side["weights"].items()} for side in (own, other)],
        "config": [_configuration(side) for side in (own, other)],
        "stage version": [{name: key["version"] for name, key in side["keys"].items()} for side in (own, other)],
        "library": [side["versions"] | {"machine": side["machine"]} for side in (own, other)],
    }
    changes = [Change(kind, line) for kind, (new, old) in sections.items() for line in differences(new, old)]
    return (*_images(matching), *changes)


def describe(changes: Sequence[Change]) -> list[str]:
    """One line for each change, many of a kind cut short; a line that says so if there is none."""
    lines = []
    for kind in dict.fromkeys(change.kind for change in changes):
        own = [change.what for change in changes if change.kind == kind]
        lines += [f"{kind} {what}" for what in own[:_LISTED]]
        lines += [f"{kind}: {len(own) - _LISTED} more"] if len(own) > _LISTED else []
    return lines or ["nothing: same images, masks, weights, configuration, stage versions and libraries"]


def _configuration(description: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration less how the run was carried out, and a digest of the prompts themselves."""
    experiment = {name: value for name, value in description["experiment"].items() if name != "runtime"}
    sentences = digest_of(description["keys"]["localise"]["config"].get("sentences"))
    return experiment | {"localise": experiment["localise"] | {"sentences": sentences}}


def _images(matching: Matching) -> Iterable[Change]:
    old = {(image.category, image.path): image for image in matching.only_baseline}
    new = {(image.category, image.path): image for image in matching.only_run}
    for place in sorted(old.keys() & new.keys()):
        yield Change("image", f"{place[1]}: {old[place].image_id[:_SHOWN]}… → {new[place].image_id[:_SHOWN]}…")
    for place in sorted(new.keys() - old.keys()):
        yield Change("image", f"{place[1]}: only in the run")
    for place in sorted(old.keys() - new.keys()):
        yield Change("image", f"{place[1]}: only in the baseline")
    for image, other in matching.pairs:
        if truth_of(image) != truth_of(other):
            yield Change("mask", f"{image.path}: {truth_of(other)[:_SHOWN]} → {truth_of(image)[:_SHOWN]}")
