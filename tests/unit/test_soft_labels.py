from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tenfold.training.soft_labels import balance, propagate

Floats = NDArray[np.float64]


def dense_closed_form(features: Floats, soft: Floats, k: int, alpha: float, power: float) -> Floats:
    """(1 - alpha)(I - alpha S)^-1 P with S = D^-1/2 W D^-1/2, from a full matrix of cosines."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    weights = np.zeros_like(cosines)
    for row, columns in enumerate(nearest):
        weights[row, columns] = np.maximum(cosines[row, columns], 0) ** power
    weights = np.maximum(weights, weights.T)
    scale = np.diag(weights.sum(1) ** -0.5)
    spread = (1 - alpha) * np.linalg.inv(np.eye(len(unit)) - alpha * scale @ weights @ scale) @ soft
    return spread / spread.sum(1, keepdims=True)


@pytest.mark.parametrize(("alpha", "power"), [(0.5, 1.0), (0.9, 3.0), (0.0, 2.0)])
def test_propagation_equals_the_dense_closed_form(alpha: float, power: float) -> None:
    rng = np.random.default_rng(0)
    features, soft = rng.normal(size=(40, 4)), rng.dirichlet(np.ones(3), 40)
    found = propagate(features, soft, 6, alpha, power)
    np.testing.assert_allclose(found, dense_closed_form(features, soft, 6, alpha, power), atol=1e-4)


def test_propagation_carries_a_label_to_the_images_that_look_alike() -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(2).repeat(30, axis=0) * 10
    features = centres + rng.normal(size=centres.shape)
    soft = np.full((60, 2), 0.5)
    soft[0], soft[30] = [1, 0], [0, 1]
    found = propagate(features, soft, 5, 0.95, 3.0).argmax(1)
    assert found.tolist() == [0] * 30 + [1] * 30


def test_propagation_with_more_neighbours_than_images_gives_distributions() -> None:
    found = propagate(np.eye(3) + 0.1, np.eye(3), 10, 0.5, 1.0)
    np.testing.assert_allclose(found.sum(1), 1)
    assert found.argmax(1).tolist() == [0, 1, 2]


def test_propagation_over_features_without_similarity_keeps_the_soft_labels() -> None:
    soft = np.array([[0.9, 0.1], [0.2, 0.8]])
    found = propagate(np.array([[1.0, 0.0], [-1.0, 0.0]]), soft, 1, 0.9, 3.0)
    np.testing.assert_allclose(found, soft, atol=1e-9)


def test_balancing_reaches_the_prior_and_keeps_distributions() -> None:
    soft = np.random.default_rng(0).dirichlet([8, 1, 1], 500)
    prior = np.array([0.2, 0.3, 0.5])
    assert np.abs(soft.mean(0) - prior).max() > 0.3
    balanced = balance(soft, prior)
    np.testing.assert_allclose(balanced.mean(0), prior, atol=1e-3)
    np.testing.assert_allclose(balanced.sum(1), 1)


def test_balancing_balanced_labels_changes_nothing() -> None:
    soft = np.array([[0.7, 0.3], [0.3, 0.7]])
    np.testing.assert_allclose(balance(soft, np.array([0.5, 0.5])), soft)


def test_balancing_certain_labels_stays_finite() -> None:
    balanced = balance(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0.5, 0.5]))
    assert np.isfinite(balanced).all()
