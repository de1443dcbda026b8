"""A model as a table: named columns in, named columns out. What notebooks and MLflow's own clients ask.

A model of one step answers each row for itself. For a model of several steps the rows are bars in time order, and each
is answered from itself and those before it.
"""

from typing import Any

import numpy as np
import pandas as pd

from pipelines.contracts import Model
from pipelines.models.views import windows

EXAMPLES = 5  # rows of the example of a model that reads one row


class Answers(pd.DataFrame):
    """Hold answers. Their records have None for a number that is not known, as JSON has no NaN."""

    def to_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a frame returns, with None for what is not known."""
        return pd.DataFrame(self.astype(object).where(self.notna(), None)).to_dict(*args, **kwargs)


def answers(model: Model, rows: pd.DataFrame) -> Answers:
    """Return one answer a row: status, reason, novelty, p and p_low (a column a class), label of a model that has one.

    rows  a frame with the columns of the model, in any order
    """
    values = rows[list(model.columns)].to_numpy(dtype=float)
    if model.steps > 1:
        values = windows(values, np.arange(len(values)), model.steps)
    predicted = model.predict(values)
    columns: dict[str, Any] = {
        "status": predicted.status, "reason": predicted.reason, "novelty": predicted.novelty
    }  # fmt: skip
    for name, found in (("p", predicted.p), ("p_low", predicted.p_low)):
        if found.ndim == 1:
            columns[name] = found
        else:
            columns |= {f"{name}_{label}": found[:, c] for c, label in enumerate(model.classes)}
    if predicted.label is not None:
        columns["label"] = predicted.label
    return Answers(columns)


def example(model: Model) -> pd.DataFrame:
    """Return rows of the bundle's golden rows to ask the model with: some, or one window whose last row is answered."""
    golden = model.golden
    answered = np.flatnonzero(np.array(golden["status"]) == "OK")
    first = answered if len(answered) else np.arange(len(golden["rows"]))
    rows = golden["rows"][first[0]] if model.steps > 1 else golden["rows"][first[:EXAMPLES]]
    return pd.DataFrame(rows, columns=list(model.columns), dtype=float)
