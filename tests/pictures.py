"""Small pictures to shard."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(seed: int) -> bytes:
    """Return a PNG of 6 x 7 random pixels."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
