"""Markets with and without regimes, as the datasets the family learns from."""

from dataclasses import replace

import numpy as np

from pipelines.contracts import BAR_WIDTH, HALF_SPREAD, History
from pipelines.data.timeframes import Grid
from pipelines.features.catalog import FEATURES
from pipelines.labels.returns import return_labels
from pipelines.models.base import Dataset, present_columns
from pipelines.models.views import VIEWS
from pipelines.settings import load_params
from pipelines.training.fit import complete_rows

QUARTERS = Grid("15m")

SHARED = ("y", "uniqueness", "known", "ended")
PARAMS = load_params()
SMALL = PARAMS.model_copy(update={"regime": PARAMS.regime.model_copy(update={"folds": 1})})


def history_of(bars):
    """Return the bars and their features as a History without signals, books and context."""
    m = len(bars)
    return History(bars, FEATURES.run(bars), np.zeros((m, 1)), np.empty((m, 2, 0, 3)), np.full((m, 6), np.nan))


def dataset_of(bars):
    """Return rows as in training: absent columns dropped, complete windows only."""
    history, labels, view = history_of(bars), return_labels(bars, bars, QUARTERS, QUARTERS, PARAMS), VIEWS["regime"]
    index = labels["index"]
    data = Dataset(
        columns=view.columns, inputs=lambda rows: view.build(history, index[rows]), at=np.arange(len(index)),
        weight=labels["uniqueness"],
        extras={"ewma": labels["ewma"], "index": index}, **{name: labels[name] for name in SHARED},
    )  # fmt: skip
    present, _ = present_columns(data.newest(), data.columns)
    data = data.select_columns(present)
    data = data.select_rows(complete_rows(data))
    return replace(data, at=np.arange(len(data)))


def steady(m=9000, seed=5):
    """Return bars of a market without regimes: one volatility, each bar a walk of thirty steps."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 5e-4, (m, 30))
    path = np.exp(np.cumsum(steps, axis=1) + np.concatenate([[0.0], np.cumsum(steps.sum(axis=1))[:-1]])[:, None])
    rows = np.empty((m, BAR_WIDTH))
    rows[:, HALF_SPREAD] = np.nan
    rows[:, 0] = 1.7040672e9 + QUARTERS.step_s * np.arange(m)
    rows[:, 4] = 100 * path[:, -1]
    rows[:, 1] = np.concatenate([[100.0], rows[:-1, 4]])
    rows[:, 2] = np.maximum(rows[:, 1], 100 * path.max(axis=1))
    rows[:, 3] = np.minimum(rows[:, 1], 100 * path.min(axis=1))
    rows[:, 5] = rng.lognormal(5, 0.5, m)
    rows[:, 6], rows[:, 7] = 100.0, rows[:, 5] / 2
    return rows
