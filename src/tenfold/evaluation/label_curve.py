"""Accuracy over label budgets, with and without the unlabelled images, and the labels that these save."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Equal:
    """Labels with which labels alone reach an accuracy.

    Attributes:
        labels: how many.
        beyond: the curve never reaches it: more than these are needed.
        below: the curve is above it from the start: these are enough, and fewer may be.
    """

    labels: float
    beyond: bool = False
    below: bool = False


def equal_labels(curve: Mapping[float, float], accuracy: float) -> Equal:
    """Return the labels at which a curve of labels alone reaches ``accuracy``.

    The curve is read by a straight line between its points in the logarithm of the labels; where it falls, by its
    highest point so far.

    Args:
        curve: labels → accuracy, at least one point.
        accuracy: to be reached.
    """
    budgets = sorted(curve)
    best = list(itertools.accumulate((curve[budget] for budget in budgets), max))
    if accuracy <= best[0]:
        return Equal(budgets[0], below=accuracy < best[0])
    for few, many in itertools.pairwise(range(len(budgets))):
        if best[few] < accuracy <= best[many]:
            share = (accuracy - best[few]) / (best[many] - best[few])
            return Equal(budgets[few] * math.exp(share * math.log(budgets[many] / budgets[few])))
    return Equal(budgets[-1], beyond=True)
