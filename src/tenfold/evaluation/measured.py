"""What is kept of a classifier's test results, so that later ones can be compared with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tenfold.errors import StorageError, first_fault


class Measured(BaseModel):
    """A classifier on a test split.

    Attributes:
        test_split: name of images, labels and view together; only equal ones can be compared.
        view: hash of the view.
        classes: names, in the order of the numbers below.
        truth: class of each test image.
        predicted: the classifier's, in the same order.
        calibration_error: expected calibration error; None where it was not measured.
        parameters: of the network.
        latency_ms: median milliseconds from an encoded image to its class, one at a time, on a processor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_split: str
    view: str
    classes: list[str]
    truth: list[int]
    predicted: list[int]
    calibration_error: float | None = None
    parameters: int | None = None
    latency_ms: float | None = None

    @model_validator(mode="after")
    def _fits(self) -> Measured:
        if len(self.truth) != len(self.predicted):
            raise ValueError("as many predictions as test images are needed")
        return self

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether each prediction is right."""
        return np.equal(self.truth, self.predicted)

    @property
    def top1(self) -> float:
        """Share of right predictions; not a number where there is none."""
        return float(self.hits.mean()) if self.truth else float("nan")


def parse_measured(text: bytes, where: str) -> Measured:
    """Read what was kept of a classifier.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return Measured.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"{where} holds no test results: {first_fault(error.errors())}; evaluate again") from None
