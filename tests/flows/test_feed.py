"""How a source is split into history and the live service's last days, and how those are sent to it."""

import json
from datetime import date

import numpy as np
import pandas as pd
import pytest
from support.market_hours import bars as bars_of

from flows.support.installation import Installation
from flows.support.live_feed import by_decision_bar, live_tail, send_live_bars
from pipelines.contracts import BAR_WIDTH, BOOK_LEVELS, HALF_SPREAD, OPEN_TIME, Books, ContextFeed, tape_of, utc
from pipelines.data.calendars import CALENDARS
from pipelines.data.schemas import to_frame, write_bars
from pipelines.data.timeframes import Grid
from pipelines.errors import NotEnoughData
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store

MINUTES = Grid("1m")


@pytest.fixture
def installation(tmp_path):
    opened = Installation(Settings(home=tmp_path), load_params(), Store.open(f"sqlite:///{tmp_path}/store.db"))
    yield opened
    opened.store.close()


def books_known(known):
    """Return one two-sided book for each moment it became known."""
    levels = np.full((len(known), 2, BOOK_LEVELS, 3), np.nan)
    levels[:, 0, 0], levels[:, 1, 0] = (99.0, 1.0, 2.0), (101.0, 3.0, np.nan)
    return Books(known, levels, tape_of(len(known), order_flow=0.0))


def recorded(folder, days):
    """Write a file of so many days of quarter hours and return its path."""
    opened = pd.date_range("2024-01-01", periods=96 * days, freq="15min", tz="UTC")
    frame = pd.DataFrame(
        {"open_time": opened, "open": 100.0, "high": 101.0, "low": 99.0, "close": 100.0, "volume": 1.0}
    )
    frame.to_parquet(folder / "bars.parquet")
    return str(folder / "bars.parquet")


def test_the_last_days_of_a_file_are_not_in_the_history(installation, tmp_path):
    live_days = installation.params.data.live_days
    cut, tail, _ = live_tail(installation, "files", "BTC/USDT", recorded(tmp_path, days=40))
    assert len(tail) == 96 * (live_days + 1)
    assert tail[0, OPEN_TIME] == cut.timestamp()


class RecordingClient:
    """Record what is sent to the service, in its place."""

    def __init__(self):
        self.sent, self.requested = [], []

    def observe(self, symbol, bars, books=None, feed=None):
        """Record bars, books and feed of one call."""
        self.sent.append((bars, books, feed))

    def decide(self, symbol):
        """Record the last close and answer without an event."""
        self.requested.append(self.sent[-1][0][-1, OPEN_TIME] + 60.0)
        return {"event": None, "stop": None}


def snapshot_until(installation, last):
    """Write a manifest whose last minute opens at `last`, as `ingest` does."""
    installation.workspace.joinpath("data").mkdir(parents=True)
    described = {"symbol": "SIM/USDT", "timeframe": "1m", "grid": MINUTES.to_dict(), "last": utc(last).isoformat()}
    installation.workspace.joinpath("data", "manifest.json").write_text(json.dumps(described))


def minutes(first, n):
    """Return n one-minute bars from `first` (epoch seconds) on."""
    bars = np.full((n, BAR_WIDTH), 100.0)
    bars[:, HALF_SPREAD] = np.nan
    bars[:, OPEN_TIME] = first + 60.0 * np.arange(n)
    return bars


def test_every_record_is_sent_once_with_the_bars_of_the_first_close_that_may_read_it(installation):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0)
    known = start + np.array([-900.0, 0.0, 0.5, 899.0, 900.0, 900.5, 2000.0])  # the first two are in the snapshot
    known_records = books_known(known), ContextFeed(known, np.full(7, 3), np.arange(7.0))
    client = RecordingClient()
    send_live_bars(client, installation, "BTC/USDT", minutes(start, 45), known_records)
    assert client.requested == [start + 900.0, start + 1800.0, start + 2700.0]
    assert [books.known.tolist() for _, books, _ in client.sent] == [k.tolist() for k in np.split(known[2:], [3, 4])]
    assert [feed.value.tolist() for *_, feed in client.sent] == [[2.0, 3.0, 4.0], [5.0], [6.0]]


def test_what_became_known_while_the_market_was_closed_comes_with_its_next_bar(installation):
    friday, sunday = 1_704_492_000.0, 1_704_664_800.0
    snapshot_until(installation, friday - 60.0)
    known_records = None, ContextFeed(np.array([friday + 3600.0]), np.array([3]), np.array([40.0]))
    client = RecordingClient()
    send_live_bars(client, installation, "XAU/USD", minutes(sunday, 15), known_records)
    assert client.sent[0][2].value.tolist() == [40.0]


def test_the_second_time_only_what_came_since_the_last_stored_bar_is_sent(installation):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0)
    bars = minutes(start, 30)
    installation.store.add_bars(BarBatch("BTC/USDT", bars[:20], bars[:20, OPEN_TIME] + 60.0, utc(start)))
    known = start + np.array([600.0, 1200.0, 1230.0])
    client = RecordingClient()
    send_live_bars(client, installation, "BTC/USDT", bars, (books_known(known), None))
    ((bars_sent, books, _),) = client.sent
    assert (len(bars_sent), books.known.tolist()) == (10, [start + 1230.0])


def test_a_file_with_no_history_before_those_days_is_refused_with_its_length(installation, tmp_path):
    with pytest.raises(NotEnoughData, match=r"BTC/USDT: .*bars.parquet has 96 usable bars.*Give a longer file"):
        live_tail(installation, "files", "BTC/USDT", recorded(tmp_path, days=1))


def test_bars_are_sent_by_decision_bar_also_the_short_last_one_of_a_session():
    quarters = bars_of("us-equity", 900.0, date(2024, 3, 8), date(2024, 3, 11))[:, 0]
    bars = minutes(0.0, len(quarters))
    bars[:, OPEN_TIME] = quarters
    groups = list(by_decision_bar(bars, Grid("1h", CALENDARS["us-equity"])))
    assert [len(part) for _, part in groups] == [4, 4, 4, 4, 4, 4, 2] * 2
    assert [f"{utc(close):%a %H:%M}" for close, _ in groups[5:8]] == ["Fri 20:30", "Fri 21:00", "Mon 14:30"]


def test_base_bars_are_on_the_grid_of_the_data_version_or_on_that_of_its_bars_before_release_090(installation):
    stated, data = Grid("1h", CALENDARS["us-equity"]), installation.workspace / "data"
    rows = minutes(0.0, 200)
    rows[:, OPEN_TIME] = bars_of("forex", 3600.0, date(2024, 3, 5), date(2024, 3, 29))[:200, 0]
    write_bars(to_frame(rows, Grid("1h"), None), data / "1h.parquet")
    old = {"symbol": "EUR/USD", "timeframe": "1h", "file": "1h.parquet"}
    for manifest, grid in ((old | {"grid": stated.to_dict()}, stated), (old, Grid("1h", CALENDARS["forex"]))):
        (data / "manifest.json").write_text(json.dumps(manifest))
        assert installation.base_grid() == grid
