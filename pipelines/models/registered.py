"""The script MLflow stores with each version: `mlflow.pyfunc.load_model("models:/validator@champion").predict(frame)`.

For people and notebooks. The services never load through pyfunc; they read the verified bundle itself.
"""

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import set_model

from pipelines.models.runtime import TabularModel, load_bundle


class BundledModel(mlflow.pyfunc.PythonModel):
    """Answers with one row per input row: p, p_low, status, reason, novelty."""

    model: TabularModel

    def load_context(self, context: Any) -> None:
        self.model = load_bundle(Path(context.artifacts["bundle"]), None)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema
        answer = self.model.predict(model_input[list(self.model.columns)].to_numpy(dtype=float))
        return pd.DataFrame(
            {
                "p": answer.p,
                "p_low": answer.p_low,
                "status": answer.status,
                "reason": answer.reason,
                "novelty": answer.novelty,
            }
        )


set_model(BundledModel())
