"""The one view of evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tenfold.augment.fused import FusedView, places_of
from tenfold.augment.resample import resize
from tenfold.config import EvalViewConfig, PixelsConfig
from tenfold.data.channels import Raw
from tenfold.data.decode import CHECKED, read_pixels


def evaluation_view(pixels: Raw, config: EvalViewConfig, size: int) -> Tensor:
    """Return the central square of ``crop_proportion`` of the shorter side, resized without antialiasing.

    The square's side is rounded half to even, its offset is ((H - side) + 1) // 2, as in the official code.

    Args:
        pixels: height x width x channels, of the type and the largest value that ``config.pixels`` says.
        config: the crop's share and the interpolation.
        size: side of the view.

    Returns:
        (channels, size, size), float32 in [0, 1].
    """
    height, width = pixels.shape[:2]
    side = max(1, round(config.crop_proportion * min(height, width)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return resize(floats(pixels[top : top + side, left : left + side], config.pixels), size, size, config.interpolation)


def floats(pixels: Raw, kind: PixelsConfig | None) -> Tensor:
    """Return pixels (H, W, channels) as (channels, H, W), float32, 1 for white."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    return planes / (kind.top if kind else 255)


def evaluation_views(
    images: Sequence[bytes], config: EvalViewConfig, size: int, threads: int = 1, max_pixels: int = CHECKED
) -> Tensor:
    """Return :func:`evaluation_view` of encoded images as (N, channels, size, size), to within float32's rounding.

    Raises:
        BadImageError: one of them cannot be decoded.
    """
    view = FusedView(None, config, size)
    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(lambda data: read_pixels(data, config.pixels, max_pixels), images))
        return view(*places_of(decoded), None, pool, threads)
