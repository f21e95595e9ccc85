"""The gate to the alias ``champion``: whether a student is better than the champion."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """Whether a challenger becomes champion, and why."""

    promote: bool
    reasons: list[str]


def decide(challenger: float, champion: float | None, min_gain: float, *, exists: bool) -> Decision:
    """Compare two top-1 accuracies measured on the same test images.

    Args:
        challenger: the new student's.
        champion: the present champion's; None where it was never measured on these images.
        min_gain: by how much the challenger must be better.
        exists: whether there is a champion.

    A value that is not a finite number never passes.
    """
    if not math.isfinite(challenger):
        return Decision(False, [f"the student's top-1 is {challenger}: not a number that can be compared"])
    if not exists:
        return Decision(True, ["no version was champion before"])
    if champion is None:
        return Decision(
            False,
            [
                "the champion was never measured on these test images, so the two cannot be compared; give the models "
                "of another data set a name of their own (promote.model), or set the alias champion in MLflow"
            ],
        )
    if not math.isfinite(champion):
        return Decision(False, [f"the champion's top-1 is {champion}: not a number that can be compared"])
    gain = challenger - champion
    told = f"top-1 {challenger:.2%} against the champion's {champion:.2%} on the same test images: {gain:+.2%}"
    if gain > min_gain:
        return Decision(True, [f"{told}, more than the {min_gain:.2%} that is asked for"])
    return Decision(False, [f"{told}, not more than the {min_gain:.2%} that is asked for"])
