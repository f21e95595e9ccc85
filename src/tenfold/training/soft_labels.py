"""Making a teacher's soft labels better before a student learns them: over a graph, and balanced."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Floats = NDArray[np.float64]
_ROUNDS, _CLOSE = 400, 1e-6


def propagate(features: Floats, probabilities: Floats, neighbours: int, weight: float, power: float) -> Floats:
    r"""Spread soft labels over the k-nearest-neighbour graph of features (label spreading, Zhou et al. 2004).

    .. math:: F = (1 - \alpha)(I - \alpha S)^{-1} P, \qquad S = D^{-1/2} W D^{-1/2}

    where :math:`W_{ij} = \max(\cos(f_i, f_j), 0)^p` for neighbours in either direction; solved by iteration.

    Args:
        features: (N, d).
        probabilities: (N, C), P.
        neighbours: k.
        weight: alpha.
        power: p, which favours the closest neighbours.

    Returns:
        (N, C), rows that sum to 1.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count = len(unit)
    neighbours = min(neighbours, count - 1)
    distances, nearest = NearestNeighbors(n_neighbors=neighbours).fit(unit).kneighbors()
    cosines = np.maximum(1 - distances**2 / 2, 0) ** power
    rows = np.repeat(np.arange(count), neighbours)
    graph = sparse.csr_matrix((cosines.ravel(), (rows, nearest.ravel())), shape=(count, count))
    graph = graph.maximum(graph.T)
    scale = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12)))
    graph = (scale @ graph @ scale).tocsr()
    spread = probabilities
    for _ in range(_ROUNDS):
        before, spread = spread, weight * (graph @ spread) + (1 - weight) * probabilities
        if np.abs(spread - before).max() < _CLOSE:
            break
    spread = np.maximum(spread, 1e-12)
    return np.asarray(spread / spread.sum(1, keepdims=True), dtype=np.float64)


def balance(probabilities: Floats, prior: Floats, rounds: int = 30) -> Floats:
    """Scale classes until the mean soft label is ``prior`` (Sinkhorn's iteration); rows sum to 1."""
    balanced = np.maximum(probabilities, 1e-12)
    for _ in range(rounds):
        balanced = balanced * (prior / balanced.mean(0))
        balanced = balanced / balanced.sum(1, keepdims=True)
    return balanced
