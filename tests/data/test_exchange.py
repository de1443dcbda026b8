"""Backfill against a recorded exchange on this machine: nothing lost, nothing doubled, whatever the exchange does."""

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from support.recorded_exchange import (
    START,
    RecordedExchange,
    VenueScript,
    broken,
    doubled,
    half,
    hang_up,
    late,
    made_bars,
    maintenance,
    nothing,
    out_of_order,
    too_many,
)

from bellwether.cli.options import day_or_moment
from flows.support.data_writer import write_snapshot
from flows.support.installation import Installation, now
from flows.support.live_feed import live_tail
from flows.support.market_access import MarketOffer, days_ago, market_source, requested_since
from pipelines.contracts import CLOSE, OPEN_TIME, TAKER_BUY, TRADES, utc
from pipelines.data.quality import assess
from pipelines.data.readers import files
from pipelines.data.readers.exchange import Backfill
from pipelines.data.readers.pages import Page, read_page, write_page
from pipelines.data.readers.venues import MAX_WAIT_S, Venue
from pipelines.data.schemas import to_frame, to_matrix
from pipelines.data.sources import check_request, make_source
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, BadValues, NotEnoughData, UnknownName, UnreadableFile, VenueDown
from pipelines.market_params import ExchangeParams
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store

MINUTES = Grid("1m")

DATA = Path(__file__).parents[2] / "../shared/data"
N = 3500
SINCE = utc(START)
NOW = START + 60 * N + 30  # in the middle of the candle after bar N
AS_OF = utc(NOW)
OHLCV = slice(0, 6)


@pytest.fixture(autouse=True)
def no_other_host(monkeypatch):
    """A name or an address other than this machine's is refused before a packet leaves."""
    resolve = socket.getaddrinfo

    def only_here(host, *args, **kwargs):
        assert host in ("127.0.0.1", "localhost"), f"a test requested {host}"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def exchange():
    """Start recorded exchanges with `exchange(binance=VenueScript(...), ...)`; the last got no unrecorded request."""
    running = []

    def start(clock=NOW, **venues):
        running.append(RecordedExchange(clock, **venues))
        return running[-1]

    yield start
    for one in running:
        one.close()
        assert one.strays == []


@pytest.fixture
def source(tmp_path):
    """A source that keeps its pages in one folder; `waits` is every pause it wanted, and it waits for none."""

    def make(recorded, venues=("binance",), since=SINCE, pause_ms=0, say=lambda line: None, silence_bars=60):
        params = ExchangeParams(venues=list(venues), timeframe="1m", silence_bars=silence_bars)
        waits = []
        plan = Backfill(params, since, tmp_path / "pages", recorded.url, pause_ms, say, waits.append)
        made = make_source("exchange", plan=plan)
        made.waits = waits
        return made

    return make


def bars_of(source, as_of=AS_OF, symbol="BTC/USDT"):
    return to_matrix(source.fetch(symbol, as_of, None))


def with_open_candle(bars):
    """The recording and one candle more, whose values are those of a moment, not of a minute."""
    return np.vstack([bars, [bars[-1, 0] + 60.0, 1.0, 2.0, 0.5, 1.5, 0.001, 1.0, 0.0005, np.nan]])


def assert_equal_bit_for_bit(got, recorded):
    assert got.shape == recorded.shape
    assert got.tobytes() == np.ascontiguousarray(recorded).tobytes()


def test_the_whole_recording_comes_bit_for_bit_with_one_request_a_page(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(with_open_candle(recording)))
    assert_equal_bit_for_bit(bars_of(source(recorded)), recording)
    assert len(recorded.candle_requests()) == 4
    assert len(recorded.requests) == 6  # and one each for markets and time


@pytest.mark.skipif(not DATA.is_dir(), reason="no recorded data next to the repository")
def test_recorded_bitcoin_minutes_come_bit_for_bit(exchange, source):
    taken = datetime(2026, 1, 1, tzinfo=UTC)
    recording = to_matrix(files.read(DATA / "candles/binance_spot_btcusdt_1m_2025h1.parquet", taken).frame[:4321])
    recorded = exchange(clock=recording[-1, 0] + 75.0, binance=VenueScript(recording))
    assert_equal_bit_for_bit(bars_of(source(recorded), as_of=utc(recording[-1, 0] + 60)), recording)


