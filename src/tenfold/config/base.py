"""What every section of the configuration stands on."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError("a range goes from low to high, and not below 0")
    return value


def _above_zero(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] <= 0:
        raise ValueError("a range of this kind begins above 0")
    if value[0] < 1e-3 or value[1] > 1e3:
        raise ValueError("a range of this kind lies between 0.001 and 1000")
    return value


def _at_most_one(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError("a share is at most 1")
    return value


def _text(value: object) -> object:
    """Take a number for its digits, as YAML reads an unquoted name."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be text")
    return str(value)


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Ratio = Annotated[Range, AfterValidator(_above_zero)]
Share = Annotated[Ratio, AfterValidator(_at_most_one)]
Seed = Annotated[int, BeforeValidator(_no_truth), Field(ge=0, lt=2**31)]
Name = Annotated[str, BeforeValidator(_text), Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
