"""How a source is split into history and the live service's last days, and how those are sent to it."""

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
from support.market_hours import bars as bars_of

from flows.support.installation import Installation
from flows.support.live_feed import Tail, by_decision_bar, common_cut, live_tail, live_tails, send_live_bars
from flows.support.market_access import MarketOffer
from pipelines.context_layout import tape_of
from pipelines.contracts import BAR_WIDTH, BOOK_LEVELS, HALF_SPREAD, OPEN_TIME, Books, ContextFeed, utc
from pipelines.data.calendars import CALENDARS
from pipelines.data.schemas import to_frame, write_bars
from pipelines.data.timeframes import Grid
from pipelines.errors import InputError, NotEnoughData
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
    tail = live_tail(installation, offer(recorded(tmp_path, days=40)))
    assert len(tail.live) == 96 * (live_days + 1)
    assert tail.live[0, OPEN_TIME] == tail.cut


class RecordingClient:
    """Record what is sent to the service, in its place; it refuses the bars of `refused`."""

    def __init__(self, refused=()):
        self.sent, self.requested, self.closes, self.refused = [], [], [], refused

    def observe_all(self, markets):
        """Record bars, books and feed of each symbol of one call."""
        self.sent += [each[1:] for each in markets]
        self.closes.append({symbol: bars[-1, OPEN_TIME] + 60.0 for symbol, bars, *_ in markets})
        return {"observations": [self._answer(symbol) for symbol, *_ in markets]}

    def decide_all(self, symbols):
        """Record the last close and answer without an event."""
        self.requested.append((max(self.closes[-1].values()), *symbols))
        return {"decisions": [{"symbol": symbol, "event": None, "stop": None} for symbol in symbols]}

    def _answer(self, symbol):
        return {"symbol": symbol} | ({"error": "no such bar", "kind": "BadTimes"} if symbol in self.refused else {})


def offer(*paths, symbol="BTC/USDT"):
    """Return the offer of files of a market."""
    return MarketOffer(symbol=symbol, source="files", paths=paths)


def snapshot_until(installation, last, symbols=("BTC/USDT",)):
    """Write a manifest of markets whose last minute opens at `last`, as `ingest` does."""
    installation.workspace.joinpath("data").mkdir(parents=True)
    markets = {
        symbol: {"symbol": symbol, "timeframe": "1m", "grid": MINUTES.to_dict(), "files": [],
                 "first": utc(last).isoformat(), "last": utc(last).isoformat()}
        for symbol in symbols
    }  # fmt: skip
    installation.workspace.joinpath("data", "manifest.json").write_text(json.dumps({"format": 2, "markets": markets}))


def tail_of(bars, known=(None, None), symbol="BTC/USDT"):
    """Return bars as the live tail of a market."""
    return Tail(symbol, float(bars[0, OPEN_TIME]), bars, known, False)


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
    send_live_bars(client, installation, [tail_of(minutes(start, 45), known_records)])
    assert client.requested == [(start + s, "BTC/USDT") for s in (900.0, 1800.0, 2700.0)]
    assert [books.known.tolist() for _, books, _ in client.sent] == [k.tolist() for k in np.split(known[2:], [3, 4])]
    assert [feed.value.tolist() for *_, feed in client.sent] == [[2.0, 3.0, 4.0], [5.0], [6.0]]


def test_what_became_known_while_the_market_was_closed_comes_with_its_next_bar(installation):
    friday, sunday = 1_704_492_000.0, 1_704_664_800.0
    snapshot_until(installation, friday - 60.0)
    known_records = None, ContextFeed(np.array([friday + 3600.0]), np.array([3]), np.array([40.0]))
    client = RecordingClient()
    send_live_bars(client, installation, [tail_of(minutes(sunday, 15), known_records)])
    assert client.sent[0][2].value.tolist() == [40.0]


def test_the_second_time_only_what_came_since_the_last_stored_bar_is_sent(installation):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0)
    bars = minutes(start, 30)
    installation.store.add_bars(BarBatch("BTC/USDT", bars[:20], bars[:20, OPEN_TIME] + 60.0, utc(start)))
    known = start + np.array([600.0, 1200.0, 1230.0])
    client = RecordingClient()
    send_live_bars(client, installation, [tail_of(bars, (books_known(known), None))])
    ((bars_sent, books, _),) = client.sent
    assert (len(bars_sent), books.known.tolist()) == (10, [start + 1230.0])


