"""The student as an MLflow model: a column of encoded images in, classes with calibrated probabilities out.

MLflow stores this file itself ("models from code"), so nothing is pickled; torch is imported when the model
is loaded, not when it is registered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

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
        found = self._predictor([bytes(image) for image in model_input["image"]])
        return pd.DataFrame([vars(prediction) for prediction in found], columns=COLUMNS)


mlflow.models.set_model(StudentModel())
