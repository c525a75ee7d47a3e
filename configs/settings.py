"""Where things lie on this machine; each can be set by an environment variable that begins with ``CASCADE_``."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Folders of this machine.

    Attributes:
        store: artefacts; ``CASCADE_STORE``.
        runs: tables of finished runs; ``CASCADE_RUNS``.
        weights: downloaded checkpoints; ``CASCADE_WEIGHTS``.
        weights_url: a mirror of the checkpoints, in place of their origin; ``CASCADE_WEIGHTS_URL``.
    """

    model_config = SettingsConfigDict(env_prefix="CASCADE_", frozen=True)

    store: Path = Path("store")
    runs: Path = Path("runs")
    weights: Path = Path("~/.cache/clip-sam-cascade/weights").expanduser()
    weights_url: str | None = None
