"""Whether mirroring keeps an image's class, as far as a few labelled images can tell.

A mirrored 2 is no 2 any more, and a mirrored photograph of a cat is still one. Each labelled image is classified by the
nearest of the others in pixels, once as it is and once mirrored: where the mirrored ones are recognised clearly less
often, mirroring changes what the class hangs on. (Shifts and rotations cannot be judged so: pixels do not know them
again.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

#: Pixels a side of the images that are compared.
_SIDE = 32
#: A transformation is suspected where chance alone would give as many losses less often than this,
_CHANCE = 0.01
#: and where at least this share of the images is lost on balance.
_SHARE = 0.1


@dataclass(frozen=True)
class Recognised:
    """How many of the images have a nearest neighbour of their own class.

    Attributes:
        images: how many were tried.
        before: recognised as they are.
        after: recognised when transformed.
        chance: probability of at least as many losses if the transformation changed nothing (sign test, one-sided).
        lost: numbers of those that were recognised before and not after.
        nearest: (images,) which image is nearest to each transformed one.
    """

    images: int
    before: int
    after: int
    chance: float
    lost: list[int]
    nearest: NDArray[np.int64]

    @property
    def suspect(self) -> bool:
        """Whether the transformation seems to change classes."""
        return self.chance < _CHANCE and self.before - self.after >= _SHARE * self.images


def recognised(images: Tensor, transformed: Tensor, labels: NDArray[np.int64]) -> Recognised:
    """Compare ``images`` (N, 3, side, side) with themselves ``transformed``, without each one's own original.

    Args:
        images: as evaluation sees them.
        transformed: the same ones transformed, in the same order.
        labels: (N,) classes.
    """
    plain, turned = _flat(images), _flat(transformed)
    own = _nearest(plain, plain)
    other = _nearest(turned, plain)
    before, after = labels[own] == labels, labels[other] == labels
    lost, won = before & ~after, after & ~before
    changed = int(lost.sum() + won.sum())
    chance = binomtest(int(lost.sum()), changed, alternative="greater").pvalue if changed else 1.0
    return Recognised(
        len(labels), int(before.sum()), int(after.sum()), float(chance), np.flatnonzero(lost).tolist(), other
    )


def _flat(images: Tensor) -> Tensor:
    if images.shape[-1] > _SIDE:
        images = F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True)
    return images.flatten(1)


def _nearest(queries: Tensor, among: Tensor) -> NDArray[np.int64]:
    distances = torch.cdist(queries, among)
    distances.fill_diagonal_(torch.inf)
    return np.asarray(distances.argmin(1).numpy())
