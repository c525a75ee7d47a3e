"""The sentences that stand for a normal and for an abnormal object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class PromptEnsemble:
    """States and templates, each with one ``{}`` for the class name or the state phrase.

    ``classes`` replaces any of ``normal``, ``abnormal`` and ``templates`` for one class.
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]
    classes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    def sentences(self, words: str) -> tuple[list[str], list[str]]:
        """All normal and all abnormal sentences of a class; every template holds every state phrase."""
        own = self.classes.get(words, {})
        templates = own.get("templates", self.templates)
        return (
            _fill(own.get("normal", self.normal), templates, words),
            _fill(own.get("abnormal", self.abnormal), templates, words),
        )

    def as_data(self) -> dict[str, object]:
        """Plain data for a key."""
        return asdict(self)


def _fill(states: tuple[str, ...], templates: tuple[str, ...], words: str) -> list[str]:
    phrases = [state.replace("{}", words) for state in states]
    return [template.replace("{}", phrase) for phrase in phrases for template in templates]
