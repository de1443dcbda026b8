"""What a prediction costs: the exported bundle on ONNX Runtime beside the native model it was exported from.

Run: python -m benchmarks inference
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.fixture import Stand, stand
from benchmarks.measured import Row, in_turn, pairs
from pipelines.contracts import Floats
from pipelines.models.calibration import raw
from pipelines.models.runtime import load_bundle
from pipelines.models.validator import fit_trees
from pipelines.params import Params

BATCH = 64


def native(of: Stand, columns: tuple[str, ...], params: Params) -> tuple[Any, Floats, Floats]:
    """(the model the bundle was exported from, fitted again; its rows; its outcomes)."""
    data = of.dataset
    rows = data.all_inputs()[:, [data.columns.index(name) for name in columns]]
    whole = np.isfinite(rows).all(axis=1)
    return fit_trees(rows[whole], data.y[whole], data.weight[whole], params), rows[whole], data.y[whole]


def in_cycle(ask: Callable[[Floats], Any], parts: list[Floats]) -> Callable[[], Any]:
    """A call that asks with the next part each time, so that no answer is ready from the last one."""
    turn = cycle(parts)
    return lambda: ask(next(turn))


def measure(tiny: bool = False) -> list[Row]:
    repeats = 3 if tiny else 25
    at = stand(tiny)
    model: Any = load_bundle(at.home / "bundles" / at.digests[0], at.digests[0])
    trees, rows, y = native(at, model.columns, at.params)
    booster = trees.get_booster()
    booster.set_param({"nthread": 1})
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, y)
    gap = f"largest difference {np.abs(model.raw(rows) - raw(trees, rows)).max():.0e}"
    answers = []
    for size in (1, BATCH):
        parts = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]

        def beside(
            name: str, ask: Callable[[Floats], Any], note: str = "", parts: list[Floats] = parts, size: int = size
        ) -> Row:
            ours, theirs = in_turn(in_cycle(model.raw, parts), in_cycle(ask, parts), repeats)
            what = f"exported validator, {'one row' if size == 1 else f'batch of {size}'}"
            return pairs(what, "us", ours * 1e6, name, theirs * 1e6, note)

        answers += [
            beside("XGBoost predict_proba", lambda x: raw(trees, x), gap),
            beside("XGBoost inplace_predict, 1 thread", booster.inplace_predict),
            beside("scikit-learn logistic, a simpler model", logistic.predict_proba),
        ]
    return answers
