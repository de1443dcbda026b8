"""How a source is split, history for training and the last days for the live service, and how those are shown to it."""

import json

import numpy as np
import pandas as pd
import pytest

from flows.support.installation import Installation
from flows.support.live_feed import live_tail, send_live_bars
from pipelines.contracts import BOOK_LEVELS, OPEN_TIME, Books, ContextFeed, tape_of, utc
from pipelines.errors import NotEnoughData
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store


@pytest.fixture
def installation(tmp_path):
    opened = Installation(Settings(home=tmp_path), load_params(), Store.open(f"sqlite:///{tmp_path}/store.db"))
    yield opened
    opened.store.close()


def books_known(known):
    levels = np.full((len(known), 2, BOOK_LEVELS, 3), np.nan)
    levels[:, 0, 0], levels[:, 1, 0] = (99.0, 1.0, 2.0), (101.0, 3.0, np.nan)
    return Books(known, levels, tape_of(len(known), order_flow=0.0))


def recorded(folder, days):
    opened = pd.date_range("2024-01-01", periods=96 * days, freq="15min", tz="UTC")
    frame = pd.DataFrame(
        {"open_time": opened, "open": 100.0, "high": 101.0, "low": 99.0, "close": 100.0, "volume": 1.0}
    )
    frame.to_parquet(folder / "bars.parquet")
    return str(folder / "bars.parquet")


def test_the_last_days_of_a_file_are_kept_from_the_history(installation, tmp_path):
    live_days = installation.params.data.live_days
    cut, tail, _ = live_tail(installation, "files", "BTC/USDT", recorded(tmp_path, days=40))
    assert len(tail) == 96 * (live_days + 1)
    assert tail[0, OPEN_TIME] == cut.timestamp()


class Listener:
    """Stands where the service stands and keeps what it is told."""

    def __init__(self):
        self.heard, self.asked = [], []

    def observe(self, symbol, bars, books=None, feed=None):
        self.heard.append((bars, books, feed))

    def decide(self, symbol):
        self.asked.append(self.heard[-1][0][-1, OPEN_TIME] + 60.0)
        return {"event": None, "stop": None}


def snapshot_until(installation, last):
    """As `ingest` leaves it: a manifest whose last minute opens at `last`."""
    installation.workspace.joinpath("data").mkdir(parents=True)
    described = {"symbol": "SIM/USDT", "timeframe": "1m", "last": utc(last).isoformat()}
    installation.workspace.joinpath("data", "manifest.json").write_text(json.dumps(described))


def minutes(first, n):
    bars = np.full((n, 8), 100.0)
    bars[:, OPEN_TIME] = first + 60.0 * np.arange(n)
    return bars


def test_every_record_is_shown_once_with_the_bars_of_the_first_close_that_may_read_it(installation):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0)
    known = start + np.array([-900.0, 0.0, 0.5, 899.0, 900.0, 900.5, 2000.0])  # the first two are in the snapshot
    told = books_known(known), ContextFeed(known, np.full(7, 3), np.arange(7.0))
    listener = Listener()
    send_live_bars(listener, installation, "BTC/USDT", minutes(start, 45), told)
    assert listener.asked == [start + 900.0, start + 1800.0, start + 2700.0]
    assert [books.known.tolist() for _, books, _ in listener.heard] == [k.tolist() for k in np.split(known[2:], [3, 4])]
    assert [feed.value.tolist() for *_, feed in listener.heard] == [[2.0, 3.0, 4.0], [5.0], [6.0]]


def test_what_became_known_while_the_market_was_closed_comes_with_its_next_bar(installation):
    friday, sunday = 1_704_492_000.0, 1_704_664_800.0
    snapshot_until(installation, friday - 60.0)
    told = None, ContextFeed(np.array([friday + 3600.0]), np.array([3]), np.array([40.0]))
    listener = Listener()
    send_live_bars(listener, installation, "XAU/USD", minutes(sunday, 15), told)
    assert listener.heard[0][2].value.tolist() == [40.0]


def test_the_second_time_only_what_came_since_the_last_stored_bar_is_shown(installation):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0)
    bars = minutes(start, 30)
    installation.store.add_bars(BarBatch("BTC/USDT", bars[:20], bars[:20, OPEN_TIME] + 60.0, utc(start)))
    known = start + np.array([600.0, 1200.0, 1230.0])
    listener = Listener()
    send_live_bars(listener, installation, "BTC/USDT", bars, (books_known(known), None))
    ((shown, books, _),) = listener.heard
    assert (len(shown), books.known.tolist()) == (10, [start + 1230.0])


def test_a_file_with_no_history_before_those_days_is_refused_with_its_length(installation, tmp_path):
    with pytest.raises(NotEnoughData, match=r"BTC/USDT: .*bars.parquet has 96 usable bars.*Give a longer file"):
        live_tail(installation, "files", "BTC/USDT", recorded(tmp_path, days=1))