def test_coinbase_gives_prices_and_volume_and_no_counts_of_trades(exchange, source):
    recording = made_bars(1000)
    recorded = exchange(clock=START + 60 * 1000 + 30, coinbase=VenueScript(with_open_candle(recording)))
    got = bars_of(source(recorded, ["coinbase"]), as_of=utc(START + 60 * 1000))
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:, OHLCV]), recording[:, OHLCV])
    assert np.isnan(got[:, [TRADES, TAKER_BUY]]).all()
    assert len(recorded.candle_requests()) == 4  # 300 candles a page


def test_hyperliquid_gives_its_perpetual_where_it_has_no_spot_market_and_that_is_recorded(exchange, source):
    recording = made_bars(400)
    venue_script = VenueScript(with_open_candle(recording), symbol="BTC/USDC")
    made = source(exchange(clock=START + 60 * 400 + 30, hyperliquid=venue_script), ["hyperliquid"])
    got = bars_of(made, as_of=utc(START + 60 * 400), symbol="BTC/USDC")
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:, OHLCV]), recording[:, OHLCV])
    assert made.describe()["segments"][0]["market"] == "BTC/USDC:USDC"


FAULTS = {
    "429 without a word": ({2: too_many("")}, 1),
    "429 with Retry-After": ({1: too_many("3"), 2: too_many("3")}, 2),
    "a burst of 5xx": ({2: broken(502), 3: broken(503), 4: broken(500), 5: broken(504)}, 4),
    "a connection reset in the middle": ({3: hang_up}, 1),
    "an empty page": ({2: nothing}, 1),
    "an empty last page": ({4: nothing}, 1),
    "half a page": ({1: half, 3: half}, 1),
    "a page without its first candles": ({2: late}, 1),
    "overlapping pages, each candle twice": ({1: doubled, 2: doubled, 3: doubled, 4: doubled}, 0),
    "candles in any order": ({1: out_of_order, 2: out_of_order}, 0),
    "a maintenance page": ({2: maintenance}, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_bar_is_lost_or_doubled_by(fault, exchange, source):
    recording = made_bars(N)
    faults, more = FAULTS[fault]
    recorded = exchange(binance=VenueScript(with_open_candle(recording), faults=faults))
    assert_equal_bit_for_bit(bars_of(source(recorded)), recording)
    assert len(recorded.candle_requests()) == 4 + more


def test_a_page_that_says_maintenance_is_no_empty_page(exchange, source):
    recording = made_bars(1000)
    venue_script = VenueScript(recording, faults={2: maintenance, 3: maintenance})
    made = source(exchange(clock=START + 60 * 1000 + 30, coinbase=venue_script), ["coinbase"])
    got = bars_of(made, as_of=utc(START + 60 * 1000))
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:, OHLCV]), recording[:, OHLCV])


def test_an_exchange_that_gives_fewer_candles_than_asked_is_asked_on(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(recording, most=500))
    assert_equal_bit_for_bit(bars_of(source(recorded)), recording)
    assert len(recorded.candle_requests()) == 7


def test_it_waits_as_long_as_retry_after_says_and_else_twice_as_long_each_time(exchange, source):
    faults = {1: too_many("7"), 2: broken(), 3: broken(), 5: too_many("9", status=418)}
    made = source(exchange(binance=VenueScript(made_bars(N), faults=faults)))
    bars_of(made)
    assert made.waits == [7.0, 2.0, 4.0, 9.0]


def test_a_ban_that_is_too_long_is_not_waited_for(exchange, source):
    recorded = exchange(binance=VenueScript(made_bars(N), faults={1: too_many("86400", status=418)}))
    made = source(recorded)
    with pytest.raises(VenueDown, match=rf"binance demands a pause of 86,400 s, limit {MAX_WAIT_S:.0f} s"):
        bars_of(made)
    assert (made.waits, len(recorded.candle_requests())) == ([], 1)


def test_a_venue_that_refuses_is_not_asked_again(exchange, source):
    recorded = exchange(binance=VenueScript(made_bars(N), faults={1: broken(451)}))
    with pytest.raises(VenueDown, match="binance refuses 1m bars of BTC/USDT"):
        bars_of(source(recorded))
    assert len(recorded.candle_requests()) == 1


@pytest.mark.parametrize(("venue", "most_requests"), [("binance", 6), ("coinbase", 30)])
def test_a_hole_in_history_stays_a_hole_and_nothing_else_is_missing(venue, most_requests, exchange, source):
    recording = np.delete(made_bars(N), np.r_[700:1900, 2500], axis=0)
    recorded = exchange(**{venue: VenueScript(with_open_candle(recording))})
    got = bars_of(source(recorded, [venue]))
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:, OHLCV]), recording[:, OHLCV])
    assert len(recorded.candle_requests()) <= most_requests


