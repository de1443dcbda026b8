"""A stream in pieces of any lengths, saved and loaded between them, is the market made whole, byte for byte."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipelines.contracts import OPEN_TIME
from pipelines.data.simulator import saved_state
from pipelines.data.simulator.market import simulate
from pipelines.data.simulator.stream import SimulatedStream
from pipelines.data.sources import SimulatorSource
from pipelines.errors import BadTimes, BadValues, UnknownName
from pipelines.market_params import FollowerParams, SimulatorParams

START = datetime(2024, 1, 1, 5, 7, tzinfo=UTC)  # within a quarter hour and a period of funding
SPEC = SimulatorParams(
    symbol="SIM/USDT", seed=7, start=START, history_days=2, live_days=1, drift_after_live_days=0, drift_every_days=1,
    start_price=40_000.0, vol_15m_bps=28.0, edge=0.8, book_every_minutes=15,
    followers=(
        FollowerParams(symbol="LATE/USDT", beta=0.7, lag_minutes=7, start_price=600.0),
        FollowerParams(symbol="WEAK/USDT", beta=0.6, edge=0.5, start_price=150.0),
    ),
)  # fmt: skip
SYMBOLS = ("SIM/USDT", "LATE/USDT", "WEAK/USDT")
DAY, WHOLE = 1440, 4320  # minutes


@pytest.fixture(scope="module")
def whole():
    return {symbol: simulate(SPEC, symbol=symbol) for symbol in SYMBOLS}


def content(bars, books, feed):
    """The bytes of each part of a market."""
    parts = {"bars": bars, "known": books.known, "levels": books.levels, "tape": books.tape}
    return {name: part.tobytes() for name, part in parts.items()} | {
        "funding": feed.known.tobytes() + feed.value.tobytes() + feed.field.tobytes()
    }


def joined(pieces):
    """Pieces of one market, one after the other, as one: bars, books and funding, each a list of arrays by name."""
    return {
        "bars": b"".join(p.bars.tobytes() for p in pieces),
        "known": b"".join(p.books.known.tobytes() for p in pieces),
        "levels": b"".join(p.books.levels.tobytes() for p in pieces),
        "tape": b"".join(p.books.tape.tobytes() for p in pieces),
        "funding": b"".join(p.feed.known.tobytes() for p in pieces)
        + b"".join(p.feed.value.tobytes() for p in pieces)
        + b"".join(p.feed.field.tobytes() for p in pieces),
    }


@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_the_whole_with_a_saved_state_between_any_two(seed, whole, tmp_path):
    rng = np.random.default_rng(seed)
    longest = (3, 40, 700, 3000)[seed]
    stream, pieces, made, loads = SimulatedStream(SPEC), {symbol: [] for symbol in SYMBOLS}, 0, 0
    until = WHOLE if longest > 3 else 300
    while made < until:
        minutes = min(int(rng.integers(1, longest + 1)), until - made)
        for symbol, piece in stream.next(minutes).items():
            pieces[symbol].append(piece)
        made += minutes
        if loads < 12 and rng.random() < 0.5:
            stream.save(tmp_path)
            stream, loads = SimulatedStream(SPEC), loads + 1
            assert stream.load(tmp_path)
            assert stream.moment == START + timedelta(minutes=made)
    assert loads > 0
    for symbol, market in whole.items():
        bars = market.bars[:made]
        n, k = (int(np.searchsorted(x.known, bars[-1, OPEN_TIME] + 60.0, "right")) for x in (market.books, market.feed))
        books, feed = market.books, market.feed
        expected = content(
            bars,
            type(books)(books.known[:n], books.levels[:n], books.tape[:n]),
            type(feed)(feed.known[:k], feed.field[:k], feed.value[:k]),
        )
        for name, found in joined(pieces[symbol]).items():
            assert found == expected[name], (symbol, name)


def test_it_goes_on_after_the_live_days_as_a_longer_market_would(whole):
    stream = SimulatedStream(SPEC, symbols=["WEAK/USDT"])
    stream.skip_to(START + timedelta(days=3, seconds=59))
    assert stream.moment == START + timedelta(days=3)
    piece = stream.next(DAY)["WEAK/USDT"]
    longer = simulate(SPEC.model_copy(update={"live_days": 2}), symbol="WEAK/USDT")
    assert piece.bars.tobytes() == longer.bars[WHOLE:].tobytes()
    assert len(piece.feed.known) == 3


def test_it_starts_from_the_state_that_the_source_saved_at_the_end_of_the_history(whole, tmp_path):
    SimulatorSource(SPEC).save_states(tmp_path)
    stream = SimulatedStream(SPEC.model_copy(update={"live_days": 30}))
    assert stream.load(tmp_path)
    assert stream.moment == stream.history_end == START + timedelta(days=2)
    for symbol, piece in stream.next(DAY).items():
        assert piece.bars.tobytes() == whole[symbol].bars[2 * DAY :].tobytes()


def test_a_market_that_was_added_is_made_up_to_the_moment_of_the_others(whole, tmp_path):
    fewer = SimulatedStream(SPEC.model_copy(update={"followers": ()}))
    fewer.skip_to(START + timedelta(hours=9))
    fewer.save(tmp_path)
    stream = SimulatedStream(SPEC)
    assert stream.load(tmp_path)
    for symbol, piece in stream.next(60).items():
        assert piece.bars.tobytes() == whole[symbol].bars[540:600].tobytes()


def test_the_state_of_another_market_is_not_read_and_a_broken_file_is_passed_over(tmp_path, caplog):
    stream = SimulatedStream(SPEC, symbols=["SIM/USDT"])
    stream.next(30)
    stream.save(tmp_path)
    stream.next(30)
    stream.save(tmp_path)
    assert not SimulatedStream(SPEC.model_copy(update={"seed": 8}), symbols=["SIM/USDT"]).load(tmp_path)
    assert not SimulatedStream(SPEC, symbols=["LATE/USDT"]).load(tmp_path)
    newest = list(saved_state.saved(stream.paths["SIM/USDT"], tmp_path).values())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert stream.load(tmp_path)
    assert stream.moment == START + timedelta(minutes=30)
    assert "no state of this market" in caplog.text


def test_old_states_go_but_the_oldest_and_one_before_a_moment_is_found(tmp_path):
    stream = SimulatedStream(SPEC, symbols=["SIM/USDT"])
    for _ in range(6):
        stream.next(10)
        stream.save(tmp_path, keep=2)
    path = stream.paths["SIM/USDT"]
    assert list(saved_state.saved(path, tmp_path)) == [10, 50, 60]
    assert stream.load(tmp_path, until=START + timedelta(minutes=59))
    assert stream.moment == START + timedelta(minutes=50)
    assert not stream.load(tmp_path, until=START)
    assert stream.moment == START + timedelta(minutes=50)
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 300_000


def test_what_a_stream_cannot_give_is_refused():
    stream = SimulatedStream(SPEC, symbols=["SIM/USDT"])
    stream.next(10)
    with pytest.raises(BadTimes, match="makes no minute twice"):
        stream.skip_to(START)
    with pytest.raises(BadTimes, match="no time zone"):
        stream.skip_to(datetime(2024, 1, 2))  # noqa: DTZ001
    with pytest.raises(BadValues, match="at least one"):
        stream.next(0)
    with pytest.raises(UnknownName, match="it makes SIM/USDT"):
        SimulatedStream(SPEC, symbols=["BTC/USDT"])
