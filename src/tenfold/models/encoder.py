"""What heads and stages ask of an encoder."""

from __future__ import annotations

from torch import Tensor, nn


class Encoder(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to features (N, ``features``)."""

    features: int

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        raise AssertionError("an encoder says how it computes")
