"""The gate: what passes it, what does not, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import norm

from tenfold.config import PromoteConfig
from tenfold.errors import StorageError
from tenfold.evaluation.measured import Measured, parse_measured
from tenfold.registry import Decision, decide

GATE = PromoteConfig()


def measured(right: int, images: int = 200, **more: Any) -> Measured:
    """A student with the first ``right`` images right."""
    truth = [number % 2 for number in range(images)]
    predicted = [label if number < right else 1 - label for number, label in enumerate(truth)]
    values: dict[str, Any] = {"test_split": "s" * 64, "view": "v" * 64, "classes": ["class 0", "class 1"]}
    values["truth"] = truth
    values["predicted"] = predicted
    return Measured(**{**values, **more})


def told(decision: Decision) -> str:
    return "\n".join(decision.reasons)


def test_a_student_that_was_measured_on_nothing_never_passes() -> None:
    nothing = measured(0, images=0)
    assert not decide(nothing, None, GATE, exists=False).promote
    assert not decide(nothing, measured(100), GATE, exists=True).promote
    assert not decide(measured(100), nothing, GATE, exists=True).promote


def test_a_decision_about_nothing_promotes_nobody() -> None:
    assert not Decision([]).promote


def test_the_first_student_becomes_champion_if_it_keeps_the_bounds() -> None:
    assert decide(measured(20), None, GATE, exists=False).promote
    bounded = PromoteConfig(max_latency_ms=5)
    slow = decide(measured(20, latency_ms=7.0), None, bounded, exists=False)
    assert not slow.promote
    assert slow.reasons[0] == "latency 7.0 ms, over 5 ms"


def test_a_better_student_passes_and_is_told_by_how_much() -> None:
    decision = decide(measured(180), measured(160), GATE, exists=True)
    assert decision.promote
    assert (
        "top-1 90.00% against the champion's 80.00% on the same 200 test images: +10.00% (20 better, 0 worse)"
        in told(decision)
    )


@pytest.mark.parametrize("right", [120, 160])
def test_an_equal_or_worse_student_does_not_pass(right: int) -> None:
    decision = decide(measured(right), measured(160), GATE, exists=True)
    assert not decision.promote
    assert "not more than the 0.00% that is asked for" in decision.reasons[0]


def test_a_gain_that_may_be_chance_does_not_pass() -> None:
    decision = decide(measured(163), measured(160), GATE, exists=True)
    assert not decision.promote
    assert "which may be chance: p = 0.12, and at most 0.05 is asked for" in decision.reasons[0]


@pytest.mark.parametrize(("right", "passes"), [(185, True), (174, False), (168, False)])
def test_the_gain_must_exceed_what_is_asked_for(right: int, passes: bool) -> None:
    assert decide(measured(right), measured(160), PromoteConfig(min_gain=0.05), exists=True).promote is passes


def test_a_negative_gain_lets_a_slightly_worse_student_pass() -> None:
    gate = PromoteConfig(min_gain=-0.05)
    assert decide(measured(1590, 2000), measured(1600, 2000), gate, exists=True).promote
    assert not decide(measured(1500, 2000), measured(1600, 2000), gate, exists=True).promote


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (None, "was never measured on these test images"),
        ({"test_split": "t" * 64}, "on other test images, or through another view"),
        ({"view": "w" * 64}, "on other test images, or through another view"),
        ({"classes": ["class 1", "class 0"]}, "had other labels"),
    ],
)
def test_a_champion_of_other_images_view_or_labels_is_not_compared(other: dict[str, Any] | None, message: str) -> None:
    champion = None if other is None else measured(100, **other)
    decision = decide(measured(199), champion, GATE, exists=True)
    assert not decision.promote
    assert message in decision.reasons[0]


def test_a_class_that_loses_too_much_stops_a_student_that_gains_in_all() -> None:
    truth = [0] * 180 + [1] * 40
    old = [0] * 100 + [1] * 80 + [1] * 40
    new = [0] * 180 + [1] * 20 + [0] * 20
    base = {"truth": truth, "images": 0}
    champion = measured(0, predicted=old, **base)
    decision = decide(measured(0, predicted=new, **base), champion, GATE, exists=True)
    assert not decision.promote
    assert "class class 1 loses 50.0% of its 40 test images, more than the 10.0% that is allowed" in decision.reasons[0]
    assert decide(measured(0, predicted=new, **base), champion, PromoteConfig(max_class_loss=None), exists=True).promote
    few = [0] * 180 + [1] * 34 + [0] * 6
    allowed = decide(measured(0, predicted=few, **base), champion, GATE, exists=True)
    assert allowed.promote, "6 of 40 lost may be chance about the 10% that are allowed"
    assert "class 1, loses 15.0%, beyond chance no more than the 10.0% that is allowed" in told(allowed)


def test_bounds_on_calibration_latency_and_size_are_each_kept_and_told() -> None:
    gate = PromoteConfig(max_calibration_error=0.1, max_latency_ms=10, max_megaparameters=2)
    good = {"calibration_error": 0.05, "latency_ms": 4.0, "parameters": 1_500_000}
    passed = decide(measured(190, **good), measured(150), gate, exists=True)
    assert passed.promote
    assert {check.name for check in passed.checks} == {"top-1", "classes", "calibration", "latency", "size"}
    for change, message in (
        ({"calibration_error": 0.2}, "calibration error 0.200, over 0.1"),
        ({"calibration_error": float("nan")}, "calibration error was not measured"),
        ({"latency_ms": None}, "latency was not measured"),
        ({"parameters": 3_000_000}, "size 3.00 million parameters, over 2 million parameters"),
    ):
        failed = decide(measured(190, **{**good, **change}), measured(150), gate, exists=True)
        assert not failed.promote
        assert message in failed.reasons[0]


@pytest.mark.parametrize("setting", ["min_gain", "significance", "max_class_loss", "max_latency_ms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gate_that_is_no_number_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValidationError):
        PromoteConfig(**{setting: value})


def simulated(rng: np.random.Generator, first: float, second: float, images: int = 1000) -> tuple[Measured, Measured]:
    """Two students of these accuracies, whose mistakes go together as those of one model's two seeds do."""
    hardness = rng.normal(size=images)
    pair = []
    for accuracy in (first, second):
        wrong = 0.8 * hardness + 0.6 * rng.normal(size=images) > norm.ppf(accuracy)
        pair.append(measured(0, 0, truth=[0] * images, predicted=wrong.astype(int).tolist()))
    return pair[0], pair[1]


def test_a_student_that_is_better_by_chance_alone_passes_no_more_often_than_is_said() -> None:
    rng = np.random.default_rng(1)
    passed = sum(decide(*simulated(rng, 0.8, 0.8), GATE, exists=True).promote for _ in range(1000))
    assert passed / 1000 <= GATE.significance
    assert passed > 0, "it is not idle"


def test_a_student_that_is_better_by_five_points_passes_nearly_always() -> None:
    rng = np.random.default_rng(2)
    passed = sum(decide(*simulated(rng, 0.85, 0.8), GATE, exists=True).promote for _ in range(200))
    assert passed / 200 > 0.95


def test_kept_results_that_cannot_be_read_are_named() -> None:
    whole = measured(3, 5)
    assert parse_measured(whole.model_dump_json().encode(), "there") == whole
    for text in (b"{}", b"no json", measured(3, 5).model_dump_json().replace("[0,1,0,1,0]", "[0]", 1).encode()):
        with pytest.raises(StorageError, match="s3://bucket/key holds no test results"):
            parse_measured(text, "s3://bucket/key")
