"""The health of pseudo-labels: whether self-training makes its teacher better or worse, told by the few labels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold.evaluation.probes import unit_length
from tenfold.ranks import from_first

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
#: A fall of the accuracy by so many standard errors is harm; by as many as the second, the best teacher is kept at the
#: end. The best of many is good by chance too, and the last is compared with it at every point, so these are not
#: the usual two and one, by which a teacher that only fluctuates would be ended often.
_HARM, _BETTER = 3.0, 2.0
#: Fewer images than this are no fall.
_LEAST = 5


def nearest(features: Floats, others: Floats, count: int) -> Numbers:
    """Return the rows (N, count) of ``others`` (M, d) that lie nearest to each of ``features`` (N, d), by cosine."""
    from sklearn.neighbors import NearestNeighbors  # which takes seconds to load

    found = NearestNeighbors(n_neighbors=min(count, len(others))).fit(unit_length(others))
    return np.asarray(found.kneighbors(unit_length(features), return_distance=False), dtype=np.int64)


class Health(nn.Module):
    r"""Measures the teacher at equal intervals by reverse validation, and holds a copy of the best one.

    A labelled image is classified by what the teacher guesses of its nearest *unlabelled* images, in the features of
    the pretrained encoder, which saw no label: the share that comes out right is ``neighbour_accuracy``. Its own label
    has no vote, so that a network that knows the labelled images by heart gains nothing by that; guesses that go wrong
    all over the unlabelled images lower it. Two teachers are compared on the same labelled images, by the mean of the
    differences and its standard error; a fall by three of these is harm, and training ends there. Where the last
    teacher is two below the best, the best is kept.

    After Zhong et al. 2010 (reverse cross-validation for adaptation). ``class_divergence`` is the Kullback-Leibler
    divergence :math:`\sum_c \bar q_c \log (\bar q_c / \pi_c)` of the mean guess from the expected class shares.
    """

    def __init__(
        self, model: nn.Module, look: Callable[[nn.Module], Floats], neighbours: Numbers, labels: Numbers,
        prior: Tensor, points: int,
    ) -> None:  # fmt: skip
        """Measure the teacher that self-training starts from.

        Args:
            model: that teacher.
            look: network → its probabilities (M, C) of the images that are neighbours.
            neighbours: (n, k) for each labelled image, rows of what ``look`` gives.
            labels: (n,) classes of the labelled images.
            prior: class shares (C,) that are expected of the unlabelled images.
            points: how many times to measure.
        """
        super().__init__()
        self._look, self._neighbours, self._labels, self._points = look, neighbours, labels, points
        self._prior = prior.double().numpy()
        self.best = copy.deepcopy(model).requires_grad_(False)
        for name, of in (("hits", torch.bool), ("best_hits", torch.bool)):
            self.register_buffer(name, torch.zeros(len(labels), dtype=of))
        self.register_buffer("best_step", torch.zeros((), dtype=torch.long))
        self.hits: Tensor
        self.best_hits: Tensor
        self.best_step: Tensor
        self.measure(model, 0)

    def due(self, step: int, steps: int) -> bool:
        """Tell whether the teacher is measured after ``step``."""
        return (step * self._points) // steps > ((step - 1) * self._points) // steps

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the figures of ``model`` as it is now, in evaluation mode; its mode is left as it was."""
        mode = model.training
        model.eval()
        guesses = self._look(model)
        model.train(mode)
        # one rank's counts for all, so that all keep the same network
        right = np.asarray(from_first(guesses[self._neighbours].mean(1).argmax(1) == self._labels))
        self.hits.copy_(torch.from_numpy(right))
        if self.hits.sum() >= self.best_hits.sum():
            self.best.load_state_dict(model.state_dict())
            self.best_hits.copy_(self.hits)
            self.best_step.fill_(step)
        shares = guesses.mean(0)
        divergence = float((shares * np.log(np.maximum(shares, 1e-12) / np.maximum(self._prior, 1e-6))).sum())
        return {"neighbour_accuracy": float(right.mean()), "class_divergence": divergence}

    def _fallen(self, errors: float) -> bool:
        fall = self.best_hits.double() - self.hits.double()
        error = float(fall.std(correction=0)) / len(fall) ** 0.5
        return bool(float(fall.sum()) >= _LEAST and float(fall.mean()) > errors * error)

    def harmed(self) -> bool:
        """Tell whether the last teacher that was measured is worse than the best by more than chance."""
        return self._fallen(_HARM)

    def chosen(self) -> nn.Module | None:
        """Return the best teacher; None where the last is as good."""
        return self.best if self._fallen(_BETTER) else None

    def verdict(self) -> str:
        """Return what is to be said of the training; empty where its last teacher is kept."""
        if self.chosen() is None:
            return ""
        step = int(self.best_step)
        kept = f"the teacher of step {step}" if step else "the fine-tuned teacher"
        best, last = float(self.best_hits.double().mean()), float(self.hits.double().mean())
        what = "self-training did harm and was ended" if self.harmed() else "self-training's last teacher is no better"
        return (
            f"{what}: of {len(self.hits)} labelled images {last:.1%} are as the guesses about their neighbours say, "
            f"and {best:.1%} were; {kept} is kept"
        )
