"""Calendars of events: windows of one market, from their begin until their end; nothing is opened or learnt inside."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipelines.data.embargo import Window, inside, to_json, window_at, windows_in
from pipelines.data.readers.events import read_events
from pipelines.errors import BadColumns, BadTimes, BadValues

T0 = pd.Timestamp("2024-01-01", tz="UTC").timestamp()
HOUR = 3600.0


def read(tmp_path, text, symbol="BTC/USDT"):
    (tmp_path / "events.csv").write_text(text)
    return read_events(tmp_path / "events.csv", symbol)


def test_a_market_has_the_windows_that_name_it_in_any_spelling_and_those_of_all(tmp_path):
    text = (
        "from,until,kind,symbol\n"
        "2024-01-01T13:00:00Z,2024-01-01T14:00:00Z,CPI,\n"
        "2024-01-02T13:00:00+01:00,2024-01-02T14:00:00+01:00,halt,btcusdt\n"
        "2024-01-03T00:00:00Z,2024-01-03T01:00:00Z,listing,ETH/USDT\n"
    )
    windows = read(tmp_path, text)
    assert windows == (
        Window(T0 + 13 * HOUR, T0 + 14 * HOUR, "CPI"), Window(T0 + 36 * HOUR, T0 + 37 * HOUR, "halt"),
    )  # fmt: skip
    assert str(windows[0]) == "CPI, 2024-01-01 13:00 to 2024-01-01 14:00 UTC"
    assert len(read(tmp_path, text, "ETH/USDT")) == 2
    assert windows_in({"source": {"events": to_json(windows[::-1])}}) == windows
    assert windows_in({"source": {}}) == ()


def test_a_day_is_whole_and_an_end_is_not_inside(tmp_path):
    (window,) = read(tmp_path, "from,until,kind\n2024-01-01,2024-01-02,FOMC\n")
    assert (window.since, window.until) == (T0, T0 + 48 * HOUR)
    closes = T0 + HOUR * np.array([-1.0, 0.0, 47.0, 48.0])
    assert inside(closes, [window]).tolist() == [False, True, True, False]
    assert [window_at(close, [window]) == window for close in closes] == [False, True, True, False]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("from,until\n2024-01-01,2024-01-02\n", BadColumns, "no column kind"),
        ("from,until,kind\n2024-01-02T00:00:00Z,2024-01-01T00:00:00Z,CPI\n", BadTimes, "row 0 ends before it begins"),
        ("from,until,kind\n2024-01-01 00:00:00,2024-01-02 00:00:00,CPI\n", BadTimes, "no time zone"),
        ("from,until,kind\n2024-01-01,2024-01-02,\n2024-01-01,2024-01-02,CPI\n", BadValues, "row 0 has no kind"),
        ("from,until,kind,symbol\n2024-01-01,2024-01-02,CPI,BTC\n", BadValues, "row 0: symbol 'BTC'.*BTC/USDT"),
    ],
)
def test_a_calendar_that_cannot_be_obeyed_is_refused(text, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read(tmp_path, text)


def test_no_event_inside_a_window_is_labelled_and_the_others_stay_as_they_were():
    from pipelines.data.simulator.market import simulate
    from pipelines.data.timeframes import Grid, resample
    from pipelines.family_labels import Sources, event_labels
    from pipelines.features.catalog import FEATURES
    from pipelines.settings import load_params
    from pipelines.signals.catalog import SIGNALS

    params = load_params()
    spec = params.simulator.model_copy(update={"history_days": 12, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    minutes, quarters = Grid("1m"), Grid("15m")
    bars = resample(base, minutes, quarters)
    columns = FEATURES.run(bars), SIGNALS.run(bars), np.full((len(bars), len(SIGNALS.columns)), np.nan)
    sources = Sources(base, bars, *columns, quarters, minutes, "simulator", "spot")
    window = Window(float(bars[600, 0]), float(bars[900, 0]), "FOMC")
    whole, shut = event_labels(sources, params), event_labels(replace(sources, windows=(window,)), params)
    outside = ~inside(whole["known"], [window])
    assert 0 < outside.sum() < len(outside)
    assert shut["known"].tolist() == whole["known"][outside].tolist()
    assert shut["y"].tolist() == whole["y"][outside].tolist()
