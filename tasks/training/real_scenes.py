"""Generated scenes on real surfaces: many a picture itself is the object, and objects wear its texture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cascade.synthesis import objects
from cascade.synthesis.fields import Image, Rng, chance
from cascade.synthesis.layout import Builder, Layout
from cascade.synthesis.scene import Scene, generate_scene
from cascade.tasks.training.photographs import load_pictures, photographed

SHEETS, DRESSED = 0.45, 0.35
"""Share of the scenes that show a picture, and of the others whose object has the texture of one."""


def real_scene(
    seed: int, size: int, folder: Path | None, *, held_out: bool = False, defective: bool | None = None
) -> Scene:
    """A scene as of :func:`generate_scene`, whose damage is the same but whose surfaces are often real.

    Args:
        seed: of the scene; with the same seed an intact scene shows the same thing as a defective one.
        size: side in pixels.
        folder: more pictures than those that packages ship.
        held_out: with pictures that no training takes.
        defective: whether to damage the scene; drawn when None.
    """
    pictures = load_pictures(folder, held_out)
    pick = np.random.default_rng([seed, 99]).random()

    def surface(rng: Rng, size: int) -> Image:
        return photographed(rng, size, pictures)

    def changed(category: str, builder: Builder) -> Builder:
        if pick < SHEETS:
            return objects.sheet(surface)
        return _dressed(builder, surface(np.random.default_rng([seed, 98]), size)) if pick > 1 - DRESSED else builder

    return generate_scene(seed, size, defective=defective, changed=changed)


def _dressed(builder: Builder, texture: Image) -> Builder:
    """A builder whose object takes the light and dark of a texture."""

    def build(rng: Rng, size: int) -> Layout:
        layout = builder(rng, size)
        tone = np.clip(texture / (texture.mean(axis=(0, 1)) + np.float32(0.05)), 0.3, 1.8)
        tone = tone if chance(rng, 0.5) else tone.mean(axis=2, keepdims=True)
        image = np.where(layout.region[..., None], layout.image * tone, layout.image)
        return Layout(np.asarray(image, np.float32), layout.region, layout.parts, layout.behind)

    return build
