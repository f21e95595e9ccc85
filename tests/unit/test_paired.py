"""Comparing two classifiers on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm

from tenfold.evaluation.paired import compare

Bools = NDArray[np.bool_]


def hits(both: int, first: int, second: int, neither: int) -> tuple[Bools, Bools]:
    """Two classifiers that agree or not on so many images."""
    table = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    left, right = zip(*table, strict=True)
    return np.array(left), np.array(right)


def test_without_a_margin_it_is_mcnemar_s_exact_test() -> None:
    found = compare(*hits(60, 15, 5, 20))
    assert (found.wins, found.losses, found.count) == (15, 5, 100)
    assert found.gain == pytest.approx(0.1)
    assert found.p_value == pytest.approx(binom.sf(14, 20, 0.5))
    assert compare(*hits(90, 0, 0, 10)).p_value == 1.0, "nothing tells them apart"
    assert compare(*hits(90, 0, 3, 7)).p_value == 1.0


def test_with_a_margin_near_none_the_score_test_is_mcnemar_s_without_its_correction() -> None:
    assert compare(*hits(60, 25, 10, 5), 1e-9).p_value == pytest.approx(norm.sf(15 / 35**0.5), rel=1e-6)


def test_the_score_test_agrees_with_the_likelihood_it_comes_from() -> None:
    """The restricted share is where the likelihood of the three kinds of images peaks, found here by a fine search."""
    both, first, second, neither, margin = 50, 30, 12, 8, 0.05
    count = both + first + second + neither
    shares = np.linspace(1e-6, (1 - margin) / 2 - 1e-6, 400_001)
    rest = 1 - 2 * shares - margin
    best = shares[
        np.argmax(first * np.log(shares + margin) + second * np.log(shares) + (both + neither) * np.log(rest))
    ]
    z = (first - second - count * margin) / np.sqrt(count * (2 * best + margin * (1 - margin)))
    assert compare(*hits(both, first, second, neither), margin).p_value == pytest.approx(norm.sf(z), rel=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.02, -0.02])
def test_a_gain_that_is_just_the_margin_passes_no_more_often_than_is_said(margin: float) -> None:
    rng, share, rounds = np.random.default_rng(0), 0.12, 4000
    kinds = [0.7, share / 2 + margin / 2, share / 2 - margin / 2, 0.3 - share]
    passed = sum(compare(*hits(*rng.multinomial(500, kinds)), margin).p_value <= 0.05 for _ in range(rounds))
    assert passed / rounds < 0.06
    assert passed / rounds > 0.02, "it is not idle either"


def test_where_nothing_differs_a_margin_below_none_is_kept_by_many_images_and_not_by_few() -> None:
    assert compare(*hits(900, 0, 0, 100), -0.02).p_value < 0.001
    assert compare(*hits(9, 0, 0, 1), -0.02).p_value > 0.2
    assert compare(*hits(900, 0, 0, 100), 0.02).p_value > 0.99


@pytest.mark.parametrize(("count", "other", "margin"), [(0, 0, 0.0), (3, 2, 0.0), (3, 3, 1.0), (3, 3, -1.0)])
def test_what_cannot_be_compared_is_refused(count: int, other: int, margin: float) -> None:
    with pytest.raises(ValueError, match="the same images"):
        compare(np.ones(count, dtype=bool), np.ones(other, dtype=bool), margin)
