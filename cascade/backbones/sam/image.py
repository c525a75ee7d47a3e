"""From a photograph to SAM's input, and from the input to an embedding."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from cascade.backbones.sam.encoder import encode
from cascade.frames import InputFrame, Size

ImageMode = Literal["square", "stretched", "padded"]


def input_frame(size: Size, mode: ImageMode, side: int) -> InputFrame:
    """Where an image of ``size`` (height, width) lies in an input of ``side`` pixels.

    ``padded`` keeps the aspect ratio as SAM does; ``square`` and ``stretched`` fill the whole input.
    """
    if mode == "padded":
        height, width = ResizeLongestSide.get_preprocess_shape(*size, side)
        return InputFrame(side, (height, width))
    return InputFrame(side, (side, side))


def to_input(image: NDArray[np.uint8], mode: ImageMode, side: int, square_side: int) -> NDArray[np.uint8]:
    """A photograph scaled as SAM's official predictor does, in one of three ways (A2).

    Args:
        image: [H, W, 3] RGB.
        mode: ``padded`` scales the longest side; ``square`` first makes the square image of CLIP's loader (bicubic),
            which the predictor then scales; ``stretched`` scales both sides to the input at once.
        side: side of SAM's input.
        square_side: side of the square image in mode ``square``.

    Returns:
        [h, w, 3] uint8, not yet padded.
    """
    if mode == "square":
        image = np.asarray(Image.fromarray(image).resize((square_side, square_side), Image.Resampling.BICUBIC))
    elif mode == "stretched":
        return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    resized: NDArray[np.uint8] = ResizeLongestSide(side).apply_image(image)
    return resized


def normalise(image: torch.Tensor, sam: Sam) -> torch.Tensor:
    """SAM's own normalisation and zero padding, on its device: [3, side, side] float32 of what :func:`to_input` made.

    Args:
        image: [h, w, 3] uint8; the copy to a GPU is not waited for if it is in pinned memory.
        sam: the model.
    """
    pixels = image.to(sam.device, non_blocking=True).permute(2, 0, 1).contiguous()
    normalised: torch.Tensor = sam.preprocess(pixels.float())
    return normalised


@torch.inference_mode()
def embed(
    sam: Sam, inputs: torch.Tensor, *, bf16: bool = False, fused: bool = True, compiled: bool = False
) -> torch.Tensor:
    """Image embeddings [B, C, grid, grid] float32 of normalised inputs [B, 3, side, side].

    ``fused`` takes :func:`cascade.backbones.sam.encoder.encode` in place of the encoder's own forward pass,
    ``compiled`` or not; all agree within rounding.
    """
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        embedding: torch.Tensor = (
            encode(sam.image_encoder, inputs, compiled=compiled) if fused else sam.image_encoder(inputs)
        )
    return embedding.float()
