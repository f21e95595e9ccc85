"""The gate to the alias ``champion``: whether a student is better than the champion, and good enough to be served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.config import PromoteConfig
from tenfold.evaluation.measured import Measured
from tenfold.evaluation.paired import compare


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at: whether it held, and a sentence about it."""

    name: str
    passed: bool
    told: str


@dataclass(frozen=True)
class Decision:
    """What the gate looked at; a challenger becomes champion if all of it held."""

    checks: Sequence[Check]

    @property
    def promote(self) -> bool:
        """Whether the challenger becomes champion."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """One sentence a check; where one failed, that is said first."""
        return [check.told for check in sorted(self.checks, key=lambda check: check.passed)]


def decide(challenger: Measured, champion: Measured | None, gate: PromoteConfig, *, exists: bool) -> Decision:
    """Ask whether a challenger may become champion.

    It must be better by more than ``gate.min_gain`` on the same test images, so clearly that a challenger which is not
    would look like this in at most a share of ``gate.significance`` (:func:`tenfold.evaluation.paired.compare`). No
    class may lose more than ``gate.max_class_loss`` of its images beyond chance in the same sense, and what is served
    must keep the bounds on calibration, latency and size. The first student needs no more than the bounds.

    Args:
        challenger: the new student's test results.
        champion: the present champion's; None where it was never measured on these images.
        gate: the bounds.
        exists: whether there is a champion.

    What is not a finite number never passes.
    """
    checks = _bounds(challenger, gate)
    if not math.isfinite(challenger.top1):
        return Decision([Check("top-1", False, "the student was measured on no test image"), *checks])
    if not exists:
        return Decision([Check("champion", True, "no version was champion before"), *checks])
    refusal = _incomparable(challenger, champion, gate.model)
    if champion is None or refusal:
        return Decision([Check("test split", False, refusal), *checks])
    return Decision([_better(challenger, champion, gate), *_classes(challenger, champion, gate), *checks])


def _incomparable(challenger: Measured, champion: Measured | None, model: str) -> str:
    """Return why the two cannot be compared; empty where they can."""
    cure = (
        "so the two cannot be compared; give the models of another data set a name of their own (promote.model), or "
        f"make a version champion by `tenfold promote VERSION --model {model} --because …`"
    )
    if champion is None:
        return f"the champion was never measured on these test images (or evaluate.selection was another), {cure}"
    if champion.test_split != challenger.test_split or champion.view != challenger.view:
        return f"the champion was measured on other test images, or through another view of them, {cure}"
    if champion.truth != challenger.truth or champion.classes != challenger.classes:
        return f"the champion's test images had other labels, {cure}"
    return ""


def _better(challenger: Measured, champion: Measured, gate: PromoteConfig) -> Check:
    found = compare(challenger.hits, champion.hits, gate.min_gain)
    told = (
        f"top-1 {challenger.top1:.2%} against the champion's {champion.top1:.2%} on the same {found.count:,} test "
        f"images: {found.gain:+.2%} ({found.wins} better, {found.losses} worse)"
    )
    asked = f"the {gate.min_gain:.2%} that is asked for"
    if found.p_value <= gate.significance and found.gain > gate.min_gain:
        return Check("top-1", True, f"{told}, more than {asked} (p = {found.p_value:.2g})")
    if found.gain > gate.min_gain:
        told += f", which may be chance: p = {found.p_value:.2g}, and at most {gate.significance:g} is asked for"
        return Check("top-1", False, told)
    return Check("top-1", False, f"{told}, not more than {asked}")


def _classes(challenger: Measured, champion: Measured, gate: PromoteConfig) -> list[Check]:
    """Return a check of the class that loses most; one for each where several lose too much."""
    if gate.max_class_loss is None:
        return []
    truth, new, old = np.array(challenger.truth), challenger.hits, champion.hits
    worst, failed = ("", 0.0), []
    for number, name in enumerate(challenger.classes):
        own = truth == number
        if not own.any():
            continue
        lost = compare(old[own], new[own], gate.max_class_loss)
        if lost.gain > worst[1]:
            worst = (name, lost.gain)
        if lost.gain > gate.max_class_loss and lost.p_value <= gate.significance:
            failed.append(
                f"class {name} loses {lost.gain:.1%} of its {lost.count:,} test images, more than the "
                f"{gate.max_class_loss:.1%} that is allowed (p = {lost.p_value:.2g})"
            )
    if failed:
        return [Check("classes", False, told) for told in failed]
    if not worst[0]:
        return [Check("classes", True, "no class loses")]
    within = "within" if worst[1] <= gate.max_class_loss else "beyond chance no more than"
    told = f"the class that loses most, {worst[0]}, loses {worst[1]:.1%}, {within} the {gate.max_class_loss:.1%}"
    return [Check("classes", True, f"{told} that is allowed")]


def _bounds(challenger: Measured, gate: PromoteConfig) -> list[Check]:
    """Return a check for each bound that is set."""
    parameters = None if challenger.parameters is None else challenger.parameters / 1e6
    asked = (
        ("calibration", "calibration error", challenger.calibration_error, gate.max_calibration_error, ".3f", ""),
        ("latency", "latency", challenger.latency_ms, gate.max_latency_ms, ".1f", " ms"),
        ("size", "size", parameters, gate.max_megaparameters, ".2f", " million parameters"),
    )
    checks = []
    for name, what, value, bound, form, unit in asked:
        if bound is None:
            continue
        if value is None or not math.isfinite(value):
            checks.append(Check(name, False, f"the student's {what} was not measured, and a bound is set"))
        elif value <= bound:
            checks.append(Check(name, True, f"{what} {value:{form}}{unit}, within {bound:g}{unit}"))
        else:
            checks.append(Check(name, False, f"{what} {value:{form}}{unit}, over {bound:g}{unit}"))
    return checks
