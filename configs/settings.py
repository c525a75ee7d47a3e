"""Where things lie on this machine; each can be set by an environment variable that begins with ``CASCADE_``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cascade.configs.section import UserPath
from cascade.storage.errors import ConfigError


class Settings(BaseSettings):
    """Folders of this machine. A variable that is set to nothing means the default.

    Attributes:
        store: artefacts; ``CASCADE_STORE``.
        runs: tables of finished runs; ``CASCADE_RUNS``.
        weights: downloaded checkpoints; ``CASCADE_WEIGHTS``. Its ``~`` is looked up where a checkpoint is, so that
            whoever needs none needs no home.
        weights_url: a mirror of the checkpoints, in place of their origin; ``CASCADE_WEIGHTS_URL``.

    Raises:
        ConfigError: a value begins with ``~``, and there is no such home folder.
    """

    model_config = SettingsConfigDict(env_prefix="CASCADE_", env_ignore_empty=True, frozen=True)

    store: UserPath = Path("store")
    runs: UserPath = Path("runs")
    weights: Path = Path("~/.cache/clip-sam-cascade/weights")
    weights_url: str | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            fault = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"CASCADE_{str(first['loc'][0]).upper()}: {fault}") from None