@pytest.mark.parametrize(("venue", "most_requests"), [("binance", 2), ("coinbase", 20)])
def test_a_market_younger_than_what_is_asked_begins_with_its_first_bar(venue, most_requests, exchange, source):
    recording = made_bars(500)
    early = SINCE - timedelta(days=1000)
    recorded = exchange(clock=START + 60 * 500 + 30, **{venue: VenueScript(recording)})
    got = bars_of(source(recorded, [venue], since=early), as_of=utc(START + 60 * 500))
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:, OHLCV]), recording[:, OHLCV])
    assert len(recorded.candle_requests()) <= most_requests  # 4,800 windows of Coinbase are empty


def test_a_market_that_closed_long_ago_is_found_silent_in_few_requests(exchange, source):
    recorded = exchange(clock=NOW + 86400 * 900, coinbase=VenueScript(made_bars(300)))
    with pytest.raises(VenueDown, match=r"coinbase answers, but has none of the last 1,299,200 bars"):
        bars_of(source(recorded, ["coinbase"]), as_of=utc(NOW + 86400 * 900))
    assert len(recorded.candle_requests()) <= 30


def test_an_interrupted_backfill_goes_on_at_the_first_missing_bar(exchange, source):
    recording = made_bars(N)
    broken_off = exchange(binance=VenueScript(recording, dead_after=2))
    with pytest.raises(VenueDown, match="2,000 bars"):
        bars_of(source(broken_off))
    healthy = exchange(binance=VenueScript(recording))
    assert_equal_bit_for_bit(bars_of(source(healthy)), recording)
    assert [request.since - START for request in healthy.candle_requests()] == [60 * 2000, 60 * 3000]


def test_a_later_run_asks_only_from_the_newest_short_page_on(exchange, source):
    recording = made_bars(N)
    bars_of(source(exchange(binance=VenueScript(recording))), as_of=utc(START + 60 * 1200))
    later = exchange(binance=VenueScript(recording))
    assert_equal_bit_for_bit(bars_of(source(later)), recording)
    assert [request.since - START for request in later.candle_requests()] == [60 * 1000, 60 * 2000, 60 * 3000]
    assert [int(request.query["limit"]) for request in later.candle_requests()] == [1000, 1000, 500]


def test_a_bar_that_was_stored_stays_when_the_venue_forgets_it(exchange, source):
    recording = made_bars(N)
    bars_of(source(exchange(binance=VenueScript(recording))), as_of=utc(START + 60 * 3200))
    forgetful = exchange(binance=VenueScript(np.delete(recording, 3100, axis=0)))
    assert_equal_bit_for_bit(bars_of(source(forgetful)), recording)


def test_the_open_candle_is_not_stored_for_a_later_run_either(exchange, source):
    recording = made_bars(N)
    venue_script = VenueScript(
        with_open_candle(recording[:1000]), most=5000, heeds_limit=False
    )  # one more than a page holds
    bars_of(source(exchange(clock=START + 60 * 1000 + 30, binance=venue_script)), as_of=utc(START + 60 * 1000 + 30))
    assert_equal_bit_for_bit(bars_of(source(exchange(binance=VenueScript(recording)))), recording)


def test_a_short_page_is_not_lost_when_its_venue_is_gone(exchange, source):
    recording = made_bars(N)
    bars_of(source(exchange(binance=VenueScript(recording))), as_of=utc(START + 60 * 3200))
    other = exchange(coinbase=VenueScript(recording))
    got = bars_of(source(other, ["binance", "coinbase"]))
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:, OHLCV]), recording[:, OHLCV])
    assert np.isfinite(got[:3200, TRADES]).all()


def test_what_is_stored_is_not_requested_again(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(recording))
    made = source(recorded)
    bars_of(made)
    before = len(recorded.requests)
    again = source(recorded)
    assert_equal_bit_for_bit(bars_of(again, as_of=utc(START + 60 * 2222)), recording[:2222])
    assert_equal_bit_for_bit(bars_of(again), recording)
    assert len(recorded.requests) == before
    assert again.describe() == made.describe()


