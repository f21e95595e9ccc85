"""Classifiers on fixed features: logistic regression and label spreading (scikit-learn), nearest neighbours."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

#: Share of a point's label that comes from its neighbours (alpha), chosen on digits splits kept for tuning.
_SPREAD = 0.8
#: Length that features are scaled to before a logistic regression.
FEATURE_NORM = 10.0
#: Logit of a class that no label shows.
_NEVER = -1e4
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def unit_length(features: Floats) -> Floats:
    """Return the rows scaled to length 1; zero rows stay zero."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))


def logistic_regression(features: Floats, labels: Ints, queries: Floats, classes: int, c: float) -> Floats:
    """Fit on the labelled features (scaled to length 10) and return the queries' class probabilities (Q, classes)."""
    return linear_probabilities(*linear_layer(features, labels, classes, c), queries)


def linear_probabilities(weight: Floats, bias: Floats, queries: Floats) -> Floats:
    """Return what a layer of :func:`linear_layer` says of the queries, (Q, classes)."""
    return np.asarray(softmax(FEATURE_NORM * unit_length(queries) @ weight.T + bias, axis=1))


def linear_layer(features: Floats, labels: Ints, classes: int, c: float) -> tuple[Floats, Floats]:
    """Fit a logistic regression on features that are scaled to length 10, with the inverse regularisation ``c``.

    Returns:
        Weights (classes, d) and offsets (classes,): the softmax of its outputs are the probabilities.
    """
    from sklearn.exceptions import ConvergenceWarning  # which takes seconds to load
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(FEATURE_NORM * unit_length(features), labels)
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, _NEVER)
    weight[model.classes_] = model.coef_ if len(model.classes_) > 2 else [0 * model.coef_[0], model.coef_[0]]
    bias[model.classes_] = model.intercept_ if len(model.classes_) > 2 else [0, model.intercept_[0]]
    return weight, bias


def label_spreading(
    features: Floats, labels: Ints, unlabelled: Floats, queries: Floats, classes: int, neighbours: int
) -> Floats:
    """Spread the few labels over the k-nearest-neighbour graph of all training features, scaled to length 1.

    The queries are no part of the graph: each takes the mean of its nearest neighbours' distributions.

    Returns:
        Class probabilities (Q, classes).
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.semi_supervised import LabelSpreading

    known = np.concatenate([labels, np.full(len(unlabelled), -1)])
    points = unit_length(np.concatenate([features, unlabelled]))
    neighbours = min(neighbours, len(points) - 1)
    model = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=_SPREAD, max_iter=500)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # no convergence, and points that no label reaches
        model.fit(points, known)
    spread = np.nan_to_num(model.label_distributions_)
    nearest = (
        NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(unit_length(queries), return_distance=False)
    )
    mean = spread[nearest].mean(1) + 1e-9
    return _spread_columns(mean / mean.sum(1, keepdims=True), model.classes_, classes)


def nearest_neighbours(features: Floats, labels: Ints, queries: Floats, classes: int, neighbours: int) -> Floats:
    """Vote of the labelled features with the largest cosines, each vote weighted by exp(cosine / 0.07).

    Returns:
        Class probabilities (Q, classes).

    Source: Wu et al. 2018 (instance discrimination), section 3.4, whose weighting later work kept.
    """
    return _vote(unit_length(queries) @ unit_length(features).T, labels, classes, neighbours)


def leave_one_out(features: Floats, labels: Ints, neighbours: int) -> Floats:
    """Return what the others say of each feature by :func:`nearest_neighbours`: probabilities (N, classes)."""
    unit = unit_length(features)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return _vote(cosines, labels, int(labels.max()) + 1, min(neighbours, len(labels) - 1))


def leave_one_out_accuracy(features: Floats, labels: Ints, neighbours: int) -> float:
    """Return the share of features whose class the others tell."""
    return float((leave_one_out(features, labels, neighbours).argmax(1) == labels).mean())


def _vote(cosines: Floats, labels: Ints, classes: int, neighbours: int) -> Floats:
    neighbours = min(neighbours, cosines.shape[1])
    nearest = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
    weights = np.exp((np.take_along_axis(cosines, nearest, 1) - 1) / 0.07)
    votes = np.zeros((len(cosines), classes))
    np.add.at(votes, (np.arange(len(cosines))[:, None], labels[nearest]), weights)
    return np.asarray(votes / votes.sum(1, keepdims=True))


def _spread_columns(probabilities: Floats, present: Ints, classes: int) -> Floats:
    full = np.zeros((len(probabilities), classes))
    full[:, present] = probabilities
    return full
