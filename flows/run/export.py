"""The maps and masks of a finished run as files, exactly as they were scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cascade.flows.run.results import read_finished, require_scores
from cascade.storage.artefacts import Artefact
from cascade.storage.atomic import replacing
from cascade.storage.errors import ConfigError, nearest
from cascade.storage.names import safe_path

MapFormat = Literal["npy", "tiff"]
MaskFormat = Literal["png"]
UNLABELLED = "unlabelled"


def export_run(
    run_folder: Path,
    target: Path,
    maps: MapFormat | None,
    masks: MaskFormat | None,
    steps: Sequence[str] | None = None,
) -> int:
    """Write the maps of ``steps`` (all by default) and the masks of a run; returns the number of images.

    ``maps/<step>/<category>/<defect>/<stem>.npy`` (or ``.tiff``) holds float16 [H, W] in the evaluation frame;
    ``masks/<category>/<defect>/<stem>.png`` holds 0 and 255, zeros for a good image, and is left out where the truth
    is not known. Images of one folder that share a stem get the start of their digest behind it.

    Raises:
        ConfigError: there is no such step.
        DataError: ``run_folder`` is not a finished run, or a name in its table would lead out of ``target``.
        StoreError: the store does not hold the run's scores any more, or they are damaged.
    """
    run = read_finished(run_folder)
    there = run.steps()
    for step in steps or ():
        if step not in there:
            raise ConfigError(f"no step '{step}'; {nearest(step, there)}")
    numbers = {step: there.index(step) for step in steps or there}
    artefact, images = require_scores(run), run.images()
    images = images[images["step"] == there[0]]
    places = [_place(row) for row in images.to_dict("records")]
    repeated = {place for place, count in Counter(places).items() if count > 1}
    for row, place in zip(images.to_dict("records"), places, strict=True):
        if place in repeated:
            place = place.with_name(f"{place.name}-{row['image_id'][:8]}")
        _export_image(artefact, row["item"], target, place, maps, masks, numbers)
    return len(places)


def _place(row: dict[Hashable, Any]) -> PurePosixPath:
    """Category, defect and stem; the table may be an old one, or edited, so each is looked at again."""
    category = safe_path(row["category"], "category", nested=True)
    defect = safe_path(row["defect"] or UNLABELLED, "defect", nested=True)
    return category / defect / safe_path(PurePosixPath(row["path"]).stem, "file name")


def _export_image(
    artefact: Artefact,
    item: str,
    target: Path,
    place: PurePosixPath,
    maps: MapFormat | None,
    masks: MaskFormat | None,
    steps: Mapping[str, int],
) -> None:
    height, width = artefact.record(item)["frame"]
    names = {"scores": f"scores_{height}x{width}", "truth": f"truth_{height}x{width}"}
    stored = artefact.read(item, only=names.values()).arrays
    if maps is not None:
        for step, number in steps.items():
            _write_map(target / "maps" / step / f"{place}.{maps}", stored[names["scores"]][number], maps)
    if masks is not None and names["truth"] in stored:
        truth = np.unpackbits(stored[names["truth"]], count=height * width).reshape(height, width) * np.uint8(255)
        with replacing(target / "masks" / f"{place}.{masks}") as path:
            Image.fromarray(truth).save(path, format="PNG")


def _write_map(path: Path, scores: NDArray[np.float16], form: MapFormat) -> None:
    with replacing(path) as part:
        if form == "npy":
            np.save(part, scores)
        else:
            tifffile.imwrite(part, scores)
