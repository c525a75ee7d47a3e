"""Sentences about a scene, in the wording that zero-shot anomaly detection asks CLIP with."""

from __future__ import annotations

from cascade.synthesis.fields import Rng, chance

NORMAL_STATES: tuple[str, ...] = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
"""States of an intact object (APRIL-GAN, ``prompt_ensemble.py``)."""

ABNORMAL_STATES: tuple[str, ...] = (
    "damaged {}",
    "broken {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)
"""States of a damaged object (APRIL-GAN, ``prompt_ensemble.py``)."""

_STEMS = (
    "a bad photo of",
    "a low resolution photo of",
    "a cropped photo of",
    "a bright photo of",
    "a dark photo of",
    "a close-up photo of",
    "a black and white photo of",
    "a jpeg corrupted photo of",
    "a blurry photo of",
    "a good photo of",
    "a photo of",
    "a photo of {article} cool",
    "a photo of {article} large",
    "a photo of {article} small",
)

_SINGLES = (
    "a photo of my {}.",
    "a photo of one {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)


def _templates() -> tuple[str, ...]:
    sentences = []
    for article in ("a", "the"):
        for stem in _STEMS:
            head = stem.format(article=article) if "{article}" in stem else f"{stem} {article}"
            sentences.append(f"{head} {{}}.")
    return (*sentences, *_SINGLES)


TEMPLATES: tuple[str, ...] = _templates()
"""The 35 sentences with one slot for a state phrase."""


def _pick(rng: Rng, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def normal_sentence(rng: Rng, noun: str) -> str:
    """One sentence about an intact ``noun``."""
    return _pick(rng, TEMPLATES).format(_pick(rng, NORMAL_STATES).format(noun))


def abnormal_sentence(rng: Rng, noun: str, defect: str | None = None) -> str:
    """One sentence about a damaged ``noun``; half of them name the defect when it is given."""
    if defect is not None and chance(rng, 0.5):
        return _pick(rng, TEMPLATES).format(f"{noun} with {defect}")
    return _pick(rng, TEMPLATES).format(_pick(rng, ABNORMAL_STATES).format(noun))
