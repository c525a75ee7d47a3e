"""What a camera does to a picture: light, focus, colour, noise, compression."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cascade.synthesis.fields import Image, Rng, chance, frame, log_uniform, noise, streaks, uniform


def photograph(rng: Rng, picture: Image, grey: bool) -> NDArray[np.uint8]:
    """The uint8 RGB photograph of a picture; a grey one has three equal channels. Geometry is untouched."""
    size = picture.shape[0]
    along, _ = frame(size, uniform(rng, 0, 2 * math.pi))
    light = 1 + uniform(rng, 0, 0.5) * along / size + uniform(rng, 0, 0.08) * noise(rng, size, size / 2)
    if chance(rng, 0.3):
        x, y = frame(size, 0.0)
        light = light * (1 - uniform(rng, 0.1, 0.6) * (x**2 + y**2) / size**2)
    if chance(rng, 0.2):
        light = light * (
            1 + uniform(rng, 0.02, 0.1) * streaks(rng, size, size * 2.0, size / 8, uniform(rng, 0, math.pi))
        )
    cast = 1 + rng.normal(0, 0.05, 3).astype(np.float32)
    exposed = picture * light[..., None].astype(np.float32) * cast * np.float32(log_uniform(rng, 0.65, 1.35))
    exposed = np.clip(exposed, 0, 1) ** np.float32(log_uniform(rng, 0.75, 1.35))
    if grey:
        exposed = np.repeat(exposed @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=2)
    if chance(rng, 0.6):
        exposed = cv2.GaussianBlur(exposed, (0, 0), uniform(rng, 0.3, 1.1) * size / 512)
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(log_uniform(rng, 0.002, 0.025))
    photo = np.clip((exposed + grain) * 255 + 0.5, 0, 255).astype(np.uint8)
    if chance(rng, 0.4):
        quality = int(rng.integers(45, 96))
        _, stream = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
        photo = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)
        if grey:
            photo = np.repeat(photo[..., 1:2], 3, axis=2)
    return np.asarray(photo, np.uint8)
