"""Watching an encoder while it is pretrained: how good its features are, told by the few labels alone."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.evaluation.inference import apply
from tenfold.evaluation.probes import leave_one_out_accuracy
from tenfold.models.saved import Pretrained

_NEIGHBOURS = 10


def alignment(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the mean squared distance of an image's two views, :math:`\mathrm{mean}_i \|a_i - b_i\|^2`.

    Args:
        a: projections (N, d) of length 1 of the first views.
        b: of the second views.

    Source: Wang and Isola 2020, section 4.1 (alpha = 2).
    """
    return ((a - b) ** 2).sum(1).mean()


def uniformity(z: Tensor) -> Tensor:
    r"""Return :math:`\log \mathrm{mean}_{i<j} e^{-2\|z_i - z_j\|^2}`: 0 for collapsed rows, lower for spread ones.

    A single row has no pairs: 0.

    Source: Wang and Isola 2020, section 4.1 (t = 2).
    """
    if len(z) < 2:
        return z.new_zeros(())
    return torch.pdist(z).pow(2).mul(-2).exp().mean().log()


def spread(z: Tensor) -> Tensor:
    r"""Return :math:`\sqrt{d}\,\mathrm{mean}_j\,\mathrm{std}_i(z_{ij})`: 1 for spread rows, 0 for equal ones.

    Args:
        z: projections (N, d) of length 1.

    Source: Chen and He 2021 (SimSiam), section 4.1.
    """
    return torch.std(z, 0, correction=0).mean().mul(z.shape[1] ** 0.5)


class Watch(nn.Module):
    """Measures the features at equal intervals, and with ``keep_best`` holds a copy of the best network.

    The rule for which network is kept: the last, unless an earlier point's accuracy lies above the last's by
    more than one standard error of a share, :math:`\\sqrt{p (1 - p) / n}` over the n labelled images; then the
    best point's. The accuracy is that of leave-one-out nearest neighbours on the labelled images, so no test
    image takes part.
    """

    def __init__(
        self, model: Pretrained, images: Tensor, labels: NDArray[np.int64], points: int, *, keep_best: bool
    ) -> None:
        """Set up.

        Args:
            model: the network that will be watched.
            images: evaluation views (n, 3, side, side) of the labelled images.
            labels: their classes (n,).
            points: how many times.
            keep_best: hold a copy of the best network.
        """
        super().__init__()
        self._images, self._labels, self._points = images, labels, points
        fewest = int(np.bincount(labels)[np.unique(labels)].min())
        self._neighbours = max(1, min(_NEIGHBOURS, fewest - 1))
        self.best = copy.deepcopy(model).requires_grad_(False) if keep_best else None
        self.register_buffer("best_accuracy", torch.tensor(-1.0))
        self.register_buffer("last_accuracy", torch.tensor(-1.0))
        self.best_accuracy: Tensor
        self.last_accuracy: Tensor

    def due(self, step: int, steps: int) -> bool:
        """Tell whether the network is measured after ``step``."""
        return (step * self._points) // steps > ((step - 1) * self._points) // steps

    def measure(self, model: Pretrained) -> float:
        """Return the kNN accuracy on the labelled images of ``model`` as it is now; its mode is left as it was."""
        mode = model.training
        model.eval()
        features = apply(model.encoder, self._images, next(model.parameters()).device)
        model.train(mode)
        accuracy = leave_one_out_accuracy(features, self._labels, self._neighbours)
        self.last_accuracy.fill_(accuracy)
        if accuracy >= self.best_accuracy:
            self.best_accuracy.fill_(accuracy)
            if self.best is not None:
                self.best.load_state_dict(model.state_dict())
        return accuracy

    def chosen(self) -> Pretrained | None:
        """Return the copy that the rule keeps; None where that is the last network."""
        last = float(self.last_accuracy)
        error = (last * (1 - last) / len(self._labels)) ** 0.5
        return self.best if self.best is not None and float(self.best_accuracy) > last + error else None
