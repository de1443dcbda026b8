"""A row is complete where the model's inputs and its baselines' are: a column left out may be read by a baseline."""

import numpy as np

from pipelines.models.base import Dataset
from pipelines.training.fit import complete_rows, prepare


def test_a_row_whose_baseline_input_is_missing_is_not_complete():
    ones, extras = np.ones(4), {"volatility": np.array([[1.0, 2.0], [np.nan, 2.0], [1.0, 2.0], [1.0, np.nan]])}
    inputs = np.array([[0.0], [0.0], [np.nan], [0.0]])
    data = Dataset(("a",), lambda at: inputs[at], ones, ones, ones, ones, ones, np.arange(4), extras)
    assert complete_rows(data).tolist() == [True, False, False, False]


def test_rows_that_only_warm_up_are_no_lack_of_coverage():
    """A short history would be refused for its first 500 bars, which no model is ever served on."""
    ones = np.ones(10)
    inputs = np.arange(10.0)[:, np.newaxis].copy()
    inputs[[0, 1, 2, 6]] = np.nan
    data = Dataset(("a",), lambda at: inputs[at], ones, ones, ones, ones, ones, np.arange(10))
    assert prepare("validator", data, ()).share == 6 / 7
