"""What every section of the configuration is made of: its kinds of values, and how a method's section is chosen."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict
from pydantic.fields import FieldInfo

from cascade.storage.paths import expanded

# YAML knows whole numbers, numbers, words and switches; none is taken for another one.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Fraction = Annotated[Real, Field(ge=0.0, le=1.0)]
BatchSize = Annotated[Whole, Field(ge=1, le=1024)]
Precision = Literal["fp32", "bf16"]


def _expanded(value: Any) -> Any:
    return str(expanded(value)) if isinstance(value, str) else value


UserPath = Annotated[Path, BeforeValidator(_expanded)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def in_force(self) -> dict[str, Any]:
        """This section as plain data for a key, less the options that its other options leave without effect."""
        data = self.model_dump(mode="json", exclude=self._idle())
        return data | {name: own.in_force() for name, own in self if name in data and isinstance(own, Section)}

    def _idle(self) -> set[str]:
        """Names of the fields that change nothing beside the values that the others have."""
        return set()


def named(default: str) -> Discriminator:
    """By ``method``; a section that names none is the default's."""

    def method(data: Any) -> Any:
        return str(data.get("method", default)) if isinstance(data, dict) else getattr(data, "method", None)

    return Discriminator(method)


def methods_of(field: FieldInfo) -> dict[str, type[Section]]:
    """The sections that may stand in a field, by method; one without a name if there is no choice."""
    choices = [get_args(each)[0] if get_args(each) else each for each in get_args(field.annotation)]
    kinds = choices if get_origin(field.annotation) in (Union, UnionType) else [field.annotation]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    if len(sections) == 1:
        return {"": sections[0]}
    return {str(each.model_fields["method"].default): each for each in sections}
