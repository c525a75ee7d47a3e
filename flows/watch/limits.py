"""How far each metric may fall before the gate closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cascade.storage.errors import ConfigError, nearest
from cascade.tasks.aggregate import METRICS
from cascade.tasks.tables.intervals import NEGLIGIBLE


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """The limits of ``metric=fraction``, each metric once.

    Raises ``ConfigError`` if a text has another form, or names an unknown metric, one metric twice or no fraction.
    """
    limits: dict[str, float] = {}
    for text in texts:
        metric, _, value = (part.strip() for part in text.partition("="))
        try:
            limit = float(value)
        except ValueError:
            raise ConfigError(f"--max-drop {text}: must have the form metric=fraction, as pixel_ap=0.02") from None
        if metric in limits:
            raise ConfigError(f"--max-drop {text}: {metric} has a limit already; give each metric once")
        limits[metric] = limit
    complete_limits(limits)
    return limits


def complete_limits(limits: Mapping[str, float] | None) -> dict[str, float]:
    """A limit for every metric, ``NEGLIGIBLE`` where none is given.

    Raises ``ConfigError`` if there is no such metric, or a limit is no fraction in [0, 1].
    """
    for metric, limit in (limits or {}).items():
        if metric not in METRICS:
            raise ConfigError(f"max-drop {metric}={limit:g}: no metric '{metric}'; {nearest(metric, METRICS)}")
        if not 0 <= limit <= 1:
            raise ConfigError(f"max-drop {metric}={limit:g}: must be a fraction from 0 to 1, as pixel_ap=0.02")
    return dict.fromkeys(METRICS, NEGLIGIBLE) | dict(limits or {})
