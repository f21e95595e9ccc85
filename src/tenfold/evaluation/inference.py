"""Features and class probabilities of a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.augment.evaluation import evaluation_view
from tenfold.augment.spec import ViewSpec
from tenfold.config import EvalViewConfig
from tenfold.data.decode import decode
from tenfold.data.reader import SplitReader

Floats = NDArray[np.float64]


def evaluation_images(reader: SplitReader, spec: ViewSpec, numbers: Sequence[int] | None = None) -> Tensor:
    """Return the evaluation view (N, 3, side, side) of the samples ``numbers``, or of all, as serving makes it."""
    config = spec.evaluation or EvalViewConfig()
    return torch.stack(
        [
            evaluation_view(decode(reader.image(number).tobytes()).pixels, config, spec.image_size)
            for number in (range(len(reader)) if numbers is None else numbers)
        ]
    )


@torch.no_grad()
def apply(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device, batch_size: int = 512) -> Floats:
    """Apply ``function`` to ``images`` batch by batch and return its rows as one float64 array."""
    rows = [
        function(part.to(device).contiguous(memory_format=torch.channels_last)).double().cpu()
        for part in torch.split(images, batch_size)
    ]
    return torch.cat(rows).numpy()


def probabilities(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return images → softmax of the model's logits."""
    return lambda images: torch.softmax(model(images), dim=1)
