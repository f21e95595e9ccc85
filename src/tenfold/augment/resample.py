"""Resizing as TensorFlow 2 does it: half-pixel centres, no antialiasing, Keys' cubic kernel with a = -1/2."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tenfold.config.views import Interpolation


@lru_cache(maxsize=1024)
def weights(source: int, target: int, kind: Interpolation) -> Tensor:
    r"""Return the matrix (target, source) that resamples a row of ``source`` pixels.

    Output i looks at the input position :math:`x = (i + 1/2) s/t - 1/2` through the kernel

    .. math:: k(d) = 1 - 5/2 d^2 + 3/2 d^3 \ (d < 1), \quad 2 - 4 d + 5/2 d^2 - 1/2 d^3 \ (1 \le d < 2)

    or :math:`1 - d`; taps that fall outside are dropped and the rest is scaled to sum 1.
    """
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    d = (centres[:, None] - torch.arange(source, dtype=torch.float64)).abs()
    if kind == "cubic":
        near = 1 - 2.5 * d**2 + 1.5 * d**3
        far = 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3
        taps = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    else:
        taps = (1 - d).clamp_min(0)
    return (taps / taps.sum(1, keepdim=True)).float()


def resize(image: Tensor, height: int, width: int, kind: Interpolation) -> Tensor:
    """Return a float image (..., H, W) as (..., height, width), clipped to [0, 1]."""
    rows, columns = weights(image.shape[-2], height, kind), weights(image.shape[-1], width, kind)
    return (rows @ image @ columns.T).clamp_(0, 1)
