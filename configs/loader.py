"""From a preset name or a YAML file, and ``key=value`` overrides, to a validated experiment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from reprlib import Repr
from typing import Any, TextIO, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cascade.configs.localisers import Localiser
from cascade.configs.schema import Experiment
from cascade.configs.section import Section, methods_of
from cascade.storage.errors import ConfigError, nearest
from cascade.storage.paths import expanded

_HERE = Path(__file__).parent
PRESETS = _HERE / "presets"
PROMPTS = _HERE / "prompts"
MODELS = _HERE / "models"
_MAX_YAML_BYTES = 1_000_000
_MAX_VALUES = 100_000
_ALIKE = 0.6
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]|[^:]*:)")
_REPR = Repr()
Model = TypeVar("Model", bound=BaseModel)


class _CheckedLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word, and lets aliases multiply; here both are errors."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"it stands for more than {_MAX_VALUES} values; this is not a configuration")
        return node


# YAML 1.1, which PyYAML reads, takes 2e-4 for a word; JSON and people write it so
_CheckedLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is once every alias in it has been replaced by what it names.

    Raises ``YAMLError`` if a key stands twice or is none, if an alias stands inside of what it names, or if a number is
    another one to YAML than to people.
    """
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and _OTHER_BASE.match(node.value):
            raise yaml.YAMLError(f"line {line}: {node.value} would be read to the base 8 or 60; put it in quotes")
        if _HALF_CHARACTER.search(node.value):
            raise yaml.YAMLError(f"line {line}: {node.value[:80]!a} holds half a character")
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        below = node.value if isinstance(node, yaml.SequenceNode) else _entries(node, line)
        known[id(node)] = 1 + sum(_values(each, known) for each in below)
    if not known[id(node)]:
        raise yaml.YAMLError(f"line {line}: an alias stands inside of what it names")
    return known[id(node)]


def _entries(node: yaml.Node, line: int) -> list[yaml.Node]:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.YAMLError(f"line {line}: a list or mapping cannot be a key")
        if key.value in seen:
            raise yaml.YAMLError(
                f"line {key.start_mark.line + 1}: key '{shortened(key.value)}' stands twice; remove one"
            )
        seen.add(key.value)
    return [each for pair in node.value for each in pair]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises ``ConfigError`` if it cannot be read."""
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_YAML_BYTES} bytes; this is not a configuration")
        with path.open(encoding="utf-8") as file:
            data = _parsed(file, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold 'key: value' pairs at the top")
    return data


def _parsed(text: str | TextIO, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_CheckedLoader)  # a SafeLoader
    except RecursionError:
        raise ConfigError(f"{where}: brackets or lists are nested too deeply; this is not a configuration") from None
    except UnicodeDecodeError:
        raise
    except Exception as error:  # beside its own errors, whatever a value raises that is not what its tag says
        raise ConfigError(f"{where}: not valid YAML ({shortened(str(error), 300)})") from error


def preset_names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_experiment(source: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a preset name or YAML file, with ``key=value`` overrides (dotted keys, YAML values).

    A file may name what it builds on with ``extends: <preset or file>``, relative to its own folder. Raises
    ``ConfigError`` with one line.
    """
    data = _resolve(source, Path(), ())
    changes = [parse_override("--set", override) for override in overrides]
    for names, value in changes:
        if names[1:] == ["method"]:
            _choose_method(data, names[0], value)
    for names, value in changes:
        _assign(data, names, value)
    return validate(Experiment, data)


def parse_override(option: str, override: str) -> tuple[list[str], Any]:
    """The dotted names and the YAML value of ``key=value``. Raises ``ConfigError`` that quotes the ``option``."""
    key, separator, text = override.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise ConfigError(f"{option} {shortened(override)}: must have the form key=value, for example batch_size=4")
    return names, _parsed(text, f"{option} {shortened(override)}")


