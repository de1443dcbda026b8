"""What a missed target returns is counted after what only a miss pays: the slippage of its stop, and funding."""

import numpy as np
import pytest

from pipelines.context_layout import CONTEXT_FIELDS
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.family_labels import Sources
from pipelines.features.catalog import FEATURES
from pipelines.models.base import Dataset
from pipelines.models.validator import expected_miss
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.training.labelling import traditional_record

PARAMS = load_params()


def test_the_validators_estimate_has_paid_the_stop_and_the_funding_but_not_the_round_trip():
    ones = np.ones(3)
    extras = {
        "gross_bps": np.array([60.0, -40.0, -40.0]), "atr": 0.004 * ones, "target_cost_bps": 11.0 * ones,
        "cost_bps": np.array([11.0, 11.4, 14.0]),
    }  # fmt: skip
    data = Dataset(("a",), lambda at: np.zeros((3, 1))[at], np.array([1.0, 0.0, 0.0]), ones, ones, ones, ones,
                   np.arange(3), extras)  # fmt: skip
    assert expected_miss(data) == pytest.approx((-40.4 - 43.0) / 2 / 40.0)


def test_so_has_that_of_the_traditional_consensus():
    spec = PARAMS.simulator.model_copy(update={"history_days": 20, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    bars = resample(base, Grid("1m"), Grid("15m"))
    context = np.full((len(bars), len(CONTEXT_FIELDS)), np.nan)
    folded = FEATURES.run(bars), SIGNALS.run(bars)
    sources = Sources(base, bars, *folded, context, Grid("15m"), Grid("1m"), "binance", "perpetual")
    dearer = PARAMS.model_copy(update={"costs": PARAMS.costs.model_copy(update={"stop_slippage_bps": 20.4})})
    usual, slipped = (traditional_record(sources, params)["miss_atr"] for params in (PARAMS, dearer))
    assert slipped < usual - 0.2  # most misses are stops, and an ATR is some thirty bps
