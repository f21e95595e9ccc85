"""The one view of evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.augment.fused import FusedView
from tenfold.augment.resample import resize
from tenfold.config import EvalViewConfig
from tenfold.data.decode import decode


def evaluation_view(pixels: NDArray[np.uint8], config: EvalViewConfig, size: int) -> Tensor:
    """Return the central square of ``crop_proportion`` of the shorter side, resized without antialiasing.

    The square's side is rounded half to even, its offset is ((H - side) + 1) // 2, as in the official code.

    Args:
        pixels: height x width x 3, uint8.
        config: the crop's share and the interpolation.
        size: side of the view.

    Returns:
        (3, size, size), float32 in [0, 1].
    """
    height, width = pixels.shape[:2]
    side = max(1, round(config.crop_proportion * min(height, width)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    cut = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1).float() / 255
    return resize(cut, size, size, config.interpolation)


def evaluation_views(images: Sequence[bytes], config: EvalViewConfig, size: int, threads: int = 1) -> Tensor:
    """Return :func:`evaluation_view` of encoded images as (N, 3, size, size), to within float32's rounding.

    Raises:
        BadImageError: one of them cannot be decoded.
    """
    view = FusedView(None, config, size)
    with ThreadPoolExecutor(threads) as pool:
        pixels = list(pool.map(lambda data: np.ascontiguousarray(decode(data).pixels), images))
        addresses = np.array([each.ctypes.data for each in pixels], dtype=np.uint64)
        shapes = np.array([each.shape[:2] for each in pixels], dtype=np.int64).reshape(-1, 2)
        return view(addresses, shapes, None, pool, threads)
