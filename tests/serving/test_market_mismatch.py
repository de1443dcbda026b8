"""A model is used on the market, the bars and the named series it was trained on, and on no other."""

from types import SimpleNamespace

import pytest

from pipelines.data.series import Series
from pipelines.data.timeframes import Grid
from pipelines.models.trained_on import symbols_of
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
        ({"symbol": "ETH/USDT"}, (), "UNSEEN_SYMBOL:ETH/USDT"),
        ({"symbols": ["ETH/USDT", "SOL/USDT"]}, (), "UNSEEN_SYMBOL:ETH/USDT, SOL/USDT"),
        ({"symbols": ["ETH/USDT", "BTC/USDT"]}, (), None),
        ({"symbols": ["ETH/USDT", "BTC/USDT"]}, (FLOW,), None),  # a pooled model reads what all its symbols have
        ({"symbols": ["BTC/USDT"], "series": {"series_1": "options_flow"}}, (FLOW,), None),
        ({"symbols": ["BTC/USDT"], "series": {"series_1": "options_flow"}}, (), "TRAINED_ON:series options_flow"),
        ({"symbol": "ETH/USDT", "decision_timeframe": "1h"}, (), "TRAINED_ON:ETH/USDT 1h"),
    ],
)
def test_a_model_of_other_series_is_not_used(trained_on, live, why):
    schema = {"symbol": "BTC/USDT", "decision_timeframe": "15m", **trained_on}
    slot = SimpleNamespace(model=SimpleNamespace(schema=schema))
    symbol = SimpleNamespace(name="BTC/USDT", grid=Grid("15m"), warm=SimpleNamespace(series=live))
    assert market_mismatch(slot, symbol) == why


def test_a_model_answers_for_a_symbol_it_was_not_trained_on_where_a_person_allows_it():
    slot = SimpleNamespace(model=SimpleNamespace(schema={"symbol": "ETH/USDT", "decision_timeframe": "15m"}))
    symbol = SimpleNamespace(name="BTC/USDT", grid=Grid("15m"), warm=SimpleNamespace(series=()))
    assert market_mismatch(slot, symbol, "allow") is None
    symbol.grid = Grid("1h")  # other bars are refused all the same
    assert market_mismatch(slot, symbol, "allow") == "TRAINED_ON:ETH/USDT 15m"


@pytest.mark.parametrize(
    ("facts", "symbols"),
    [
        ({"symbols": ["A/B", "C/D"]}, ("A/B", "C/D")),
        ({"symbols": "A/B,C/D"}, ("A/B", "C/D")),
        ({"symbol": "A/B"}, ("A/B",)),
        ({}, ()),
    ],
)
def test_the_symbols_of_a_model_are_read_from_a_schema_and_from_tags_of_any_release(facts, symbols):
    assert symbols_of(facts) == symbols
