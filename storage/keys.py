"""Stage keys: an artefact is named by the digest of what made it, and by nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

LookUp = Callable[[str, str], Mapping[str, Any] | None]
"""The components of the key with a digest, by stage; ``None`` if it is not stored."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. NaN raises ``ValueError``; anything but plain data, ``TypeError``."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class StageKey:
    """What made an artefact.

    Attributes:
        stage: name of the stage.
        version: the stage's VERSION, raised by hand when its mathematics changes.
        config: the part of the configuration that the stage reads, as plain data; numeric precision included.
        upstream: digest of each artefact that it reads, by stage name.
        weights: sha256 of each checkpoint that it loads, by role.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    upstream: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def components(self) -> dict[str, Any]:
        """The key as plain data, as stored beside the artefact."""
        return {
            "stage": self.stage,
            "version": self.version,
            "config": dict(self.config),
            "upstream": dict(self.upstream),
            "weights": dict(self.weights),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the components."""
        return digest_of(self.components)


def differences(components: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The dotted names of the components in which two keys differ, each as ``name: old → new``.

    ``other`` is the older key. Digests are shortened to twelve characters.
    """
    old, new = dict(leaves(other)), dict(leaves(components))
    lines = []
    for name in sorted(old.keys() | new.keys()):
        # compared as they are hashed: 1, 1.0 and true are three values
        before, after = (canonical_json(leaves[name]) if name in leaves else "absent" for leaves in (old, new))
        if before != after:
            lines.append(f"{name}: {_short(before)} → {_short(after)}")
    return lines


def causes(components: Mapping[str, Any], other: Mapping[str, Any], look_up: LookUp) -> list[str]:
    """What made two keys of a stage differ, each as ``name: old → new``, in this stage or in those that it reads.

    An option has the name that it has in the configuration, such as ``prompt.positives``; versions and weights stand
    behind the stage's name. ``other`` is the older key. An artefact that is not stored any more tells nothing; it
    stands as ``upstream`` with its digests.
    """
    stage, lines = components["stage"], []
    new, old = dict(components["upstream"]), dict(other["upstream"])
    for name in sorted(new.keys() & old.keys()):
        if new[name] != old[name]:
            after, before = look_up(name, new[name]), look_up(name, old[name])
            if after is None or before is None:
                continue
            lines += causes(after, before, look_up)
        del new[name], old[name]
    for line in differences({**components, "upstream": new}, {**other, "upstream": old}):
        lines.append(f"{stage}.{line.removeprefix('config.')}" if line.startswith("config.") else f"{stage} {line}")
    return list(dict.fromkeys(lines))


def nearest_key(
    components: Mapping[str, Any], others: Iterable[Mapping[str, Any]], look_up: LookUp
) -> list[str] | None:
    """The fewest causes between a key and any of ``others``; ``None`` when there is none to compare with."""
    candidates = [causes(components, other, look_up) for other in others]
    return min(candidates, key=len, default=None)


def leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted name and value of everything in nested mappings that is not a mapping itself."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from leaves(child, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _short(text: str) -> str:
    bare = text.strip('"')
    return bare[:12] + "…" if len(bare) == 64 and " " not in bare else text
