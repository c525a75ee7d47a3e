"""One white for all pictures of a dataset that have more than 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cascade.storage.datasets.deep import ROUNDING, WHITE_OF_16_BITS, white_of
from cascade.storage.datasets.entries import Checked
from cascade.storage.datasets.problems import Problem


def with_whites(checked: Sequence[Checked], full_scale: float | None) -> tuple[list[Checked], list[Problem]]:
    """Give every deep picture its white: ``full_scale``, or one for all integers and one for all fractions.

    Pictures with another white than the usual one of 16 bits are other pictures: it stands in their ``image_id``.
    """
    whites, problems = {}, []
    for fractions in (False, True):
        own = [each for each in checked if each.header is not None and each.header.deep]
        own = [each for each in own if each.header is not None and each.header.fractions == fractions]
        peaks = [each.pixels.peak for each in own if each.pixels is not None and each.pixels.peak is not None]
        if not own:
            continue
        white = full_scale if full_scale is not None else white_of(peaks, fractions=fractions)
        whites[fractions] = white
        if full_scale is None and (fractions or white != WHITE_OF_16_BITS):
            problems.append(_told(own, max(peaks), white))
    if full_scale is not None and not whites:
        message = "no image has more than 8 bits; dataset.full_scale changes nothing"
        problems.append(Problem("warning", "unused-full-scale", ".", message))
    return [_with_white(each, whites, full_scale) for each in checked], problems


def _told(own: Sequence[Checked], peak: float, white: float) -> Problem:
    many = "1 image has" if len(own) == 1 else f"{len(own)} images have"
    message = (
        f"{many} more than 8 bits and values up to {peak:.10g}; read alike from 0 (black) to {white:.10g} (white); "
        f"--set dataset.full_scale={white:.10g} fixes this, or another white"
    )
    return Problem("warning", "depth", own[0].entry.path, message)


def _with_white(each: Checked, whites: dict[bool, float], full_scale: float | None) -> Checked:
    if each.record is None or each.header is None or not each.header.deep:
        return each
    white, peak = whites[each.header.fractions], each.pixels.peak if each.pixels else None
    beyond = white * (1 + ROUNDING) if each.header.fractions else white
    if peak is not None and peak > beyond:
        message = f"holds values up to {peak:.10g}, beyond dataset.full_scale={full_scale}; set it higher"
        problem = Problem("error", "beyond-full-scale", each.entry.path, message, each.entry.path)
        return Checked(each.entry, (*each.problems, problem))
    usual = white == WHITE_OF_16_BITS and not each.header.fractions
    image_id = each.record.image_id if usual else f"{each.record.image_id}-white{white:.10g}"
    return replace(each, record=replace(each.record, white=white, image_id=image_id))
