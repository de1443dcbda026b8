"""The four feeds: each delivers every close once, in time order, and goes on where the store ends."""

import socket

import numpy as np
import pytest
from support.feed_service import MINUTES, QUARTERS, minutes
from support.recorded_exchange import START, RecordedExchange, VenueScript, made_bars

from pipelines.contracts import OPEN_TIME, ContextFeed, utc
from pipelines.data.feeds import FEEDS, FeedMarket, FeedRequest, make_feed
from pipelines.data.readers.exchange import Backfill
from pipelines.data.simulator.latent import DESIGN
from pipelines.data.simulator.stream import SimulatedStream
from pipelines.errors import BadValues, UnknownName
from pipelines.params import ExchangeParams
from pipelines.settings import load_params

T = 1_704_067_200.0  # a midnight
A, B = "BTC/USDT", "ETH/USDT"


def market(symbol, newest):
    """Return a market of minutes that decides every quarter hour."""
    return FeedMarket(symbol, MINUTES, QUARTERS, newest)


def some(stream, n):
    """Return the next n closes."""
    return [next(stream) for _ in range(n)]


def test_an_unknown_feed_is_refused_with_the_known_ones_and_each_says_what_it_lacks():
    with pytest.raises(UnknownName, match=r"no feed 'fax'; known: simulator, files, push, exchange"):
        make_feed("fax", FeedRequest({}))
    for name in FEEDS:
        with pytest.raises(BadValues, match=f"the feed '{name}' needs"):
            make_feed(name, FeedRequest({}))


# ---- files


def recorded(**bars):
    """Return a feed of recorded bars by symbol, after `T`."""
    markets = {symbol: market(symbol, T - 60.0) for symbol in (A, B)}
    rates = ContextFeed(np.array([T - 1.0, T + 10.0, T + 1900.0]), np.array([2, 2, 2]), np.arange(3.0))
    return make_feed("files", FeedRequest(markets, load=lambda symbol: (bars[symbol[:3]], (None, rates))))


def test_a_file_goes_on_after_its_history_and_ends():
    feed = recorded(BTC=minutes(T - 1800.0, 60), ETH=minutes(T - 1800.0, 60))
    closes = list(feed.stream([A, B]))
    assert [close for close, _ in closes] == [T + 900.0, T + 1800.0]
    assert [{s: len(sent.bars) for s, sent in parts.items()} for _, parts in closes] == [{A: 15, B: 15}] * 2
    assert [parts[A].feed and parts[A].feed.value.tolist() for _, parts in closes] == [[1.0], None]


def test_markets_that_close_at_other_times_come_at_theirs():
    feed = recorded(BTC=minutes(T, 30), ETH=minutes(T + 900.0, 30))
    assert [(close - T, list(parts)) for close, parts in feed.stream([A, B])] == [
        (900.0, [A]),
        (1800.0, [A, B]),
        (2700.0, [B]),
    ]


def test_the_gap_of_a_file_is_filled_from_the_file():
    sent = recorded(BTC=minutes(T - 1800.0, 60), ETH=minutes(T, 1)).backfill(A, T - 600.0, T + 300.0)
    assert sent.bars[[0, -1], OPEN_TIME].tolist() == [T - 600.0, T + 240.0]


# ---- push


def pushed(stored, newest=T - 60.0):
    """Return the stream of a push feed over bars that a list of arrays holds."""

    def after(symbol, moment):
        bars = np.concatenate(stored)
        return bars[bars[:, OPEN_TIME] > moment]

    return make_feed("push", FeedRequest({A: market(A, newest)}, stored=after)).stream([A])


def test_a_pushed_bar_closes_when_its_last_minute_is_stored():
    stored = [minutes(T - 900.0, 15)]
    stream = pushed(stored)
    assert next(stream) is None
    stored.append(minutes(T, 14))
    assert next(stream) is None
    stored.append(minutes(T + 840.0, 1))
    close, parts = next(stream)
    assert (close, len(parts[A].bars)) == (T + 900.0, 15)
    assert next(stream) is None


def test_of_several_pushed_closes_the_newest_is_delivered_and_a_later_minute_ends_one_that_lacks_its_last():
    stored = [minutes(T, 44)]
    stream = pushed(stored)
    assert next(stream)[0] == T + 1800.0
    assert next(stream) is None
    stored.append(minutes(T + 2700.0, 1))
    assert next(stream)[0] == T + 2700.0


def test_a_push_feed_that_starts_within_a_bar_delivers_it():
    stored = [minutes(T, 8)]
    stream = pushed(stored, newest=T + 420.0)
    assert next(stream) is None
    stored.append(minutes(T + 480.0, 7))
    assert next(stream)[0] == T + 900.0


# ---- simulator


@pytest.fixture(scope="module")
def spec():
    return load_params().simulator.model_copy(update={"history_days": 2, "live_days": 1, "drift_every_days": None})


def simulated(spec, newest, states=None):
    """Return the feed of two simulated markets."""
    markets = {s: market(s, at) for s, at in newest.items()}
    return make_feed("simulator", FeedRequest(markets, spec=spec, states=states))


