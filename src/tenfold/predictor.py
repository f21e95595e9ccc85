"""A trained student as a function from image bytes to classes, as serving and ``tenfold predict`` use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tenfold.augment.evaluation import evaluation_views
from tenfold.models.saved import load_classifier

#: Of an image that comes from outside, by its header.
_MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Prediction:
    """The most likely class, its probability, and the probability of every class."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """A classifier with its own decoding and evaluation view."""

    def __init__(self, folder: Path) -> None:
        """Load the classifier in ``folder``.

        Raises:
            DataError: there is none, or it is damaged.
        """
        self._model, self.description = load_classifier(folder)

    @torch.no_grad()
    def __call__(self, images: Sequence[bytes]) -> list[Prediction]:
        """Classify encoded images.

        Raises:
            BadImageError: one of them cannot be decoded.
        """
        if not images:
            return []
        side, view = self.description.image_size, self.description.evaluation
        batch = evaluation_views(images, view, side, torch.get_num_threads(), _MAX_PIXELS)
        rows = torch.softmax(self._model(batch), dim=1).tolist()
        named = [dict(zip(self.description.classes, row, strict=True)) for row in rows]
        return [Prediction(best := max(row, key=row.__getitem__), row[best], row) for row in named]
