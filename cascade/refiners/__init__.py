"""How far does it reach? One module for each method, with its name; ``REFINER`` there is the method."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import cast

from cascade.refiners.protocol import Refiner


def refiner_class(name: str) -> type[Refiner]:
    """The method of a name."""
    return cast("type[Refiner]", import_module(f"{__name__}.{name}").REFINER)


def make_refiner(name: str, options: object) -> Refiner:
    """The method of a name, with those attributes of ``options`` that it has fields for."""
    chosen = refiner_class(name)
    return chosen(**{field.name: getattr(options, field.name) for field in fields(chosen)})  # type: ignore[arg-type]
