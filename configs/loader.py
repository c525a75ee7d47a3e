"""From a preset name or a YAML file, and ``key=value`` overrides, to a validated experiment."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cascade.configs.schema import Experiment
from cascade.storage.errors import ConfigError, nearest

_HERE = Path(__file__).parent
PRESETS = _HERE / "presets"
PROMPTS = _HERE / "prompts"
MODELS = _HERE / "models"
_MAX_YAML_BYTES = 1_000_000
Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a list or mapping cannot be a key")
            if key in seen:
                raise ConfigError(f"{node.start_mark.name}: key '{key}' stands twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises ``ConfigError`` if it cannot be read."""
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_YAML_BYTES} bytes; this is not a configuration")
        with path.open(encoding="utf-8") as file:
            data = yaml.load(file, Loader=_UniqueKeyLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold 'key: value' pairs at the top")
    return data


def preset_names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_experiment(source: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a preset name or YAML file, with ``key=value`` overrides (dotted keys, YAML values).

    A file may name what it builds on with ``extends: <preset or file>``, relative to its own folder. Raises
    ``ConfigError`` with one line.
    """
    data = _resolve(source, Path(), ())
    for override in overrides:
        _assign(data, *parse_override("--set", override))
    return validate(Experiment, data)


def parse_override(option: str, override: str) -> tuple[list[str], Any]:
    """The dotted names and the YAML value of ``key=value``. Raises ``ConfigError`` that quotes the ``option``."""
    key, separator, text = override.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise ConfigError(f"{option} {override}: must have the form key=value, for example batch_size=4")
    try:
        return names, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} {override}: the value is not valid YAML") from error


def validate(model: type[Model], data: Mapping[str, Any]) -> Model:
    """``model`` from plain data. Raises ``ConfigError`` naming the first wrong key and the nearest valid one."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors()
        names = _names(first)
        where = ".".join(names) or model.__name__
        if first["type"] == "extra_forbidden":
            valid = _fields_at(model, names[:-1])
            raise ConfigError(f"unknown configuration key '{where}'; {nearest(names[-1], valid)}") from None
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            choice = [
                part.strip().strip("'") for part in str(first["ctx"]["expected"]).replace(" or ", ", ").split(",")
            ]
            raise ConfigError(f"{where}: unknown value '{first['input']}'; {nearest(first['input'], choice)}") from None
        given = f" (given: {first['input']!r})" if first["type"] != "value_error" else ""
        # one error for each member of a union
        messages = [first["msg"].removeprefix("Value error, ")] + [
            each["msg"] for each in others if _names(each) == names
        ]
        raise ConfigError(f"{where}: {', or '.join(messages)}{given}") from None


def _names(error: ErrorDetails) -> list[str]:
    """Where an error is; pydantic adds the member of a union, which is no key."""
    return [str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "literal["))]


def _resolve(source: str, folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = (folder / source).resolve()
    if source in preset_names():
        path = PRESETS / f"{source}.yaml"
    elif not path.is_file():
        raise ConfigError(f"no experiment '{source}': neither a preset nor a file; {nearest(source, preset_names())}")
    if path in seen:
        raise ConfigError(f"{path}: 'extends' leads back to itself")
    data = read_yaml(path)
    base = data.pop("extends", None)
    data.setdefault("name", path.stem)
    return data if base is None else _merge(_resolve(str(base), path.parent, (*seen, path)), data)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _assign(data: dict[str, Any], names: list[str], value: Any) -> None:
    for depth, name in enumerate(names[:-1]):
        child = data.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {'.'.join(names)}: '{'.'.join(names[: depth + 1])}' is a value, not a section")
        data = child
    data[names[-1]] = value


def _fields_at(model: type[BaseModel], names: Sequence[str]) -> list[str]:
    for name in names:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return list(model.model_fields)
