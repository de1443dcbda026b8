"""Time a prediction: the exported bundle against the native model it was exported from, and compiled trees.

Run: python -m benchmarks inference
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import trees
from benchmarks.fixture import Fixture, fixture
from benchmarks.measured import Row, in_turn, pairs
from benchmarks.trees import cycling
from pipelines.contracts import Floats
from pipelines.models.calibration import raw
from pipelines.models.runtime import load_bundle
from pipelines.models.validator import fit_trees
from pipelines.params import Params

BATCH = 64


def native(of: Fixture, columns: tuple[str, ...], params: Params) -> tuple[Any, Floats, Floats]:
    """Return the model that the bundle was exported from, fitted again; its rows (n, k); its outcomes (n,)."""
    data = of.dataset
    rows = data.all_inputs()[:, [data.columns.index(name) for name in columns]]
    whole = np.isfinite(rows).all(axis=1)
    return fit_trees(rows[whole], data.y[whole], data.weight[whole], params), rows[whole], data.y[whole]


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    repeats = 3 if tiny else 25
    at = fixture(tiny)
    model: Any = load_bundle(at.home / "bundles" / at.digests[0], at.digests[0])
    model_trees, rows, y = native(at, model.columns, at.params)
    booster = model_trees.get_booster()
    booster.set_param({"nthread": 1})
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, y)
    refit = "fitted again, without the decay of old events: for its time alone"
    rows_measured = []
    for size in (1, BATCH):
        parts = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]

        def compare(
            name: str, predict: Callable[[Floats], Any], note: str = "", parts: list[Floats] = parts, size: int = size
        ) -> Row:
            """Return the row of the exported model against another way to predict the same parts."""
            ours, theirs = in_turn(cycling(model.raw, parts), cycling(predict, parts), repeats)
            what = f"exported validator, {'one row' if size == 1 else f'batch of {size}'}"
            return pairs(what, "us", ours * 1e6, name, theirs * 1e6, note)

        rows_measured += [
            compare("XGBoost predict_proba", lambda x: raw(model_trees, x), refit),
            compare("XGBoost inplace_predict, 1 thread", booster.inplace_predict),
            compare("scikit-learn logistic, a simpler model", logistic.predict_proba),
        ]
    return rows_measured + trees.measure(tiny)
