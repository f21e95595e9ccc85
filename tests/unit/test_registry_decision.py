from __future__ import annotations

import math

import pytest

from tenfold.registry import decide

NUMBERS_THAT_ARE_NONE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NUMBERS_THAT_ARE_NONE)
@pytest.mark.parametrize(("champion", "exists"), [(0.5, True), (None, True), (None, False)])
def test_a_student_without_a_finite_score_never_passes(value: float, champion: float | None, exists: bool) -> None:
    decision = decide(value, champion, -1.0, exists=exists)
    assert not decision.promote
    assert str(value) in decision.reasons[0]


@pytest.mark.parametrize("value", NUMBERS_THAT_ARE_NONE)
def test_a_champion_without_a_finite_score_is_not_replaced(value: float) -> None:
    assert not decide(0.9, value, 0.0, exists=True).promote


@pytest.mark.parametrize("min_gain", NUMBERS_THAT_ARE_NONE[:2])
def test_a_gate_that_is_no_number_lets_nobody_pass(min_gain: float) -> None:
    assert not decide(0.9, 0.5, min_gain, exists=True).promote


def test_the_first_student_becomes_champion() -> None:
    assert decide(0.1, None, 0.05, exists=False).promote


def test_a_better_student_passes_and_is_told_by_how_much() -> None:
    decision = decide(0.85, 0.8, 0.0, exists=True)
    assert decision.promote
    assert "85.00%" in decision.reasons[0]
    assert "80.00%" in decision.reasons[0]
    assert "+5.00%" in decision.reasons[0]


def test_an_equal_student_does_not_pass() -> None:
    assert not decide(0.8, 0.8, 0.0, exists=True).promote


def test_a_worse_student_does_not_pass() -> None:
    assert not decide(0.7, 0.8, 0.0, exists=True).promote


@pytest.mark.parametrize(("student", "passes"), [(0.53, True), (0.51, False), (0.515625, False)])
def test_the_gain_must_exceed_what_is_asked_for(student: float, passes: bool) -> None:
    assert decide(student, 0.5, 0.015625, exists=True).promote is passes


def test_a_negative_gain_lets_a_slightly_worse_student_pass() -> None:
    assert decide(0.79, 0.8, -0.02, exists=True).promote


def test_a_champion_measured_on_another_test_split_is_not_compared() -> None:
    decision = decide(0.99, None, 0.0, exists=True)
    assert not decision.promote
    assert "was never measured on these test images" in decision.reasons[0]
