"""The script MLflow stores with each version: `mlflow.pyfunc.load_model("models:/validator@champion").predict(frame)`.

For notebooks and `mlflow models serve`, in an environment with this project. The services never load through pyfunc;
they read the verified bundle itself.
"""

from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import set_model

from pipelines.contracts import Model
from pipelines.models.runtime import load_bundle
from pipelines.models.tables import answers


class BundledModel(mlflow.pyfunc.PythonModel):
    """Predict one output row per input row: status, reason, novelty, p (a column a class), p_low, label."""

    model: Model

    def load_context(self, context: Any) -> None:
        """Load the bundle that MLflow stored as artifact "bundle": verified, and without pickle."""
        self.model = load_bundle(Path(context.artifacts["bundle"]), None)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema
        """Return the predictions of `model_input`, a frame with the model's columns, as a frame."""
        return answers(self.model, model_input)


set_model(BundledModel())