def test_a_file_with_no_history_before_those_days_is_refused_with_its_length(installation, tmp_path):
    with pytest.raises(NotEnoughData, match=r"BTC/USDT: .*bars.parquet has 96 usable bars.*Give a longer file"):
        live_tail(installation, offer(recorded(tmp_path, days=1)))


def test_the_tails_of_all_markets_are_sent_close_by_close_in_one_call_each(installation):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0, ("A/USD", "B/USD"))
    client = RecordingClient()
    tails = [tail_of(minutes(start, 45), symbol="A/USD"), tail_of(minutes(start + 900.0, 45), symbol="B/USD")]
    answers = send_live_bars(client, installation, tails)
    assert {symbol: len(each) for symbol, each in answers.items()} == {"A/USD": 3, "B/USD": 3}
    assert [list(each) for each in client.closes] == [["A/USD"], ["A/USD", "B/USD"], ["A/USD", "B/USD"], ["B/USD"]]
    assert [len(set(each.values())) for each in client.closes] == [1, 1, 1, 1]  # nobody sees another's later bar
    assert [each[1:] for each in client.requested] == [tuple(each) for each in client.closes]


def test_a_market_whose_bars_are_refused_is_left_out_and_the_only_one_is_an_error(installation, progress_lines):
    start = 1_704_067_200.0
    snapshot_until(installation, start - 60.0, ("A/USD", "B/USD"))
    tails = [tail_of(minutes(start, 45), symbol=symbol) for symbol in ("A/USD", "B/USD")]
    client = RecordingClient(refused=("B/USD",))
    answers = send_live_bars(client, installation, tails)
    assert {symbol: len(each) for symbol, each in answers.items()} == {"A/USD": 3, "B/USD": 0}
    assert "B/USD: the service refused it: no such bar; the turn goes on without it" in progress_lines()
    assert len(client.sent) == 4  # once, and never again
    with pytest.raises(InputError, match="B/USD: the service refused it"):
        send_live_bars(RecordingClient(refused=("B/USD",)), installation, tails[1:])


@pytest.mark.parametrize(
    ("spans", "cut"),
    [
        ({"A": (0, 40), "B": (0, 40)}, 27),
        ({"A": (0, 40), "B": (0, 43)}, 27),  # both live at 30: the earliest
        ({"A": (0, 20), "B": (0, 43)}, 30),  # A stopped before: it holds back nobody, and has no tail
    ],
)
def test_the_histories_of_all_markets_end_at_one_moment(installation, spans, cut):
    start = 1_704_067_200.0
    tails = [
        replace(tail_of(minutes(start + 86_400.0 * a, 1440 * (b - a))), symbol=s, cut=start + 86_400.0 * (b - 13))
        for s, (a, b) in spans.items()
    ]
    assert common_cut(tails) == start + 86_400.0 * cut
    assert common_cut([*tails, replace(tails[0], cut=start, begun=True)]) == start


def test_a_market_that_cannot_be_used_is_left_out_of_the_turn_by_name(installation, tmp_path):
    paths = {}
    for name, days in (("long", 40), ("short", 5)):
        (tmp_path / name).mkdir()
        paths[name] = recorded(tmp_path / name, days)
    offers = [offer(paths["long"]), offer(paths["short"], symbol="A/USD"), offer("none.csv", symbol="B/USD")]
    tails, left_out = live_tails(installation, offers)
    assert (list(tails), list(left_out)) == (["BTC/USDT"], ["A/USD", "B/USD"])
    assert left_out["A/USD"].startswith("A/USD: ")
    with pytest.raises(NotEnoughData, match=r"none of 2 markets is usable: A/USD: .*; B/USD: "):
        live_tails(installation, offers[1:])


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
    span = {"first": "2024-03-05T00:00:00+00:00", "last": "2024-03-15T00:00:00+00:00"}
    old = {"symbol": "EUR/USD", "timeframe": "1h", "file": "1h.parquet", **span}
    for manifest, grid in ((old | {"grid": stated.to_dict()}, stated), (old, Grid("1h", CALENDARS["forex"]))):
        (data / "manifest.json").write_text(json.dumps(manifest))
        assert installation.base_grid() == grid
