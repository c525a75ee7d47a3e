"""Where the decoder of the small SAM starts: as a match of positions and looks, before anything is learned.

SAM's decoder can draw the cells that look like the clicked one and lie near it, but from random weights it takes longer
to find out how than a small training lasts. So its weights start as such a match, by giving the channels of tokens and
cells parts to play, and training goes on from there:

- *place* channels hold Fourier features of the position, and little of the looks;
- *look* channels hold the embedding, from which what the positions add there is taken away;
- *sign* says of a token, and then of a cell, how much it is wanted; *own* marks tokens that are no prompt, *prompt*
  those that are one.

A point reads the looks of the cells at its place. A cell then asks which token it is like, in place and looks; other
tokens hold the mean of the image, so a cell joins a point if it is more like it than like the image on the whole.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor, nn

WAVES = 14
"""Frequencies that code positions; a code has a sine and a cosine of each."""

FREQUENCIES = (0.5, 5.0)
"""Range, log-uniform, of the spread of the frequencies, in cycles over half of the input."""

READING = 12.0
"""Logit of a point at the cells of its place, over those of others: it outweighs thousands of cells."""

SLOPE, THRESHOLD = 12.0, 0.4
"""Of a cell's logit for a point over their cosine, and the cosine at which it is as large as that for other tokens."""

NEARNESS = 9.0
"""Logit that a cell at a point's place has more than one far away; half of it is taken off everywhere."""

LEVELS = (1.2, 0.8, 1.2, 1.7)
"""How much a cell must be wanted to be in the single mask and in each of the three."""


def start_as_match(sam: Sam) -> None:
    """Sets the weights in place, for an embedding of 64 channels, one head, and attentions of full width."""
    place, look, cancelled, own, sign, prompt = _channels(sam.prompt_encoder.embed_dim)
    with torch.no_grad():
        _start_prompts(sam, cancelled, own, sign, prompt)
        transformer = sam.mask_decoder.transformer
        for layer in transformer.layers:
            for projection, gain in zip(_projections(layer.self_attn), (2.0, 2.0, 1.0, 1.0), strict=True):
                _set(projection, gain * torch.eye(len(projection.weight)))
            layer.mlp.lin2.weight *= 0.1
            layer.mlp.lin2.bias.zero_()
            _start_reading(layer.cross_attn_token_to_image, place, look)
            _start_matching(layer.cross_attn_image_to_token, place, look, sign, prompt)
        _start_reading(transformer.final_attn_token_to_image, place, look)
        _start_drawing(sam.mask_decoder, sign)


def part_channels(norm: nn.LayerNorm) -> None:
    """Keeps the looks out of the channels that have another part, at the start of the encoder."""
    place, _, _, own, sign, prompt = _channels(len(norm.weight))
    with torch.no_grad():
        norm.weight[place] *= 0.3
        norm.weight[[own, sign, prompt]] = 0
        norm.weight[own + len(norm.weight) // 2] = 0


def _channels(width: int) -> tuple[list[int], list[int], list[int], int, int, int]:
    """Place and look channels, those where the cosine of no frequency is taken away, and own, sign and prompt."""
    half = width // 2
    place = [*range(WAVES), *range(half, half + WAVES)]
    look = [*range(WAVES + 2, half), *range(half + WAVES + 2, width)]
    return place, look, [half + WAVES, *range(half + WAVES + 2, width)], WAVES, WAVES + 1, half + WAVES + 1


def _projections(attention: nn.Module) -> tuple[nn.Linear, ...]:
    return tuple(getattr(attention, f"{name}_proj") for name in ("q", "k", "v", "out"))


def _set(projection: nn.Linear, weight: Tensor) -> None:
    projection.weight.copy_(weight)
    projection.bias.zero_()


def _diagonal(width: int, *parts: tuple[list[int], float]) -> Tensor:
    values = torch.zeros(width)
    for channels, gain in parts:
        values[channels] = gain
    return torch.diag(values)


def _gain(logit: float, width: int, power: float) -> float:
    """Of queries and of keys alike, so that vectors of this ``power`` have such a ``logit``."""
    return math.sqrt(logit * math.sqrt(width) / power)


def _start_prompts(sam: Sam, cancelled: list[int], own: int, sign: int, prompt: int) -> None:
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    waves = encoder.pe_layer.positional_encoding_gaussian_matrix
    waves[:, WAVES:] = 0
    low, high = (math.log10(each) for each in FREQUENCIES)
    waves[:, :WAVES] *= torch.logspace(low, high, WAVES)
    encoder.no_mask_embed.weight.zero_()
    encoder.no_mask_embed.weight[:, cancelled] = -1
    last = encoder.mask_downscaling[-1]
    _set(last, 0.1 * last.weight)
    last.bias[cancelled] = -1
    for wanted, point in zip((-4.0, 4.0, 4.0, 4.0), encoder.point_embeddings, strict=True):
        point.weight.zero_()
        point.weight[:, cancelled] = -1
        point.weight[:, sign] = wanted
        point.weight[:, prompt] = 2
    for token in (encoder.not_a_point_embed, decoder.iou_token, decoder.mask_tokens):
        token.weight *= 0.2
        token.weight[:, own] = 6


def _start_reading(attention: nn.Module, place: list[int], look: list[int]) -> None:
    query, key, value, out = _projections(attention)
    width = len(query.weight)
    for projection in (query, key):
        _set(projection, _diagonal(width, (place, _gain(READING, width, 2.1 * WAVES))))
    _set(value, _diagonal(width, (look, 1.0)))
    _set(out, _diagonal(width, (look, 1.5)))


def _start_matching(attention: nn.Module, place: list[int], look: list[int], sign: int, prompt: int) -> None:
    query, key, value, out = _projections(attention)
    width = len(query.weight)
    near, alike = _gain(NEARNESS, width, 2.1 * WAVES), _gain(SLOPE, width, len(look))
    for projection in (query, key):
        _set(projection, _diagonal(width, (place, near), (look, alike)))
    least = SLOPE * THRESHOLD + NEARNESS / 2 - math.log(6)  # there are six other tokens
    query.weight[prompt, prompt] = -least * math.sqrt(width) / 5
    key.weight[prompt, prompt] = 1
    _set(value, _diagonal(width, ([sign], 1.0)))
    _set(out, _diagonal(width, ([sign], 1.5)))


def _start_drawing(decoder: MaskDecoder, sign: int) -> None:
    """The first two channels of the upscaled embedding are: wanted, and one."""
    first, _, _, second, _ = decoder.output_upscaling
    _set(first, 0.5 * first.weight)
    first.weight[:, :2] = 0
    for channel, gain in enumerate((1.5, -1.5)):
        first.weight[sign, channel] = gain
        first.bias[channel] = -2 * gain
    second.bias.zero_()
    second.weight[:, :2] = 0
    second.weight[0, 0] = 1
    second.bias[1] = 1
    for level, network in zip(LEVELS, decoder.output_hypernetworks_mlps, strict=True):
        last = network.layers[-1]
        _set(last, 0.1 * last.weight)
        last.bias[0], last.bias[1] = 4, -4 * level / 0.84
