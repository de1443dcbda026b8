"""A chart draws what was computed: each signal where it begins, each trade with its levels."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bellwether.reports.chart import ChartData, detail_columns, marks, to_dict, write
from pipelines.contracts import Decision
from pipelines.data.timeframes import Grid
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.columns import SIGNAL_PARTS

QUARTERS = Grid("15m")

T0 = datetime(2024, 1, 1, tzinfo=UTC)
STEP_S = 900


def rows(n=12):
    times = T0.timestamp() + STEP_S * np.arange(n)
    close = 100.0 + np.arange(n)
    return np.column_stack(
        [times, close - 0.5, close + 1, close - 1, close, np.full(n, 5.0), np.ones(n), np.ones(n), np.full(n, np.nan)]
    )


def neutral_signals(n=12):
    signals = np.zeros((n, len(SIGNALS.columns)))
    signals[:, [c.sparse for c in SIGNALS.catalogue]] = np.nan
    return signals


def set_signal(signals, name, at, direction, strength=1.0):
    for part, value in (("direction", direction), ("strength", strength), ("low", 99.0), ("high", 101.0)):
        signals[at, SIGNALS.index[f"{name}.{part}"]] = value


def trade(**changes):
    made = Decision(
        id="d1", symbol="SIM/USDT", as_of=T0 + timedelta(minutes=45), known_at=T0, ingested_at=T0, action="BUY",
        direction=1, confidence=0.8, entry=102.0, stop=101.0, take_profits=(104.0,), size=0.05,
        expiry=T0 + timedelta(hours=2), edge_bps=3.5, p=0.6, regime="TRENDING", tier=2, arm="champion", event="fvg",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def drawn():
    signals = neutral_signals()
    set_signal(signals, "ma_cross", slice(2, 6), 1)
    set_signal(signals, "ma_cross", slice(6, 9), -1)
    set_signal(signals, "fvg", 4, -1, 2.5)
    signals[4, SIGNALS.index["fvg.open"]] = 2.0
    return ChartData("SIM/USDT", QUARTERS, rows(), signals, (trade(), trade(id="d2", action="NO_TRADE", entry=None)))


def test_a_signal_is_marked_where_it_begins_and_where_it_turns(drawn):
    found = [(m.signal, m.at, m.direction) for m in marks(drawn.signals)]
    assert found == [("ma_cross", 2, 1), ("fvg", 4, -1), ("ma_cross", 6, -1)]


def test_a_bar_without_signals_is_counted_and_draws_none(drawn):
    blind = drawn.signals.copy()
    blind[3:5] = np.nan
    found = to_dict(replace(drawn, signals=blind))
    assert found["without_signals"] == 2
    assert [s["signal"] for s in found["signals"]] == ["ma_cross", "ma_cross", "ma_cross"]  # it was lost in between


def test_json_names_signals_by_their_close_and_trades_with_their_levels(drawn):
    found = to_dict(drawn)
    assert found["signals"][1] == {
        "signal": "fvg", "at": "2024-01-01 01:15", "direction": -1, "strength": 2.5, "low": 99.0, "high": 101.0,
        "details": {"fvg.open": 2.0, "fvg.mitigated": 0.0, "fvg.filled": 0.0},
    }  # fmt: skip
    assert [(d["id"], d["entry"], d["stop"], d["target"]) for d in found["decisions"]] == [("d1", 102.0, 101.0, 104.0)]


def test_the_page_is_self_contained_and_holds_every_mark(drawn, tmp_path):
    page = write(drawn, tmp_path / "reports" / "chart.html").read_text()
    assert "fvg down, strength 2.50, prices 99.00 to 101.00\\u003cbr\\u003eopen 2.00" in page
    assert "2 decisions, 1 emitted" in page
    assert "<script src" not in page


def test_every_column_of_every_signal_is_drawn_with_its_mark():
    drawn = {f"{name}.{part}" for names in PRODUCERS.values() for name in names for part in SIGNAL_PARTS}
    drawn |= {column for names in PRODUCERS.values() for name in names for column in detail_columns(name)}
    scores = {"amt_phase_score", "crt_level_score", "unicorn_rating_score"}  # read by the validator
    assert drawn >= set(SIGNALS.columns) - scores
