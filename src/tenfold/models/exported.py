"""A classifier as a file that needs torch alone, and no code of tenfold (``torch.export``)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.config import Description
from tenfold.models.heads import Classifier

#: Beside a classifier's weights.
EXPORTED = "model.pt2"


class _Probabilities(nn.Module):
    """Views in, class probabilities out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return torch.softmax(self.model(images), dim=1)


def export(model: Classifier, description: Description, folder: Path) -> Path:
    """Write a classifier as ``model.pt2``: views (N, channels, side, side) in [0, 1] → probabilities (N, classes).

    N is free. The view, which makes an image of the file formats out there into such a tensor, is not part of it:
    ``model.json`` says what it is, and :class:`tenfold.predictor.Predictor` has both.

    torch.export.load may run code that somebody put into such a file, so nothing here ever loads one; its sha256 stands
    in ``model.json`` as ``exported``.

    Args:
        model: in evaluation mode, on the CPU.
        description: what it is.
        folder: to write into.
    """
    views = torch.zeros(2, description.channels, description.image_size, description.image_size)
    batch = {"images": {0: torch.export.Dim("images", min=1)}}
    program = torch.export.export(_Probabilities(model).eval(), (views,), dynamic_shapes=batch)
    torch.export.save(program, folder / EXPORTED)
    return folder / EXPORTED
