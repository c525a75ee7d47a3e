"""What a trained file says of its own training."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from cascade.storage.errors import WeightsError
from cascade.storage.weights import LocatedWeights


class _Training(BaseModel):
    """What an adapter says of its training, as far as it is read again; whatever else it says is kept."""

    model_config = ConfigDict(extra="allow")

    dataset: str | None = None
    categories: list[str] = []
    image_ids: list[str] = []
    start: _Training | None = None


def adapter_training(located: LocatedWeights) -> dict[str, Any]:
    """What one of our adapters says about its training; empty for a foreign one. Raises ``WeightsError``."""
    if located.path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(located.path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{located.path}: damaged, or no safetensors file ({error}); get the file again") from error
    try:
        return _Training.model_validate_json(metadata.get("training", "{}")).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise WeightsError(
            f"{located.path}: what it says of its own training cannot be read, so that it could be tested on its own "
            f"training data unnoticed; get the file again, or train anew"
        ) from error
