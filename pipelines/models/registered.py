"""The script MLflow stores with each version: `mlflow.pyfunc.load_model("models:/validator@champion").predict(frame)`.

For people and notebooks. The services never load through pyfunc; they read the verified bundle itself.
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
    """Answers with one row per input row: p (a column a class), p_low, status, reason, novelty, label.

    The rows of a model that looks back are bars in time order: each is answered from itself and those before it.
    """

    model: Model

    def load_context(self, context: Any) -> None:
        self.model = load_bundle(Path(context.artifacts["bundle"]), None)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema
        model = self.model
        rows = model_input[list(model.columns)].to_numpy(dtype=float)
        if model.steps > 1:
            rows = windows(rows, np.arange(len(rows)), model.steps)
        answer = model.predict(rows)
        frame = pd.DataFrame({"status": answer.status, "reason": answer.reason, "novelty": answer.novelty})
        for name, values in (("p", answer.p), ("p_low", answer.p_low)):
            if values.ndim == 1:
                frame[name] = values
            else:
                frame[[f"{name}_{word}" for word in model.classes]] = values
        if answer.label is not None:
            frame["label"] = answer.label
        return frame


set_model(BundledModel())
