"""A model is used on the market, the bars and the named series it was trained on, and on no other."""

from types import SimpleNamespace

import pytest

from pipelines.data.series import Series
from pipelines.data.timeframes import Grid
from serving.inference.predictions import market_mismatch

FLOW = Series("series_1", "options_flow", "contracts", 900.0, 86400.0)
SOCIAL = Series("series_1", "social", "posts", 900.0, 86400.0)


@pytest.mark.parametrize(
    ("trained_on", "live", "why"),
    [
        ({}, (), None),  # a bundle of an earlier release
        ({"series": {"series_1": "options_flow"}}, (FLOW,), None),
        ({"series": {"series_1": "options_flow"}}, (SOCIAL,), "TRAINED_ON:series options_flow"),
        ({"series": {"series_1": "options_flow"}}, (), "TRAINED_ON:series options_flow"),
        ({}, (FLOW,), "TRAINED_ON:series none"),
        ({"symbol": "ETH/USDT"}, (), "TRAINED_ON:ETH/USDT 15m"),
    ],
)
def test_a_model_of_other_series_is_not_used(trained_on, live, why):
    schema = {"symbol": "BTC/USDT", "decision_timeframe": "15m", **trained_on}
    slot = SimpleNamespace(model=SimpleNamespace(schema=schema))
    symbol = SimpleNamespace(name="BTC/USDT", grid=Grid("15m"), warm=SimpleNamespace(series=live))
    assert market_mismatch(slot, symbol) == why
