"""Prompt ensembles from YAML."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from cascade.backbones.clip.ensemble import PromptEnsemble
from cascade.configs.loader import PROMPTS, read_yaml
from cascade.storage.errors import ConfigError, nearest
from cascade.storage.paths import expanded

_KEYS = ("normal", "abnormal", "templates")


@lru_cache(maxsize=8)
def load_ensemble(prompts: str) -> PromptEnsemble:
    """The prompt ensemble of a name in ``configs/prompts`` or of a YAML file. Raises ``ConfigError``."""
    path = PROMPTS / f"{prompts}.yaml"
    if not path.is_file():
        path = expanded(prompts)
    if not path.is_file():
        known = [each.stem for each in PROMPTS.glob("*.yaml")]
        raise ConfigError(f"localise.prompts: no ensemble '{prompts}'; {nearest(prompts, known)}, or a YAML file")
    data = read_yaml(path)
    classes = data.pop("classes", None) or {}
    if not isinstance(classes, dict):
        raise ConfigError(f"{path}: 'classes' must hold one entry for each class")
    missing = [name for name in _KEYS if name not in data]
    if missing:
        raise ConfigError(f"{path}: key '{missing[0]}' is missing")
    return PromptEnsemble(
        **_sentences(path, "", data),
        classes={str(words): _sentences(path, f"classes.{words}.", own) for words, own in classes.items()},
    )


def _sentences(path: Path, where: str, data: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: '{where.rstrip('.')}' must hold normal, abnormal or templates")
    checked = {}
    for name, value in data.items():
        if name not in _KEYS:
            raise ConfigError(f"{path}: unknown key '{where}{name}'; {nearest(str(name), _KEYS)}")
        if not (isinstance(value, list) and value and all(isinstance(text, str) and "{}" in text for text in value)):
            raise ConfigError(f"{path}: '{where}{name}' must be a list of sentences, each with {{}} for the class name")
        checked[name] = tuple(value)
    return checked
