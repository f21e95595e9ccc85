"""The student as an MLflow model: a column of encoded images in, classes with calibrated probabilities out.

MLflow stores this file itself ("models from code"), so nothing is pickled; torch is imported when the model
is loaded, not when it is registered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

#: Of what is answered.
COLUMNS = ["label", "probability", "probabilities"]


class StudentModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Decodes, takes the evaluation view and classifies."""

    def load_context(self, context: Any) -> None:
        """Load the student that was registered."""
        from tenfold.predictor import Predictor

        self._predictor = Predictor(Path(context.artifacts["student"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return ``label``, ``probability`` and every class's ``probabilities`` for the column ``image`` (bytes)."""
        from tenfold.errors import BadImageError

        images = []
        for number, image in enumerate(model_input["image"]):
            if not isinstance(image, bytes | bytearray | memoryview):
                raise _refusal(number, f"an encoded image (bytes) is expected, not {type(image).__name__}")
            images.append(bytes(image))
        try:
            found = self._predictor(images)
        except BadImageError:
            for number, image in enumerate(images):
                try:
                    self._predictor([image])
                except BadImageError as error:
                    raise _refusal(number, str(error)) from None
            raise
        return pd.DataFrame([vars(prediction) for prediction in found], columns=COLUMNS)


def _refusal(number: int, told: str) -> MlflowException:
    """Return what MLflow's server answers to a request that cannot be: status 400, and a sentence."""
    return MlflowException(f"image {number}: {told}", error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(StudentModel())
