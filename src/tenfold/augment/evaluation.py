"""The one view of evaluation and serving."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.augment.resample import resize
from tenfold.config import EvalViewConfig


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
