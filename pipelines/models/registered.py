"""The script MLflow stores with each version: `mlflow.pyfunc.load_model("models:/validator@champion").predict(frame)`.

For notebooks. The services never load through pyfunc; they read the verified bundle itself.
"""

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import set_model

from pipelines.contracts import Model
from pipelines.models.runtime import load_bundle
from pipelines.models.views import windows


class BundledModel(mlflow.pyfunc.PythonModel):
    """Predict one output row per input row: p (a column a class), p_low, status, reason, novelty, label.

    For a model of several steps the rows are bars in time order; each is predicted from itself and those before it.
    """

    model: Model

    def load_context(self, context: Any) -> None:
        """Load the bundle that MLflow stored as artifact "bundle"."""
        self.model = load_bundle(Path(context.artifacts["bundle"]), None)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema
        """Return the predictions of `model_input`, a frame with the model's columns, as a frame."""
        model = self.model
        rows = model_input[list(model.columns)].to_numpy(dtype=float)
        if model.steps > 1:
            rows = windows(rows, np.arange(len(rows)), model.steps)
        predicted = model.predict(rows)
        frame = pd.DataFrame({"status": predicted.status, "reason": predicted.reason, "novelty": predicted.novelty})
        for name, values in (("p", predicted.p), ("p_low", predicted.p_low)):
            if values.ndim == 1:
                frame[name] = values
            else:
                frame[[f"{name}_{label}" for label in model.classes]] = values
        if predicted.label is not None:
            frame["label"] = predicted.label
        return frame


set_model(BundledModel())