def test_an_earlier_beginning_asks_only_for_what_lies_before(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(recording))
    bars_of(source(recorded, since=utc(START + 60 * 2000)))
    before = len(recorded.candle_requests())
    assert_equal_bit_for_bit(bars_of(source(recorded)), recording)
    assert [request.since - START for request in recorded.candle_requests()[before:]] == [0, 60 * 1000]


def test_the_next_venue_goes_on_at_the_first_missing_bar_and_the_seam_is_measured(exchange, source):
    one, two = made_bars(N), made_bars(N)
    two[:, 1:5] = np.round(two[:, 1:5] * 1.001, 2)  # 10 bps dearer
    recorded = exchange(binance=VenueScript(one, dead_after=2), coinbase=VenueScript(two))
    lines = []
    made = source(recorded, ["binance", "coinbase"], say=lines.append)
    got = bars_of(made)
    assert_equal_bit_for_bit(np.ascontiguousarray(got[:2000]), one[:2000])
    assert_equal_bit_for_bit(np.ascontiguousarray(got[2000:, OHLCV]), two[2000:, OHLCV])
    first, second = made.describe()["segments"]
    assert (first["venue"], first["bars"], first["last"]) == ("binance", 2000, utc(START + 60 * 1999).isoformat())
    assert (second["venue"], second["bars"], second["first"]) == ("coinbase", 1500, utc(START + 60 * 2000).isoformat())
    [change] = made.describe()["venue_changes"]
    assert (change["from"], change["to"], change["at"]) == ("binance", "coinbase", second["first"])
    assert change["close_difference_bps"] == pytest.approx((two[1999, CLOSE] / one[1999, CLOSE] - 1) * 1e4, abs=1e-3)
    assert min(request.since for request in recorded.candle_requests("coinbase")) == START + 60 * 1999
    assert any("binance failed at 2024-01-02 09:20" in line for line in lines)


def test_bars_of_two_venues_are_kept_with_the_venue_of_each(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(recording, dead_after=2), coinbase=VenueScript(recording))
    once = source(recorded, ["binance", "coinbase"])
    bars_of(once)
    before = len(recorded.requests)
    again = source(recorded, ["binance", "coinbase"])
    bars_of(again)
    assert len(recorded.requests) == before
    assert again.describe() == once.describe()
    assert json.loads(json.dumps(again.describe())) == again.describe()


def test_a_venue_that_answers_but_fell_silent_is_passed_over(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(recording[:2000]), coinbase=VenueScript(recording))
    made = source(recorded, ["binance", "coinbase"])
    assert_equal_bit_for_bit(np.ascontiguousarray(bars_of(made)[:, OHLCV]), recording[:, OHLCV])
    assert [segment["bars"] for segment in made.describe()["segments"]] == [2000, 1500]


def test_a_candle_that_is_late_ends_the_series_and_is_no_failure(exchange, source):
    recording = made_bars(N)
    recorded = exchange(binance=VenueScript(recording[: N - 2]), coinbase=VenueScript(recording))
    assert len(bars_of(source(recorded, ["binance", "coinbase"]))) == N - 2
    assert recorded.candle_requests("coinbase") == []


@pytest.mark.parametrize("venue", ["binance", "coinbase"])
@pytest.mark.parametrize("fast_s", [0, 45, 7200])
def test_the_open_candle_is_never_taken_however_fast_our_clock_is(venue, fast_s, exchange, source):
    recording = made_bars(N)
    recorded = exchange(**{venue: VenueScript(with_open_candle(recording))})
    frame = source(recorded, [venue]).fetch("BTC/USDT", AS_OF + timedelta(seconds=fast_s), None)
    assert frame["open_time"].iloc[-1] == utc(START + 60 * (N - 1))
    assert (frame["known_at"] <= utc(NOW)).all()


def test_a_candle_that_closed_this_second_may_still_be_corrected_and_is_left_for_later(exchange, source):
    recorded = exchange(clock=START + 60 * N + 1, binance=VenueScript(made_bars(N)))
    assert len(bars_of(source(recorded), as_of=utc(START + 60 * N + 1))) == N - 1


def test_requests_keep_the_distance_that_was_set(exchange, source, monkeypatch):
    left, remember = (
        [],
        Venue._remember_response,
    )  # ms, where requests leave: one that is held up on its way shortens the gap behind it

    def on_response(venue, response, *rest, **more):
        left.append(venue._client.lastRestRequestTimestamp)
        remember(venue, response, *rest, **more)

    monkeypatch.setattr(Venue, "_remember_response", on_response)
    recorded = exchange(binance=VenueScript(made_bars(N), most=500))
    bars_of(source(recorded, pause_ms=150))
    assert len(recorded.requests) == len(left) == 9
    assert np.diff(left).min() >= 149  # the clock may be set right meanwhile


