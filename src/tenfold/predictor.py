"""A trained student as a function from image bytes to classes, as serving and ``tenfold predict`` use it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tenfold.augment.evaluation import evaluation_views
from tenfold.config import Description
from tenfold.data.channels import encode_npy
from tenfold.data.decode import encode_png
from tenfold.errors import DataError
from tenfold.evaluation.inference import Seen
from tenfold.models.saved import load_classifier

#: Of an image that comes from outside, by its header.
MAX_PIXELS = 64_000_000
_BATCH = 16
#: Pixels a side and channel of the probe, and how far one may be off: rounding differs between processors.
_PROBED, _TOLERANCE = 4, 1e-3


def probe(description: Description) -> list[float]:
    """Return pixels of the view that a network is shown of a fixed picture: what its preprocessing is, in numbers.

    The picture is oblong and of fine stripes, so that another crop, interpolation, scale or order of channels gives
    other pixels.

    Args:
        description: of the network; of its view.

    Returns:
        4 x 4 pixels of each channel, spread over the view.
    """
    kind, side = description.evaluation.pixels, description.image_size
    rows, columns = np.mgrid[0:53, 0:71]
    planes = [128 + 90 * np.sin(rows * (0.31 + 0.07 * n)) * np.cos(columns * (0.23 + 0.05 * n)) + 9 * n % 30
              for n in range(description.channels)]  # fmt: skip
    pixels = np.stack(planes, axis=-1).clip(0, 255)
    if kind is None:
        data = encode_png(pixels.round().astype(np.uint8))
    else:
        data = encode_npy((pixels / 255 * kind.top).round().astype(f"uint{kind.bits}"))
    view = evaluation_views([data], description.evaluation, side)[0]
    places = (torch.arange(_PROBED) + 0.5) * side / _PROBED
    return [float(value) for value in view[:, places.long()][:, :, places.long()].flatten()]


@dataclass(frozen=True)
class Prediction:
    """The most likely class, its probability, and the probability of every class."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """A classifier with its own decoding and evaluation view."""

    def __init__(self, folder: Path, max_pixels: int = MAX_PIXELS) -> None:
        """Load the classifier in ``folder``.

        Args:
            folder: with its weights and its description.
            max_pixels: images that are larger by their header are refused; ``data.decode.CHECKED`` where the images
                are a data set's.

        Raises:
            DataError: there is none, it is damaged, or images are not made into views here as they were where it was
                measured.
        """
        self._model, self.description = load_classifier(folder)
        self._max_pixels = max_pixels
        known = self.description.probe
        if known is not None and not _agree(known, probe(self.description)):
            raise DataError(
                f"the classifier in {folder} was measured on another view of its images than this version of tenfold "
                "makes; use the version that made it, or train it again"
            )

    @torch.no_grad()
    def __call__(self, images: Sequence[bytes]) -> list[Prediction]:
        """Classify encoded images.

        Raises:
            BadImageError: one of them cannot be decoded.
        """
        if not images:
            return []
        rows = torch.softmax(self._model(self._views(images)), dim=1).tolist()
        named = [dict(zip(self.description.classes, row, strict=True)) for row in rows]
        return [Prediction(best := max(row, key=row.__getitem__), row[best], row) for row in named]

    @torch.no_grad()
    def look(self, images: Iterable[bytes]) -> Seen:
        """Return the features and class probabilities of encoded images; no more than 16 are in memory.

        Raises:
            BadImageError: one of them cannot be decoded.
        """
        features = [torch.zeros(0, self._model.linear.in_features)]
        waiting = iter(images)
        while batch := list(itertools.islice(waiting, _BATCH)):
            features.append(self._model.features(self._views(batch)))
        found = torch.cat(features)
        return Seen(found.double().numpy(), torch.softmax(self._model.linear(found), dim=1).double().numpy())

    def _views(self, images: Sequence[bytes]) -> torch.Tensor:
        side, view = self.description.image_size, self.description.evaluation
        return evaluation_views(images, view, side, torch.get_num_threads(), self._max_pixels)


def _agree(known: list[float], found: list[float]) -> bool:
    return len(known) == len(found) and bool(np.allclose(known, found, rtol=0, atol=_TOLERANCE))
