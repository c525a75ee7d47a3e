"""Where is something wrong? One module for each method, with its name; ``LOCALISER`` there is the method."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from cascade.localisers.protocol import Localiser


def localiser_class(name: str) -> type[Localiser]:
    """The method of a name."""
    return cast("type[Localiser]", import_module(f"{__name__}.{name}").LOCALISER)


def make_localiser(name: str, options: object) -> Localiser:
    """The method of a name, of ``options`` that have them as attributes."""
    return localiser_class(name).of(options)
