"""Which rung is shipped, and how it is calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold.evaluation.choice import Candidate, choose, divide, scaled, temperature
from tenfold.evaluation.paired import compare


def candidate(name: str, seconds: float, right: int, count: int, start: int = 0) -> Candidate:
    """A rung that has ``right`` of ``count`` images right, from the image ``start`` on."""
    hits = np.zeros(count, dtype=bool)
    hits[(start + np.arange(right)) % count] = True
    return Candidate(name, name, seconds, hits)


def test_the_halves_are_of_like_classes_and_the_same_in_every_order() -> None:
    keys = [f"image-{number}" for number in range(101)]
    labels = np.array([number % 3 for number in range(101)])
    choosing, measuring = divide(keys, labels, 0.5)
    assert sorted([*choosing, *measuring]) == list(range(101))
    for label in range(3):
        own = int((labels == label).sum())
        assert int((labels[choosing] == label).sum()) == own // 2
    order = np.random.default_rng(0).permutation(101)
    again, _ = divide([keys[number] for number in order], labels[order], 0.5)
    assert {keys[number] for number in choosing} == {keys[order[number]] for number in again}
    assert choosing.tolist() != list(range(0, 101, 2)), "the order of the names says nothing"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 25), (0.9, 90)])
def test_a_share_of_the_images_chooses(share: float, expected: int) -> None:
    choosing, measuring = divide([str(number) for number in range(100)], np.zeros(100, dtype=np.int64), share)
    assert (len(choosing), len(measuring)) == (expected, 100 - expected)


def test_the_cheapest_that_is_no_worse_is_shipped() -> None:
    rungs = [candidate("dear", 900, 1800, 2000), candidate("cheap", 60, 1798, 2000), candidate("bad", 1, 1000, 2000)]
    found = choose(rungs, 0.01, 0.95)
    assert (found.id, found.images_needed) == ("cheap", 0)
    assert "the cheap is the cheapest network that is within 1 point of the best, the dear (-0.1 points" in found.told


def test_a_dear_rung_that_is_clearly_better_is_shipped() -> None:
    found = choose([candidate("dear", 900, 1800, 2000), candidate("cheap", 60, 1600, 2000)], 0.01, 0.95)
    assert (found.id, found.images_needed) == ("dear", 0)
    assert "better by more than 1 point than all cheaper networks" in found.told


def test_the_best_that_is_the_cheapest_needs_no_comparison() -> None:
    found = choose([candidate("dear", 900, 15, 20), candidate("cheap", 60, 15, 20)], 0.01, 0.95)
    assert (found.id, found.images_needed) == ("cheap", 0)


def test_too_few_images_ship_the_best_estimate_and_say_how_many_more_would_tell() -> None:
    dear, cheap = candidate("dear", 900, 180, 200), candidate("cheap", 60, 179, 200, start=10)
    found = choose([dear, cheap], 0.02, 0.95)
    assert found.id == "dear"
    assert found.images_needed > 200
    assert "whether the cheap, which is cheaper, is within 2 points of the dear is open" in found.told
    # with that many more of the same kind it is told in four cases of five
    rng, told = np.random.default_rng(0), 0
    for _ in range(200):
        drawn = rng.integers(0, 200, 200 + found.images_needed)
        more = [Candidate(each.id, each.title, each.seconds, each.hits[drawn]) for each in (dear, cheap)]
        told += not choose(more, 0.02, 0.95).images_needed
    assert told / 200 == pytest.approx(0.8, abs=0.1)


def test_a_difference_that_is_just_the_tolerance_takes_more_images_than_anybody_has() -> None:
    found = choose([candidate("dear", 900, 180, 200), candidate("cheap", 60, 178, 200)], 0.01, 0.95)
    assert found.id == "dear"
    assert "is open: more than 100,000 would tell" in found.told


def test_a_cheap_rung_that_is_a_point_worse_than_allowed_is_seldom_shipped() -> None:
    rng = np.random.default_rng(0)
    shipped = 0
    for _ in range(300):
        dear = rng.random(1000) < 0.9
        cheap = np.where(dear, rng.random(1000) < 0.96, rng.random(1000) < 0.24)  # 88.8%, at the tolerance
        found = choose([Candidate("dear", "dear", 9, dear), Candidate("cheap", "cheap", 1, cheap)], 0.012, 0.95)
        shipped += found.id == "cheap" and compare(cheap, dear).gain < 0
    assert shipped <= 300 * 0.025 + 3 * (300 * 0.025 * 0.975) ** 0.5


def test_a_temperature_undoes_what_made_a_classifier_too_sure() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    calibrated = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in calibrated])
    for sharpened in (0.25, 1.0, 3.0):
        assert temperature(scaled(calibrated, sharpened), labels) == pytest.approx(1 / sharpened, rel=0.06)


def test_a_class_that_is_never_named_makes_nobody_unsure() -> None:
    rng = np.random.default_rng(0)
    calibrated = rng.dirichlet([2, 1, 1], size=3000)
    labels = np.array([rng.choice(3, p=row) for row in calibrated])
    without = np.concatenate([calibrated, np.zeros((3000, 1))], axis=1)
    labels[:100] = 3
    assert temperature(without, labels) == pytest.approx(1, rel=0.06)


def test_few_images_that_are_all_right_make_nobody_certain() -> None:
    probabilities = np.full((40, 4), 0.1)
    probabilities[:, 0] = 0.7
    found = scaled(probabilities, temperature(probabilities, np.zeros(40, dtype=np.int64)))
    assert found[0, 0] == pytest.approx(41 / 42, abs=1e-3)


def test_what_cannot_be_calibrated_stays_as_it_is() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert temperature(np.zeros((0, 3)), nothing) == 1.0
    assert temperature(np.ones((50, 1)), np.zeros(50, dtype=np.int64)) == 1.0
    few = np.full((29, 2), 0.5)
    assert temperature(few, np.zeros(29, dtype=np.int64)) == 1.0, "29 images say too little"
