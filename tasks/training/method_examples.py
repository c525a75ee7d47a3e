"""What a method learns from: images or mosaics of them, as the method sees them, with the masks of their defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.localisers.squares import squared
from cascade.storage.artefacts import Artefact
from cascade.storage.datasets import ImageRecord, mask_in_frame, read_image, read_mask
from cascade.storage.errors import DataError
from cascade.tasks.stage import Run

if TYPE_CHECKING:
    import torch

    from cascade.tasks.execution.networks import Networks

Drawn = Sequence[ImageRecord]
"""One image, or the four of a mosaic."""


@dataclass(frozen=True)
class Examples:
    """The images of a run, read from what was cached of them; a mosaic is looked at as it comes.

    Attributes:
        run: its manifest holds the images.
        networks: frozen.
        tokens: what the method saw in each image.
        mosaic: probability of a mosaic in place of an image.
    """

    run: Run
    networks: Networks
    tokens: Artefact
    mosaic: float

    def draw(self, record: ImageRecord, rng: np.random.Generator) -> Drawn:
        """An image, or with some probability a mosaic of its category: a defect type drawn evenly, then a file."""
        if not self.mosaic or rng.random() >= self.mosaic:
            return [record]
        own = [each for each in self.run.manifest if each.category == record.category]
        kinds = sorted({each.defect for each in own})
        drawn = []
        for _ in range(4):
            kind = kinds[rng.integers(len(kinds))]
            files = [each for each in own if each.defect == kind]
            drawn.append(files[rng.integers(len(files))])
        return drawn

    def read(self, drawn: Drawn) -> tuple[dict[str, torch.Tensor], NDArray[np.bool_]]:
        """What the method's ``look`` saw, [...] by name on the CPU, and the mask [side, side]."""
        import torch

        localiser = self.run.localiser
        side = localiser.sides[0]
        if len(drawn) == 1:
            arrays = self.tokens.read(drawn[0].image_id).arrays
            looks = {name: torch.from_numpy(values).float() for name, values in arrays.items()}
            return looks, mask_in_frame(mask_of(self.run, drawn[0]), (side, side))
        image, mask = mosaic_of(self.run, drawn)
        inputs = localiser.inputs([squared(image, each) for each in localiser.sides])
        seen = localiser.look(self.networks, [each[None].to(self.networks.device) for each in inputs])
        return {name: values[0].cpu() for name, values in seen.items()}, mask_in_frame(mask, (side, side))


def mosaic_of(run: Run, drawn: Drawn) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Four images in a 2 x 2 canvas, and their masks alike (APRIL-GAN's augmentation).

    All four take the size of the first, so that images of different sizes fit one canvas.
    """
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    for record in drawn:
        image, mask = read_image(run.image_path(record), record.white), mask_of(run, record)
        if images and image.shape != images[0].shape:
            height, width = images[0].shape[:2]
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
            mask = mask_in_frame(mask, (height, width))
        images.append(image)
        masks.append(mask)
    canvas = np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])
    return canvas, np.vstack([np.hstack(masks[:2]), np.hstack(masks[2:])])


def mask_of(run: Run, record: ImageRecord) -> NDArray[np.bool_]:
    """[H, W], true where an image is defective; nowhere if it is good."""
    if record.mask_path is None:
        return np.zeros((record.height, record.width), dtype=bool)
    return read_mask(run.manifest.root / record.mask_path)


def require_masks(run: Run) -> None:
    """Raise ``DataError`` if a defective image of the training data has no mask, or none is defective."""
    records = list(run.manifest)
    unknown = [record for record in records if record.label is None or (record.label and record.mask_path is None)]
    if unknown:
        raise DataError(f"{run.manifest.root / unknown[0].path}: training needs a label, and a mask if it is defective")
    if not any(record.label for record in records):
        raise DataError(f"{run.manifest.root}: training needs defective images; none is in the chosen split")
