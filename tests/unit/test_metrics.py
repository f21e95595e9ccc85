from __future__ import annotations

import json

import numpy as np
import pytest

from tenfold.evaluation.metrics import bootstrap_interval, reliability, score, wilson_interval

CLASSES = ["ant", "bee", "cat"]


def certain(predicted: list[int], count: int = 3) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.eye(count)[predicted]


def test_scores_of_a_hand_counted_split() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    scores = score(certain([0, 0, 1, 1, 1, 0]), truth, CLASSES, 200, 0.95, 0)
    assert scores.top1.value == pytest.approx(4 / 6)
    found = {name: recall.value for name, recall in scores.recalls.items() if recall is not None}
    assert found == {"ant": pytest.approx(2 / 3), "bee": 1.0, "cat": 0.0}
    assert scores.balanced == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.confusion == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert scores.calibration_error == pytest.approx(2 / 6), "certain, and wrong in two of six"


def test_a_class_that_the_split_lacks_is_none_and_enters_no_mean() -> None:
    scores = score(certain([0, 0, 1, 2]), np.array([0, 0, 1, 1]), CLASSES, 200, 0.95, 0)
    assert scores.recalls["cat"] is None
    assert scores.balanced == pytest.approx((1 + 0.5) / 2)
    assert json.loads(json.dumps(scores.as_dict(), allow_nan=False))["recalls"]["cat"] is None


def test_top5_counts_the_five_most_likely_of_many_classes() -> None:
    row = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    names = list("abcdefg")
    scores = score(np.tile(row, (4, 1)), np.array([0, 4, 5, 6]), names, 200, 0.95, 0)
    assert scores.top5 == 0.5
    assert score(certain([0, 1]), np.array([1, 0]), CLASSES, 200, 0.95, 0).top5 == 1.0


def test_calibration_of_honest_probabilities_is_near_0() -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(3), 20_000)
    truth = np.array([rng.choice(3, p=row) for row in rows[:4000]])
    assert score(rows[:4000], truth, CLASSES, 200, 0.95, 0).calibration_error < 0.03


def test_a_recall_s_interval_is_wilson_s() -> None:
    found = wilson_interval(8, 10, 0.95)
    z, share, count = 1.959964, 0.8, 10
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.8, middle - half, middle + half), abs=1e-5)
    assert wilson_interval(5, 5, 0.95).low < 0.6, "five of five are no certainty"


def test_reliability_gathers_to_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(3) / 2, 3000)
    truth = rng.integers(0, 3, 3000)
    scores = score(rows, truth, CLASSES, 200, 0.95, 0)
    bins = scores.reliability
    assert sum(each.count for each in bins) == 3000
    assert [(each.low, each.high) for each in bins][-1] == pytest.approx((14 / 15, 1))
    gathered = sum(each.count / 3000 * abs(each.confidence - each.accuracy) for each in bins)
    assert gathered == pytest.approx(scores.calibration_error, abs=1e-5)
    certain_ones = reliability(np.array([1.0, 1.0, 0.5]), np.array([True, False, True]))
    assert (certain_ones[-1].count, certain_ones[-1].accuracy) == (2, 0.5)


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    hits = (np.arange(1000) % 5 > 0).astype(np.float64)
    found = bootstrap_interval(hits, 4000, 0.95, 0)
    half = 1.96 * (0.8 * 0.2 / 1000) ** 0.5
    assert found.value == pytest.approx(0.8)
    assert found.low == pytest.approx(0.8 - half, abs=0.004)
    assert found.high == pytest.approx(0.8 + half, abs=0.004)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_interval((rng.random(150) < 0.7).astype(np.float64), 400, 0.9, seed) for seed in range(300)]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval in found])
    assert 0.84 <= covered <= 0.95


def test_a_higher_confidence_widens_the_interval() -> None:
    hits = (np.arange(200) % 3 > 0).astype(np.float64)
    narrow, wide = (bootstrap_interval(hits, 1000, confidence, 0) for confidence in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_equal_seeds_give_equal_intervals() -> None:
    hits = np.random.default_rng(0).integers(0, 2, 100).astype(np.float64)
    assert bootstrap_interval(hits, 500, 0.95, 7) == bootstrap_interval(hits, 500, 0.95, 7)
    assert bootstrap_interval(hits, 500, 0.95, 7) != bootstrap_interval(hits, 500, 0.95, 8)


def test_a_paired_difference_is_narrower_than_its_parts_where_two_classifiers_err_alike() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(400) < 0.7).astype(np.float64)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:12]] = 1
    difference = bootstrap_interval(second - first, 2000, 0.95, 0)
    assert difference.value == pytest.approx(0.03)
    assert difference.low > 0, "the pairing shows a gain that the two intervals alone would hide"
    assert bootstrap_interval(first, 2000, 0.95, 0).high > bootstrap_interval(second, 2000, 0.95, 0).low


def test_the_difference_of_equal_classifiers_is_exactly_0() -> None:
    found = bootstrap_interval(np.zeros(50), 500, 0.95, 0)
    assert (found.value, found.low, found.high) == (0, 0, 0)
