"""Comparing two classifiers image by image, on the same test images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """What two classifiers come to on the same images.

    Attributes:
        wins: images that the first alone has right.
        losses: images that the second alone has right.
        count: images.
        p_value: how often a first classifier whose true gain is no more than the margin would look as good or better.
    """

    wins: int
    losses: int
    count: int
    p_value: float

    @property
    def gain(self) -> float:
        """The first one's accuracy less the second one's."""
        return (self.wins - self.losses) / self.count


def compare(first: Bools, second: Bools, margin: float = 0.0) -> Comparison:
    r"""Test whether a classifier's accuracy exceeds another's by more than ``margin``.

    Only the images that one of them alone has right tell the two apart. With no margin it is McNemar's exact test: of
    b + c such images, an equally good first one has b or more with the binomial probability of a fair coin. With a
    margin :math:`\delta` it is Tango's score test,

    .. math:: z = \frac{b - c - n\delta}{\sqrt{n\,(2 \tilde q + \delta (1 - \delta))}}

    with :math:`\tilde q` the second one's share of images that it alone has right, by the likelihood of a gain of
    exactly :math:`\delta`; it is McNemar's again where :math:`\delta` is 0.

    Args:
        first: (n,) whether the first one is right, image by image.
        second: the same of the second one.
        margin: between -1 and 1.

    Raises:
        ValueError: there is no image, their numbers differ, or the margin is out of range.

    Source: McNemar 1947; Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", section 3.
    """
    if len(first) != len(second) or not len(first) or not -1 < margin < 1:
        raise ValueError("a comparison needs the same images, at least one, and a margin between -1 and 1")
    wins, losses, count = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    if margin == 0:
        if not wins:
            return Comparison(wins, losses, count, 1.0)
        return Comparison(wins, losses, count, float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue))
    a, b, c = 2 * count, (2 * count - wins + losses) * margin - wins - losses, -losses * margin * (1 - margin)
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    spread = math.sqrt(max(0.0, count * (2 * share + margin * (1 - margin))))
    distance = wins - losses - count * margin
    if not spread:  # all of them right, or all wrong, and the margin leaves no room
        return Comparison(wins, losses, count, 0.0 if distance > 0 else 1.0)
    return Comparison(wins, losses, count, float(norm.sf(distance / spread)))
