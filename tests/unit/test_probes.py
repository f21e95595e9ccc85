from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tenfold.evaluation.probes import label_spreading, logistic_regression

Floats = NDArray[np.float64]
CENTRES = np.array([[8.0, 0.0], [0.0, 8.0], [-8.0, -8.0]])


def blobs(count: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    labels = np.arange(count) % 3
    return CENTRES[labels] + np.random.default_rng(seed).normal(size=(count, 2)), labels


def test_logistic_regression_finds_separate_classes_and_gives_distributions() -> None:
    (features, labels), (queries, truth) = blobs(6, 0), blobs(90, 1)
    found = logistic_regression(features, labels, queries, 3, 1.0)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.argmax(1) == truth).all()


@pytest.mark.parametrize("probe", ["logistic", "spreading"])
def test_a_probe_sees_directions_and_not_lengths(probe: str) -> None:
    (features, labels), (queries, _) = blobs(12, 0), blobs(30, 1)

    def predict(size: float) -> Floats:
        if probe == "logistic":
            return logistic_regression(features * size, labels, queries / size, 3, 1.0)
        return label_spreading(features * size, labels, queries[:9] / size, queries / size, 3, 4)

    np.testing.assert_allclose(predict(1e3), predict(1.0), atol=1e-6)


def test_a_smaller_c_regularises_more() -> None:
    (features, labels), (queries, _) = blobs(12, 0), blobs(30, 1)
    strong, weak = (logistic_regression(features, labels, queries, 3, c).max(1).mean() for c in (0.01, 10.0))
    assert strong < weak


def test_spreading_labels_two_moons_that_one_label_each_cannot_separate_linearly() -> None:
    rng = np.random.default_rng(0)
    angle = np.linspace(0, np.pi, 150)
    far = np.full(150, 4.0)  # a plane before the origin, so that the probes' unit length keeps the moons' shape
    upper = np.stack([np.cos(angle), np.sin(angle), far], 1) + rng.normal(scale=0.02, size=(150, 3))
    lower = np.stack([1 - np.cos(angle), 0.3 - np.sin(angle), far], 1) + rng.normal(scale=0.02, size=(150, 3))
    known, labels = np.array([upper[75], lower[75]]), np.array([0, 1])
    train, queries = np.concatenate([upper[::2], lower[::2]]), np.concatenate([upper[1::2], lower[1::2]])
    truth = np.repeat([0, 1], 75)
    spread = label_spreading(known, labels, train, queries, 2, 6)
    np.testing.assert_allclose(spread.sum(1), 1)
    assert (spread.argmax(1) == truth).mean() > 0.95
    linear = logistic_regression(known, labels, queries, 2, 1.0)
    assert (linear.argmax(1) == truth).mean() < 0.9


@pytest.mark.parametrize("probe", ["logistic", "spreading"])
def test_a_class_without_a_label_gets_a_column_of_zeros(probe: str) -> None:
    features, labels = blobs(12, 0)
    queries, _ = blobs(9, 1)
    features, labels = features[labels != 1], labels[labels != 1]
    if probe == "logistic":
        found = logistic_regression(features, labels, queries, 4, 1.0)
    else:
        found = label_spreading(features, labels, queries + 0.1, queries, 4, 3)
    assert found.shape == (9, 4)
    assert found[:, [1, 3]].max() == 0
    np.testing.assert_allclose(found.sum(1), 1)


def test_a_query_that_no_label_reaches_gets_a_finite_distribution() -> None:
    features, labels = np.array([[1.0, 0.0], [1.0, 0.1]]), np.array([0, 1])
    island = np.array([[-1.0, 0.0], [-1.0, 0.1], [-1.0, 0.2]])
    found = label_spreading(features, labels, island, island - 0.01, 2, 1)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1)


def test_spreading_with_more_neighbours_than_points_works() -> None:
    features, labels = blobs(3, 0)
    assert label_spreading(features, labels, features[:0], features, 3, 50).shape == (3, 3)