def test_the_simulated_market_goes_on_byte_for_byte_also_after_a_restart(spec, tmp_path):
    names = ["SIM/USDT", "SIMB/USDT"]
    end = spec.start.timestamp() + 2 * 86_400.0
    whole = SimulatedStream(spec, DESIGN, names)
    whole.skip_to(utc(end))
    piece = whole.next(1440 + 60)
    closes = some(simulated(spec, dict.fromkeys(names, end - 60.0), tmp_path).stream(names), 100)
    assert [close for close, _ in closes] == [end + 900.0 * (i + 1) for i in range(100)]
    for name in names:
        bars = np.concatenate([parts[name].bars for _, parts in closes])
        np.testing.assert_array_equal(bars, piece[name].bars)
        books = np.concatenate([parts[name].books.known for _, parts in closes if parts[name].books is not None])
        np.testing.assert_array_equal(books, piece[name].books.known)
    assert list(tmp_path.glob("*.npz"))  # saved at the end of the market day
    again = some(simulated(spec, dict.fromkeys(names, end + 89_100.0 - 60.0), tmp_path).stream(names), 1)
    np.testing.assert_array_equal(again[0][1]["SIM/USDT"].bars, closes[99][1]["SIM/USDT"].bars)


def test_a_simulated_market_that_lacks_bars_is_filled_to_the_furthest(spec):
    end = spec.start.timestamp() + 2 * 86_400.0
    feed = simulated(spec, {"SIM/USDT": end + 900.0 - 60.0, "SIMB/USDT": end - 60.0})
    sent = feed.backfill("SIMB/USDT", end, end + 900.0)
    assert sent.bars[:, OPEN_TIME].tolist() == (end + 60.0 * np.arange(15)).tolist()
    assert next(feed.stream(["SIM/USDT", "SIMB/USDT"]))[0] == end + 1800.0


# ---- exchange


@pytest.fixture(autouse=True)
def no_other_host(monkeypatch):
    """A name or an address other than this machine's is refused before a packet leaves."""
    resolve = socket.getaddrinfo

    def only_here(host, *args, **kwargs):
        assert host in ("127.0.0.1", "localhost"), f"a test requested {host}"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    monkeypatch.setenv("NO_PROXY", "*")


class Clock:
    """Tell a time that the test sets, to the feed and to the exchange."""

    def __init__(self, at):
        self.at = at

    def __call__(self):
        return self.at


def test_an_exchange_fills_its_gap_delivers_what_closes_and_fails_over(tmp_path):
    bars, clock = made_bars(200), Clock(START + 60.0 * 32)
    venues = {"binance": VenueScript(bars, dead_after=3), "coinbase": VenueScript(bars)}
    exchange = RecordedExchange(clock.at, **venues)
    params = ExchangeParams(venues=("binance", "coinbase"), timeframe="1m", silence_bars=60)
    plan = Backfill(params, utc(START), tmp_path, exchange.url, sleep=lambda seconds: None)
    feed = make_feed("exchange", FeedRequest({A: market(A, START - 60.0)}, plan=plan, now=clock))
    stream = feed.stream([A])
    try:
        closes = some(stream, 2)
        assert [close for close, _ in closes] == [START + 900.0, START + 1800.0]  # the gap
        assert next(stream) is None
        for minute in (45, 60, 75):
            clock.at = exchange.clock = START + 60.0 * minute + 3.0
            closes.append(next(stream))
            assert closes[-1][0] == START + 60.0 * minute
            assert next(stream) is None
        sent = np.concatenate([parts[A].bars for _, parts in closes])
        np.testing.assert_array_equal(sent[:, :6], bars[:75, :6])
        assert {request.venue for request in exchange.candle_requests()} == {"binance", "coinbase"}
        for script in exchange.venues.values():
            script.dead_after = 0
        clock.at = exchange.clock = START + 60.0 * 90 + 3.0
        assert next(stream) is None
        assert "503" in feed.fault or "down" in feed.fault
        exchange.venues["coinbase"].dead_after = None
        assert next(stream)[0] == START + 60.0 * 90
        assert feed.fault is None
    finally:
        exchange.close()


def test_a_minute_without_a_trade_delays_its_close_by_the_grace_alone(tmp_path):
    bars, clock = made_bars(40), Clock(START + 60.0 * 15 + 3.0)
    exchange = RecordedExchange(clock.at, binance=VenueScript(np.delete(bars, 14, axis=0)))
    params = ExchangeParams(venues=("binance",), timeframe="1m", silence_bars=60)
    plan = Backfill(params, utc(START), tmp_path, exchange.url, sleep=lambda seconds: None)
    stream = make_feed("exchange", FeedRequest({A: market(A, START - 60.0)}, plan=plan, now=clock)).stream([A])
    try:
        assert next(stream) is None
        clock.at = exchange.clock = START + 60.0 * 15 + 31.0
        close, parts = next(stream)
        assert (close, len(parts[A].bars)) == (START + 900.0, 14)
    finally:
        exchange.close()
