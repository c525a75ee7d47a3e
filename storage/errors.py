"""Every error this project raises on purpose.

    PipelineError                      exit code 1
    ├── ConfigError      (ValueError)  exit code 2   a key, name or value in the configuration
    ├── DataError        (ValueError)  exit code 2   an image, a mask or a dataset layout
    │   ├── ImageError                               a file that cannot be decoded (cascade.storage.datasets.images)
    │   └── LeakError                                an adapter trained on the data it would be tested on
    ├── StoreError       (OSError)     exit code 3   the artefact store
    │   └── CorruptItem                              an item whose bytes do not match the ledger
    ├── WeightsError     (OSError)     exit code 4   a checkpoint that is missing or not the pinned one
    └── StageError       (RuntimeError) exit code 5  a stage that could not finish

A message is one line that says what is wrong and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """Base of every deliberate error; ``exit_code`` is what the process returns."""

    exit_code = 1


class ConfigError(PipelineError, ValueError):
    """A configuration key, name or value that does not exist or does not fit."""

    exit_code = 2


class DataError(PipelineError, ValueError):
    """An image, mask, manifest or dataset layout that would make a run wrong."""

    exit_code = 2


class LeakError(DataError):
    """An adapter would be evaluated on images or categories that it was trained on."""


class StoreError(PipelineError, OSError):
    """The artefact store cannot be read or written."""

    exit_code = 3


class CorruptItem(StoreError):
    """An item's bytes do not match its ledger record.

    Attributes:
        artefact: ``<stage>/<key>`` of the artefact that holds the item.
        item: identity of the damaged item.
    """

    def __init__(self, artefact: str, item: str, reason: str) -> None:
        super().__init__(f"{artefact}: item {item} is damaged ({reason}); it has to be recomputed")
        self.artefact = artefact
        self.item = item
        self._arguments = (artefact, item, reason)

    def __reduce__(self) -> tuple[type[CorruptItem], tuple[str, str, str]]:
        """Raised in a worker process, caught in another one."""
        return CorruptItem, self._arguments


class WeightsError(PipelineError, OSError):
    """A checkpoint is missing, or its digest is not the pinned one."""

    exit_code = 4


class StageError(PipelineError, RuntimeError):
    """A stage could not finish; the message names the image."""

    exit_code = 5


def nearest(name: str, valid: Iterable[str]) -> str:
    """A ``did you mean`` hint for ``name`` among ``valid``, followed by the whole choice."""
    choices = sorted(valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}valid: {', '.join(choices)}"
