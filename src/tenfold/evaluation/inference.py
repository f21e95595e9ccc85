"""Features and class probabilities of a whole split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.augment.evaluation import evaluation_views
from tenfold.augment.spec import ViewSpec
from tenfold.config import Description, EvalViewConfig
from tenfold.data.reader import SplitReader
from tenfold.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What a classifier makes of images: features (N, d) and class probabilities (N, C)."""

    features: Floats
    probabilities: Floats


def evaluation_images(reader: SplitReader, spec: ViewSpec, numbers: Sequence[int] | None = None) -> Tensor:
    """Return the evaluation view (N, C, side, side) of the samples ``numbers``, or of all, as serving makes it."""
    wanted = range(len(reader)) if numbers is None else numbers
    images = [reader.image(number).tobytes() for number in wanted]
    return evaluation_views(images, spec.evaluation or EvalViewConfig(), spec.image_size, torch.get_num_threads())


def view_differences(description: Description, spec: ViewSpec) -> list[str]:
    """Return in what the view that a network was made for differs from another one: side, crop and so on."""
    made = {"image_size": description.image_size, **description.evaluation.model_dump()}
    shown = {"image_size": spec.image_size, **(spec.evaluation or EvalViewConfig()).model_dump()}
    return [f"{name} {made[name]} (here {shown[name]})" for name in made if made[name] != shown[name]]


def require_view(description: Description, spec: ViewSpec, what: str) -> None:
    """Refuse to show a network another view than the one that it was made for.

    Raises:
        DataError: side, crop or interpolation differ.
    """
    differing = view_differences(description, spec)
    if differing:
        raise DataError(f"the {what} was made for another view: {', '.join(differing)}; train it on this one")


def view_of(description: Description, reader: SplitReader, what: str) -> ViewSpec:
    """Return the view that a network was made for, for images of a split.

    Raises:
        DataError: the network was made for images of other channels or depth.
    """
    own, kind = reader.pixels, description.evaluation.pixels
    if own != (kind and kind.stored):
        told = ["RGB" if each is None else f"{each.channels} channels of {each.bits} bits" for each in (kind, own)]
        raise DataError(f"{what} was made for {told[0]}, and the data set's images are {told[1]}")
    return ViewSpec(backend="torchvision", image_size=description.image_size, evaluation=description.evaluation)


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
