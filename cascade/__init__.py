"""Zero-shot industrial anomaly segmentation: ``from cascade import Segmenter`` for images in memory.

What lies directly in this package is the science: tensors in, tensors out. No files, no Prefect.

It is the one package that is installed. ``storage``, ``configs``, ``tasks`` and ``flows`` are folders at the top of the
repository, and links here make them parts of it: ``from cascade.storage.errors import ...``. So no environment gets a
package called ``tasks``, and a project that has one of its own does not break the program.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade.segmenter import Prediction, Segmenter

__all__ = ["Prediction", "Segmenter"]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """``Segmenter`` and ``Prediction``, imported when they are first asked for."""
    if name in __all__:
        from cascade import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
