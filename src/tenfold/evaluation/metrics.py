"""Accuracy, calibration and confusion on a test split, with intervals.

Relies on scikit-learn for the confusion matrix and top-k accuracy, on torchmetrics for the expected calibration error,
and on SciPy for Wilson's intervals.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

#: Of the calibration error and of what is drawn of it.
BINS = 15
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Test images whose confidence lies between two bounds.

    Attributes:
        low: the lower bound, not in it.
        high: the upper one.
        count: of the images.
        confidence: their mean one; 0 where there is no image.
        accuracy: the share of them that is right; 0 where there is no image.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """What a classifier reaches on a test split.

    Attributes:
        top1: accuracy with its bootstrap interval.
        top5: share of images whose class is among the five most likely (all classes, if there are fewer).
        balanced: mean recall over the classes that the split holds.
        calibration_error: expected calibration error over 15 bins of equal width.
        recalls: class → share found, with Wilson's interval; None where the split lacks the class: it enters no mean.
        confusion: row: true class, column: prediction.
        reliability: accuracy by confidence, over the bins of the calibration error.
    """

    top1: Interval
    top5: float
    balanced: float
    calibration_error: float
    recalls: dict[str, Interval | None]
    confusion: list[list[int]]
    reliability: list[Bin]

    def as_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        return asdict(self)


def score(
    probabilities: Floats, labels: Ints, classes: list[str], bootstrap: int, confidence: float, seed: int
) -> Scores:
    """Score predictions.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,) class indexes.
        classes: names of the C classes.
        bootstrap: resamples.
        confidence: of the interval.
        seed: of the resampling.
    """
    count = len(classes)
    predictions = probabilities.argmax(1)
    matrix = confusion_matrix(labels, predictions, labels=range(count))
    totals = matrix.sum(1)
    recalls = {
        name: wilson_interval(int(matrix[i, i]), int(totals[i]), confidence) if totals[i] else None
        for i, name in enumerate(classes)
    }
    present = [recall.value for recall in recalls.values() if recall is not None]
    ece = multiclass_calibration_error(
        torch.from_numpy(probabilities.astype(np.float32)),
        torch.from_numpy(labels),
        num_classes=count,
        n_bins=BINS,
    )
    return Scores(
        top1=bootstrap_interval((predictions == labels).astype(np.float64), bootstrap, confidence, seed),
        top5=1.0 if count <= 5 else _top_five(probabilities, labels, count),
        balanced=float(np.mean(present)),
        calibration_error=float(ece),
        recalls=recalls,
        confusion=matrix.tolist(),
        reliability=reliability(probabilities.max(1), predictions == labels),
    )


def wilson_interval(hits: int, count: int, confidence: float) -> Interval:
    """Return the share of ``hits`` among ``count``, with Wilson's score interval."""
    found = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return Interval(hits / count, float(found.low), float(found.high))


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[Bin]:
    """Return accuracy by confidence, over bins of equal width.

    Args:
        confidence: (N,) probability of each prediction.
        right: (N,) whether it is right.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        own = place == number
        mean = (float(confidence[own].mean()), float(right[own].mean())) if own.any() else (0.0, 0.0)
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), int(own.sum()), *mean))
    return bins


def _top_five(probabilities: Floats, labels: Ints, count: int) -> float:
    return float(top_k_accuracy_score(labels, probabilities, k=5, labels=range(count)))


def bootstrap_interval(values: Floats, resamples: int, confidence: float, seed: int) -> Interval:
    """Return the mean of ``values`` with its percentile-bootstrap interval.

    For the paired difference of two classifiers, pass the difference of their hits image by image.
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    # a hundred resamples at a time: the counts of all would fill the memory on a large test split
    means = np.concatenate(
        [
            rng.multinomial(count, np.full(count, 1 / count), size=min(100, resamples - start)) @ values / count
            for start in range(0, resamples, 100)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))
