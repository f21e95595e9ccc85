"""Which rung of the ladder is worth shipping: the cheapest that is no worse than the best by more than a tolerance.

Half of the test images choose and calibrate, the other half gives the number that is reported: who picks the best of
several on some images flatters it on those images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm

from tenfold.evaluation.paired import compare

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
#: Bounds of a temperature, and images with which one is looked for.
_COLDEST, _HOTTEST, _CALIBRATING = 0.05, 20.0, 30
#: Least probability that is told from 0.
_LEAST = 1e-30
#: Standard deviations by which a test's mean must exceed its critical value to be significant in four of five cases.
_POWER = float(norm.isf(0.2))
#: More images than this are not counted.
_MANY = 100_000


def divide(keys: Sequence[str], labels: Ints, share: float) -> tuple[Ints, Ints]:
    """Divide test images into those that choose and those that measure.

    In each class the images stand in the order of their keys' sha256, and every so many-th one chooses: the same images
    in every run, both parts of like classes, and no seed to try again with.

    Args:
        keys: name of each image.
        labels: class of each image.
        share: of the images that choose, below 1.

    Returns:
        Their numbers, and the others'; each in order.
    """
    ranks = np.empty(len(keys), dtype=np.int64)
    hashes = np.array([hashlib.sha256(key.encode()).hexdigest() for key in keys], dtype=object)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        ranks[own[np.argsort(hashes[own], kind="stable")]] = np.arange(len(own))
    # rank r chooses where the count of choosing ones, floor(share * r), rises behind it
    chooses = np.floor(share * (ranks + 1)) > np.floor(share * ranks)
    return np.flatnonzero(chooses), np.flatnonzero(~chooses)


@dataclass(frozen=True)
class Candidate:
    """A rung that can be shipped.

    Attributes:
        id: of the rung.
        title: of the rung.
        seconds: of everything that it needs.
        hits: whether it is right, by image that chooses.
    """

    id: str
    title: str
    seconds: float
    hits: Bools


@dataclass(frozen=True)
class Choice:
    """The rung to ship, why, and how many more images would have to choose for a clear answer (0: it is clear)."""

    id: str
    told: str
    images_needed: int = 0


def choose(candidates: Sequence[Candidate], tolerance: float, confidence: float) -> Choice:
    r"""Return the cheapest rung that is no worse than the best by more than ``tolerance``.

    A cheaper rung is shipped where the lower bound of its accuracy less the best one's lies above
    :math:`-\delta`: Tango's score test of the paired hits (:func:`tenfold.evaluation.paired.compare`) at
    (1 − confidence) / 2. Where that cannot be told, nor that it is worse by more, the best estimate is shipped, and the
    images that would decide are told: the test's z grows with the root of their number. They are as many as would tell
    in four cases of five if the true accuracies were those that were seen.

    Args:
        candidates: with as many hits each, at least one.
        tolerance: :math:`\delta`, a share of the images.
        confidence: of the interval whose bound it is.
    """
    ordered = sorted(candidates, key=lambda each: each.seconds)
    best = max(ordered, key=lambda each: int(each.hits.sum()))  # the cheapest of several
    level, count = (1 - confidence) / 2, len(best.hits)
    asked = float(norm.isf(level))
    open_: list[tuple[Candidate, int]] = []
    chosen = best
    for each in ordered[: ordered.index(best)]:
        found = compare(each.hits, best.hits, -tolerance)
        if found.p_value <= level:
            chosen = each
            break
        if compare(best.hits, each.hits, tolerance).p_value > level:
            distance = abs(float(norm.isf(min(max(found.p_value, 1e-300), 1 - 1e-16))))
            more = count * (((asked + _POWER) / max(distance, 1e-6)) ** 2 - 1)
            open_.append((each, min(max(1, math.ceil(more)), _MANY)))
    points = f"{100 * tolerance:g} point{'' if tolerance == 0.01 else 's'}"
    if chosen is not best:
        gain = compare(chosen.hits, best.hits).gain
        told = (
            f"the {chosen.title} is the cheapest network that is within {points} of the best, the {best.title} "
            f"({100 * gain:+.1f} points on {count:,} test images that choose)"
        )
    elif open_:
        told = f"the {best.title} has the best estimate of all networks on the {count:,} test images that choose"
    elif best is ordered[0]:
        told = f"the {best.title} is the best network on the {count:,} test images that choose, and the cheapest"
    else:
        told = f"the {best.title} is better by more than {points} than all cheaper networks"
    if not open_:
        return Choice(chosen.id, told)
    each, needed = min(open_, key=lambda pair: pair[1])
    some = f"more than {_MANY:,}" if needed == _MANY else f"some {_rounded(needed):,} more that choose"
    told += (
        f"; whether the {each.title}, which is cheaper, is within {points} of the {best.title} is open: {some} would "
        "tell, with four chances in five"
    )
    return Choice(chosen.id, told, needed)


def _rounded(count: int) -> int:
    """Return a count with two digits that say something."""
    return int(float(f"{count:.1e}")) if count > 99 else count


def temperature(probabilities: Floats, labels: Ints) -> float:
    r"""Return the temperature T that calibrates a classifier: its logits are to be divided by it.

    It is that of the least cross-entropy of softmax(log p / T) on images that trained nothing. As in Platt's scaling,
    the target of the right class is (n + 1) / (n + 2) of n images rather than 1, the rest is spread evenly: else a
    classifier that has all of a few images right would be made certain of everything. Fewer than 30 images calibrate
    nothing: the temperature is 1. Images of a class that the classifier never names, since no label showed it, are left
    out: no temperature mends them.

    Args:
        probabilities: (n, C) of the classifier.
        labels: (n,) of the right classes.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 4.2; Platt 1999.
    """
    named = probabilities[np.arange(len(labels)), labels] > 0
    probabilities, labels = probabilities[named], labels[named]
    count, classes = probabilities.shape
    if count < _CALIBRATING or classes < 2:
        return 1.0
    logits = np.log(np.maximum(probabilities, _LEAST))
    rest = 1 / (count + 2)
    targets = np.full((count, classes), rest / (classes - 1))
    targets[np.arange(count), labels] = 1 - rest

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / math.exp(log_temperature), axis=1)).sum(1).mean())

    found = minimize_scalar(loss, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded")
    return math.exp(float(found.x))


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """Return the probabilities of a classifier whose logits are divided by ``temperature``."""
    return np.asarray(np.exp(log_softmax(np.log(np.maximum(probabilities, _LEAST)) / temperature, axis=1)))
