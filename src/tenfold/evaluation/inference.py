"""Features and class probabilities of a whole split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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


@torch.no_grad()
def infer(
    functions: Mapping[str, Callable[[Tensor], Tensor]], reader: SplitReader, spec: ViewSpec, numbers: Sequence[int],
    device: torch.device, batch_size: int = 512,
) -> dict[str, Floats]:  # fmt: skip
    """Apply every function to the evaluation views of the samples ``numbers``; no more than a batch is in memory."""
    rows: dict[str, list[Tensor]] = {name: [] for name in functions}
    for start in range(0, len(numbers), batch_size):
        images = evaluation_images(reader, spec, numbers[start : start + batch_size])
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        for name, function in functions.items():
            rows[name].append(function(images).double().cpu())
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}


def probabilities(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return images → softmax of the model's logits."""
    return lambda images: torch.softmax(model(images), dim=1)