def as_override(key: str, value: object) -> str:
    """``key=value`` that is read as ``value``, whatever characters are in it."""
    # JSON is YAML too, but for what it escapes beyond 16 bits
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def validate(model: type[Model], data: Mapping[str, Any]) -> Model:
    """``model`` from plain data. Raises ``ConfigError`` naming the first wrong key and the nearest valid one."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors()
        names = _names(first, model)
        where = shortened(".".join(names)) or model.__name__
        if first["type"] == "extra_forbidden":
            fault = _of_another_method(model, first) or f"unknown configuration key '{where}'; {key_hint(model, names)}"
            raise ConfigError(fault) from None
        if first["type"] == "union_tag_invalid":
            wanted, methods = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "").split(", ")
            raise ConfigError(
                f"{where}.method: unknown value '{shortened(wanted)}'; {nearest(wanted, methods)}"
            ) from None
        if first["type"] == "union_tag_not_found":
            raise ConfigError(f"{where}: must hold options (given: {_given(first['input'])})") from None
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            choice = [
                part.strip().strip("'") for part in str(first["ctx"]["expected"]).replace(" or ", ", ").split(",")
            ]
            raise ConfigError(
                f"{where}: unknown value '{shortened(first['input'])}'; {nearest(first['input'], choice)}"
            ) from None
        given = f" (given: {_given(first['input'])})" if first["type"] != "value_error" else ""
        # one error for each member of a union
        messages = [first["msg"].removeprefix("Value error, ")] + [
            each["msg"] for each in others if _names(each, model) == names
        ]
        raise ConfigError(f"{where}: {', or '.join(messages)}{given}") from None


def key_hint(model: type[BaseModel], names: Sequence[str]) -> str:
    """For a dotted key that is none: the keys of that name in other sections, or the most alike, and what is valid."""
    *section, wanted = names

    def likeness(key: tuple[str, ...]) -> float:
        return SequenceMatcher(None, key[-1], wanted).ratio() + (0.1 if list(key[:-1]) == section else 0.0)

    keys = _keys(model)
    near = [key for key in keys if key[-1] == wanted]
    if not near:
        near = [key for key in [max(keys, key=likeness)] if likeness(key) >= _ALIKE]
    hint = f"did you mean {' or '.join(repr('.'.join(key)) for key in near)}? " if near else ""
    return f"{hint}valid: {', '.join(sorted(_fields_at(model, section)))}"


def shortened(text: str, length: int = 80) -> str:
    """A text on one line, cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _given(value: Any) -> str:
    try:
        return shortened(_REPR.repr(value))
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return "a very long number"


def _names(error: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Where an error is; pydantic adds the member of a union, which is no key."""
    parts = [str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "literal["))]
    field = model.model_fields.get(parts[0]) if parts else None
    return [*parts[:1], *parts[2:]] if field is not None and parts[1:2] and parts[1] in methods_of(field) else parts


def _of_another_method(model: type[BaseModel], error: ErrorDetails) -> str | None:
    """What is to be said of an option that belongs to another method than the one that is chosen, if it does."""
    section, *others = map(str, error["loc"])
    methods = methods_of(model.model_fields[section]) if section in model.model_fields else {}
    if len(others) != 2 or others[0] not in methods:
        return None
    chosen, option = others
    owners = [name for name, kind in methods.items() if option in kind.model_fields]
    if not owners:
        return None
    *first, last = (f"'{name}'" for name in owners)
    of = f"{', '.join(first)} and {last}" if first else last
    return f"{section}.{option} is an option of {of}, and {section}.method is '{chosen}'; leave it out"


def _resolve(source: str, folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = (folder / expanded(source)).resolve()
    if source in preset_names():
        path = PRESETS / f"{source}.yaml"
    elif not path.is_file():
        raise ConfigError(f"no experiment '{source}': neither a preset nor a file; {nearest(source, preset_names())}")
    if path in seen:
        raise ConfigError(f"{path}: 'extends' leads back to itself")
    data = read_yaml(path)
    base = data.pop("extends", None)
    data.setdefault("name", path.stem)
    if base is None:
        return data
    below = _resolve(str(base), path.parent, (*seen, path))
    for name, value in data.items():
        if isinstance(value, dict) and "method" in value:
            _choose_method(below, name, value["method"])
    return _merge(below, data)


def _choose_method(data: dict[str, Any], section: str, method: Any) -> None:
    """Drop what a preset says of a method if another one is chosen over it; an option of one is none of another.

    What both inherit from a kind of method, as from those that have linear layers, is kept.
    """
    field, below = Experiment.model_fields.get(section), data.get(section)
    if field is None or not isinstance(below, dict) or not (isinstance(method, str) and method in methods_of(field)):
        return
    before = below.get("method", field.default.method)
    if before != method:
        kinds, every = methods_of(field), set(Localiser.model_fields)
        known = kinds[before].__mro__ if before in kinds else ()
        shared = next(
            (kind for kind in known if issubclass(kinds[method], kind) and issubclass(kind, Section)), Section
        )
        data[section] = {name: value for name, value in below.items() if name in set(shared.model_fields) - every}


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


def _keys(model: type[BaseModel]) -> list[tuple[str, ...]]:
    """Every section and key below a model."""
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        below = dict.fromkeys(key for kind in methods_of(field).values() for key in _keys(kind))
        found += [(name,), *((name, *key) for key in below)]
    return found


def _fields_at(model: type[BaseModel], names: Sequence[str]) -> set[str]:
    models: list[type[BaseModel]] = [model]
    for name in names:
        fields = [each.model_fields[name] for each in models if name in each.model_fields]
        below = [kind for field in fields for kind in methods_of(field).values()]
        if not below:
            break
        models = list(below)
    return {name for each in models for name in each.model_fields}
