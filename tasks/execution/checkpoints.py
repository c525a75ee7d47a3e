"""Checkpoints read into memory: tensors and nothing else, whatever is in the file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from cascade.storage.errors import WeightsError

_INSIDE = ("state_dict", "trainable_linearlayer", "prompt_learner", "linear_layers")
"""Keys under which files hold a state dict: torch's own custom, APRIL-GAN's, AnomalyCLIP's, CLIP-AD's."""


def read_state(path: Path, sha256: str, *, pinned: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU; safetensors, or a torch file loaded with ``weights_only``.

    A TorchScript archive (OpenAI's CLIP files) holds code, so it is opened only if its digest is pinned.
    Raises ``WeightsError`` if the file is something else.
    """
    try:
        state = _loaded(path, sha256, pinned)
    except WeightsError:
        raise
    except Exception as error:  # unpickling fails in many ways; all mean that the file is of no use
        # torch's own words recommend to load such a file without protection
        first_sentence = " ".join(str(error).split()).partition(". ")[0][:200]
        reason = "" if isinstance(error, UnpicklingError) else f" ({first_sentence})"
        raise WeightsError(
            f"{path} ({sha256[:12]}): damaged, or holds more than tensors, and was not loaded{reason}; "
            f"get the file again, or save its tensors as .safetensors"
        ) from error
    for key in _INSIDE:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        kind = "nothing" if not isinstance(state, torch.Tensor) and not state else f"a {type(state).__name__}"
        raise WeightsError(f"{path}: holds {kind} in place of named tensors; save a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise WeightsError(f"{path}: entry '{name}' is not a plain tensor; save a state dict of dense tensors")
    return dict(state)


def _loaded(path: Path, sha256: str, pinned: bool) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if not _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the form of the file, for those who made it
            return torch.load(path, map_location="cpu", weights_only=True)
    if not pinned:
        raise WeightsError(
            f"{path}: a TorchScript archive, which holds code; save its state dict, or, if it is CLIP and you trust "
            f"where it comes from, say so by localise.sha256={sha256}"
        )
    state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return {name: value for name, value in state.items() if value.ndim or name == "logit_scale"}


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_complex())
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def load_state(module: nn.Module, state: dict[str, torch.Tensor], path: Path, what: str) -> None:
    """Give a network the weights of a file as float32. Raises ``WeightsError`` if they are another network's."""
    try:
        module.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path}: does not fit {what} ({' '.join(str(error).split())[:200]})") from error


def require_finite(network: nn.Module, path: Path) -> None:
    """Raise ``WeightsError`` if a weight is NaN or infinite."""
    for name, value in network.named_parameters():
        if not value.isfinite().all():
            raise WeightsError(f"{path}: '{name}' holds NaN or infinity; get the file again, or train anew")