def test_when_every_venue_is_down_it_says_which_how_far_and_what_to_do(exchange, source):
    recorded = exchange(binance=VenueScript(made_bars(N), dead_after=1))
    with pytest.raises(VenueDown) as raised:
        bars_of(source(recorded, ["binance", "coinbase", "hyperliquid"]))
    text = str(raised.value)
    for venue in ("binance", "coinbase", "hyperliquid"):
        assert f"{venue} does not give" in text
    for part in ("BTC/USDT", "from 2024-01-01 16:40", "1,000 bars", "the same command continues", "HTTPS_PROXY"):
        assert part in text
    assert "https" not in text
    assert "503 Service Unavailable" in text
    kept = exchange(binance=VenueScript(made_bars(N)))
    assert len(bars_of(source(kept))) == N
    assert kept.candle_requests()[0].since == START + 60 * 1000


def test_a_symbol_that_a_venue_lacks_is_asked_of_the_next(exchange, source):
    recording = made_bars(300)
    recorded = exchange(
        clock=START + 60 * 300 + 30, binance=VenueScript(recording, symbol="ETH/USDT"), coinbase=VenueScript(recording)
    )
    made = source(recorded, ["binance", "coinbase"])
    assert len(bars_of(made, as_of=utc(START + 60 * 300))) == 300
    with pytest.raises(UnknownName, match=r"no venue has ETH/USD.*binance has no ETH/USD; near it: ETH/USDT"):
        bars_of(made, symbol="ETH/USD")
    for symbol in ("AAPL", "ETH/USDT:USDT-240628"):  # what no spot venue lists is refused the same way
        with pytest.raises(UnknownName, match=f"no venue has {symbol}"):
            bars_of(made, symbol=symbol)


def test_rows_that_cannot_be_are_left_for_quality_to_quarantine(exchange, source):
    recording = made_bars(300)
    recording[100, 2] = 1.0  # high under low
    recorded = exchange(clock=START + 60 * 300 + 30, binance=VenueScript(recording))
    frame = source(recorded).fetch("BTC/USDT", utc(START + 60 * 300), None)
    report = assess(frame, MINUTES, AS_OF)
    assert (len(report.clean), report.quarantined["reason"].tolist()) == (299, ["OHLC_ORDER"])


@pytest.mark.parametrize(
    ("change", "symbol", "error", "message"),
    [
        ({"venues": ["binanse"]}, "BTC/USDT", UnknownName, "no exchange 'binanse' .*near it: binance"),
        (
            {"timeframe": "4h", "venues": ["binance", "coinbase"]},
            "BTC/USDT",
            UnknownName,
            "coinbase has no bars of '4h'",
        ),
        ({"timeframe": "7m"}, "BTC/USDT", UnknownName, "no timeframe '7m'"),
        ({}, None, BadValues, "--symbol BTC/USDT"),
    ],
)
def test_what_no_venue_could_give_is_refused_before_a_request(change, symbol, error, message, tmp_path):
    params = ExchangeParams(**{"venues": ["binance"], "timeframe": "1m", "silence_bars": 60} | change)
    with pytest.raises(error, match=message):
        check_request("exchange", None, symbol, None, Backfill(params, SINCE, tmp_path, "http://127.0.0.1:9/"))


def test_an_exchange_reads_no_file_and_needs_a_plan(tmp_path):
    with pytest.raises(BadValues, match="reads no file"):
        make_source("exchange", path=tmp_path / "a.parquet")
    with pytest.raises(BadValues, match="Backfill"):
        make_source("exchange")


def test_a_page_that_release_050_stored_is_used_and_its_spread_is_not_recorded(tmp_path):
    page = Page("binance", "BTCUSDT", START, START + 600, made_bars(10))
    write_page(page, tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    table = parquet.read_table(path).drop_columns("half_spread")
    parquet.write_table(table.replace_schema_metadata(table.schema.metadata | {b"bellwether.schema": b"page/1"}), path)
    np.testing.assert_array_equal(read_page(path).bars, page.bars)


def test_a_page_comes_back_as_it_went_and_a_torn_one_is_refused(tmp_path):
    bars = made_bars(10)
    bars[3, TRADES] = np.nan
    page = Page("binance", "BTC/USDT", START - 120, START + 600, bars, 1.25)
    write_page(page, tmp_path)
    [path] = tmp_path.iterdir()
    again = read_page(path)
    assert again.bars.tobytes() == bars.tobytes()
    assert (again.start, again.end, again.seam_bps) == (START - 120, START + 600, 1.25)
    cut = again.cut(START + 60, START + 180)
    assert (cut.start, cut.end, cut.bars[:, OPEN_TIME].tolist()) == (
        START + 60,
        START + 180,
        [START + 60.0, START + 120.0],
    )
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnreadableFile, match="Remove it: it is fetched again"):
        read_page(path)


