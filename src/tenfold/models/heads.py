"""The projection head of SimCLRv2, and classifiers that keep the first of its layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.models.encoder import Encoder
from tenfold.models.norm import BatchNorm


class ProjectionHead(nn.Module):
    """Dense layers without bias, each with batch norm; ReLU after all but the last.

    Widths: ``inputs`` → ``width`` → … → ``width`` → ``features``. One layer is the papers' linear head, none
    leaves the encoder's output as it is. The last batch norm has a gain but no offset: its bias is fixed at 0.

    Source: SimCLR, section 4.2; SimCLRv2, section 2 (deeper heads); the official ``model.py``.
    """

    def __init__(self, inputs: int, layers: int = 3, features: int = 128, width: int | None = None) -> None:
        """Build the head; its hidden ``width`` is that of ``inputs`` unless given."""
        super().__init__()
        self.inputs = inputs
        widths = [inputs] + [width or inputs] * (layers - 1) + [features]
        self.layers = nn.ModuleList()
        for number in range(layers):
            dense = nn.Linear(widths[number], widths[number + 1], bias=False)
            nn.init.normal_(dense.weight, std=0.01)
            self.layers.append(nn.Sequential(dense, BatchNorm(widths[number + 1], offset=number < layers - 1)))

    def hidden(self, h: Tensor, layer: int) -> Tensor:
        """Return the output of the first ``layer`` layers (0: ``h`` itself), after their ReLUs."""
        for number in range(layer):
            h = self.layers[number](h)
            if number < len(self.layers) - 1:
                h = F.relu(h)
        return h

    def forward(self, h: Tensor) -> Tensor:
        """Return the projection z (N, features), not normalised."""
        return self.hidden(h, len(self.layers))

    def width_after(self, layer: int) -> int:
        """Return the width of :meth:`hidden`'s output."""
        if layer == 0:
            return self.inputs
        normed = self.layers[layer - 1].get_submodule("1")
        assert isinstance(normed, BatchNorm)
        return len(normed.weight)


class SimCLRModel(nn.Module):
    """Encoder f and projection head g: z = g(f(x))."""

    def __init__(self, encoder: Encoder, head: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Return the projections (N, features) of images (N, 3, H, W)."""
        z: Tensor = self.head(self.encoder(x))
        return z


class Classifier(nn.Module):
    """Encoder, the first ``layer`` layers of a projection head, and a linear layer that starts at zero.

    With ``frozen`` the linear layer alone is trained, on features in evaluation mode (linear evaluation). With
    ``feature_norm`` the linear layer sees features that are scaled to this length.
    """

    def __init__(
        self, encoder: Encoder, head: ProjectionHead | None, layer: int, classes: int, feature_norm: float | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.layer, self.frozen, self.feature_norm = encoder, layer, False, feature_norm
        self._linear_output = head is not None and layer == len(head.layers)
        self.head = head if layer else None
        width = head.width_after(layer) if head is not None and layer else encoder.features
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if self.head is not None:  # layers behind the one that is used would never get a gradient
            self.head.layers = self.head.layers[:layer]

    def freeze(self) -> None:
        """Train the linear layer alone from now on."""
        self.frozen = True
        self.requires_grad_(False)
        self.linear.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for part in (self.encoder, self.head):
                if part is not None:
                    part.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Return what the linear layer sees, (N, width)."""
        h: Tensor = self.encoder(x)
        if self.head is not None:
            for number, part in enumerate(self.head.layers, start=1):
                h = part(h) if self._linear_output and number == self.layer else F.relu(part(h))
        return h if self.feature_norm is None else self.feature_norm * F.normalize(h)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes)."""
        logits: Tensor = self.linear(self.features(x))
        return logits
