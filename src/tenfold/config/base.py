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


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, BeforeValidator(str), Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