STEP = 900
DAYS = 20


@pytest.fixture
def installation(exchange, tmp_path):
    """An installation whose exchange is recorded here, up to this minute."""
    midnight = days_ago(DAYS).timestamp()
    recording = made_bars(int((now().timestamp() - midnight) // STEP) + 1, start=midnight, step=STEP)
    recorded = exchange(clock=now().timestamp(), binance=VenueScript(recording))
    params = load_params()
    reached = params.data.exchange.model_copy(update={"timeframe": "15m"})
    params = params.model_copy(update={"data": params.data.model_copy(update={"exchange": reached})})
    opened = Installation(
        Settings(home=tmp_path, exchange_url=recorded.url), params, Store.open(f"sqlite:///{tmp_path}/store.db")
    )
    opened.recorded, opened.recording = recorded, recording
    yield opened
    opened.store.close()


BTC = MarketOffer(symbol="BTC/USDT", source="exchange", since=days_ago(DAYS))


def test_the_last_days_of_an_exchange_are_the_live_tail_and_the_history_before_costs_no_request(installation):
    found = live_tail(installation, BTC)
    cut, tail = utc(found.cut), found.live
    assert days_ago(installation.params.data.live_days + 1) <= cut <= days_ago(installation.params.data.live_days)
    assert_equal_bit_for_bit(
        tail, installation.recording[installation.recording[:, OPEN_TIME] >= cut.timestamp()][: len(tail)]
    )
    before = len(installation.recorded.requests)
    history = market_source(installation, BTC).fetch("BTC/USDT", cut, cut)
    assert len(history) == (cut - days_ago(DAYS)).total_seconds() / STEP
    assert len(installation.recorded.requests) == before


def test_what_an_exchange_did_while_no_service_ran_is_in_the_tail(installation):
    long_ago = installation.recording[:96]
    installation.store.add_bars(BarBatch("BTC/USDT", long_ago, long_ago[:, OPEN_TIME] + STEP, now()))
    report = assess(to_frame(long_ago, Grid("15m"), now()), Grid("15m"), now())
    write_snapshot(installation.workspace / "data", "BTC/USDT", report, {"source": "exchange"}, ingested_at=now())
    tail = live_tail(installation, BTC)
    assert tail.live[0, OPEN_TIME] == tail.cut == long_ago[-1, OPEN_TIME] + STEP


def test_too_little_to_have_a_history_is_refused(installation):
    with pytest.raises(NotEnoughData, match=r"exchange has .* no history before the last 12, which are for"):
        live_tail(installation, BTC.model_copy(update={"since": days_ago(2)}))


@pytest.mark.parametrize(
    ("source_name", "days", "since", "error", "message"),
    [
        ("files", 30, None, BadValues, "for --source exchange"),
        ("exchange", 30, SINCE, BadValues, "twice"),
        ("exchange", 12, None, BadTimes, "no history before the last 12 days"),
        ("exchange", None, datetime(2999, 1, 1, tzinfo=UTC), BadTimes, "no history"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused(source_name, days, since, error, message):
    with pytest.raises(error, match=message):
        requested_since(source_name, days, since, live_days=12)


def test_a_beginning_is_a_day_a_moment_or_so_many_days_ago():
    assert requested_since("exchange", 30, None, 12) == days_ago(30)
    assert requested_since("exchange", None, day_or_moment("2024-01-31"), 12) == datetime(2024, 1, 31, tzinfo=UTC)
    assert day_or_moment("2024-01-31T06:00+02:00") == datetime(2024, 1, 31, 4, tzinfo=UTC)
    assert requested_since("exchange", None, None, 12) is None
    for wrong in ("yesterday", "2024-13-01", "2024-01-31T06:00"):
        with pytest.raises(BadTimes, match="--since"):
            day_or_moment(wrong)
