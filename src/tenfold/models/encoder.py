"""What heads, optimizers and stages ask of an encoder."""

from __future__ import annotations

from torch import Tensor, nn


class Encoder(nn.Module):
    """Images (N, C, H, W) in [0, 1] to features (N, ``features``).

    ``layers``: how many the network counts, from the input to the head above it, for learning rates by depth.
    """

    features: int
    layers: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        raise AssertionError("an encoder says how it computes")

    def layer_of(self, name: str) -> int:
        """Return the layer, 0 to ``layers - 1``, of the parameter of that name; the head has the last one."""
        return self.layers - 1

    def kept(self) -> set[str]:
        """Return the names of parameters that weight decay spares although they have several dimensions."""
        return set()
