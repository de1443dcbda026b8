"""Several simulated markets: correlated by beta, led by the leader, each a martingale of its own past without edge."""

from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pytest

from pipelines.contracts import CLOSE, OPEN, VOLUME
from pipelines.data.simulator.followers import own_market, symbols_of
from pipelines.data.simulator.market import DESIGN, simulate
from pipelines.data.simulator.market_path import drift_dates
from pipelines.data.sources import SimulatorSource
from pipelines.errors import BadValues, UnknownName
from pipelines.market_params import FollowerParams, SimulatorParams

LAG = 5
FOLLOWERS = (
    FollowerParams(symbol="NEAR/USDT", beta=0.8, start_price=2500.0),
    FollowerParams(symbol="LATE/USDT", beta=0.7, lag_minutes=LAG, start_price=600.0),
    FollowerParams(symbol="WEAK/USDT", beta=0.6, edge=0.5, start_price=150.0),
)
SPEC = SimulatorParams(
    symbol="SIM/USDT", followers=FOLLOWERS, seed=7, start=datetime(2024, 1, 1, tzinfo=UTC), history_days=40,
    live_days=0, drift_after_live_days=None, start_price=40_000.0, vol_15m_bps=28.0, edge=0.8,
)  # fmt: skip
LEADER, NEAR, LATE, WEAK = SYMBOLS = symbols_of(SPEC)
DAY = 1440


@cache
def made(symbol, **changes):
    """A read-only market that many tests share."""
    return simulate(SPEC.model_copy(update=changes), tape=False, symbol=symbol)


def moves(symbol, minutes, shift=0, **changes):
    """Log returns over so many minutes, from `shift` minutes on."""
    return np.diff(np.log(made(symbol, **changes).bars[shift::minutes, CLOSE]))


def correlation(one, other):
    n = min(len(one), len(other))
    return np.corrcoef(one[:n], other[:n])[0, 1]


def slope_t(x, y):
    """t statistic of the slope of y on x."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    rest = y - slope * x
    return slope / np.sqrt((rest @ rest) / (len(x) - 2) / (x @ x))


@pytest.mark.parametrize(
    ("one", "other", "shifts", "expected"),
    [
        (LEADER, NEAR, (0, 0), 0.8),
        (LEADER, WEAK, (0, 0), 0.6),
        (NEAR, WEAK, (0, 0), 0.8 * 0.6),
        (LEADER, LATE, (0, LAG), 0.7),  # moved back by its lag
        (LEADER, LATE, (0, 0), 0.7 * (15 - LAG) / 15),  # what of its quarter hour was the leader's same one
        (NEAR, LATE, (0, LAG), 0.8 * 0.7),
    ],
)
def test_quarter_hours_correlate_as_beta_says(one, other, shifts, expected):
    found = correlation(moves(one, 15, shifts[0]), moves(other, 15, shifts[1]))
    assert found == pytest.approx(expected, abs=0.04)


def test_a_late_market_follows_the_leader_by_its_lag_and_by_no_other():
    leader, late = moves(LEADER, 1), moves(LATE, 1)
    by_lag = [correlation(leader[10 - lag : len(leader) - 10 - lag], late[10:-10]) for lag in range(-10, 10)]
    assert np.argmax(by_lag) == 10 + LAG
    assert by_lag[10 + LAG] == pytest.approx(0.7, abs=0.05)
    assert np.abs(np.delete(by_lag, [9 + LAG, 10 + LAG, 11 + LAG])).max() < 0.03


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_without_edge_nothing_that_is_older_than_the_lag_predicts_a_market(symbol):
    market = made(symbol, edge=0.0)
    assert not market.truth.drift.any()
    opened = np.log(market.bars[:, OPEN])
    coming = (opened[30 + LAG :] - opened[15 + LAG : -15])[::15]  # a quarter hour, that long after the one known
    assert abs(slope_t(market.truth.pressure[15 + LAG : -15][::15], coming)) < 3
    for other in SYMBOLS:
        bars = made(other, edge=0.0).bars
        known = np.log(bars[14:, CLOSE] / bars[:-14, OPEN])[::15][: len(coming)]
        assert abs(slope_t(known, coming)) < 3, other


def test_the_leaders_newest_minutes_predict_a_late_market_and_no_market_on_time():
    leader = np.log(made(LEADER, edge=0.0).bars[:, CLOSE])
    for symbol, expected in ((LATE, 0.7 * np.sqrt(LAG / 15)), (NEAR, 0.0)):
        price = np.log(made(symbol, edge=0.0).bars[:, CLOSE])
        before, after = leader[LAG:-15] - leader[: -15 - LAG], price[LAG + 15 :] - price[LAG:-15]
        assert correlation(before[::15], after[::15]) == pytest.approx(expected, abs=0.05)


def test_each_has_its_own_edge_and_one_is_weaker():
    pressures = [made(symbol).truth.pressure for symbol in SYMBOLS]
    assert np.abs(np.corrcoef(pressures) - np.eye(len(SYMBOLS))).max() < 0.35  # 40 days of a half-life of three hours
    lift = [made(symbol).truth.drift / made(symbol).truth.pressure for symbol in SYMBOLS]
    np.testing.assert_allclose(lift[SYMBOLS.index(NEAR)], lift[0])
    np.testing.assert_allclose(lift[SYMBOLS.index(WEAK)], 0.5 * lift[0])
    assert [made(symbol).truth.edge for symbol in SYMBOLS] == [0.8, 0.8, 0.8, 0.4]


def test_regimes_are_common_and_volatility_and_turnover_alike():
    for symbol in SYMBOLS[1:]:
        assert made(symbol).truth.regime.tobytes() == made(LEADER).truth.regime.tobytes()
        assert moves(symbol, 15).std() == pytest.approx(moves(LEADER, 15).std(), rel=0.04)
        turnover = [(m.bars[:, VOLUME] * m.bars[:, CLOSE]).mean() for m in (made(symbol), made(LEADER))]
        ratio = [m.bars[-1, CLOSE] / m.bars[0, OPEN] for m in (made(symbol), made(LEADER))]
        assert 0.3 < turnover[0] / turnover[1] / (ratio[0] / ratio[1]) < 3


def test_a_market_does_not_depend_on_the_others_and_the_leader_not_on_its_followers():
    alone = simulate(SPEC.model_copy(update={"followers": (), "history_days": 2}), tape=False)
    assert alone.bars.tobytes() == made(LEADER).bars[: 2 * DAY].tobytes()
    fewer = SPEC.model_copy(update={"followers": FOLLOWERS[:0:-1], "history_days": 2})
    assert simulate(fewer, tape=False, symbol="weakusdt").bars.tobytes() == made(WEAK).bars[: 2 * DAY].tobytes()


def test_at_the_drift_dates_a_market_changes_and_changes_back():
    changes = {"history_days": 4, "live_days": 6, "drift_after_live_days": 0}
    for symbol in (LEADER, LATE):
        lasting, none = made(symbol, **changes), made(symbol, **changes | {"drift_after_live_days": None})
        turning = made(symbol, **changes, drift_every_days=2)
        assert turning.bars[: 6 * DAY].tobytes() == lasting.bars[: 6 * DAY].tobytes()
        ratio = turning.truth.drift / none.truth.drift
        drifted = np.repeat([False, False, True, False, True], 2 * DAY)
        np.testing.assert_allclose(ratio, np.where(drifted, DESIGN.drift_vol * DESIGN.drift_edge, 1.0))


def test_drift_dates_are_known_ahead():
    spec = SPEC.model_copy(update={"history_days": 4, "drift_after_live_days": 1, "drift_every_days": 3})
    until = SPEC.start + timedelta(days=11)
    assert drift_dates(spec, until) == [SPEC.start + timedelta(days=d) for d in (5, 8, 11)]
    lasting = spec.model_copy(update={"drift_every_days": None})
    assert drift_dates(lasting, until) == [SPEC.start + timedelta(days=5)]
    assert drift_dates(SPEC, until) == []


def test_a_symbol_that_is_not_made_or_made_twice_is_refused():
    with pytest.raises(UnknownName, match="SIM/USDT, NEAR/USDT, LATE/USDT, WEAK/USDT"):
        own_market(SPEC, DESIGN, "BTC/USDT")
    with pytest.raises(BadValues, match="NEAR/USDT is named 2 times"):
        symbols_of(SPEC.model_copy(update={"followers": (FOLLOWERS[0], FOLLOWERS[0])}))
    cheap = FollowerParams(symbol="CHEAP/USDT", start_price=1.0)
    with pytest.raises(BadValues, match="start_price of CHEAP/USDT in followers"):
        simulate(SPEC.model_copy(update={"followers": (cheap,)}), symbol="CHEAP/USDT")


def test_the_source_serves_every_symbol_and_makes_each_once():
    source = SimulatorSource(SPEC.model_copy(update={"history_days": 1}))
    assert source.symbols == SYMBOLS
    source.prepare()
    until = SPEC.start + timedelta(days=1)
    for symbol in SYMBOLS:
        market = source.market_of(symbol)
        assert market is source.market_of(symbol.lower())
        assert not market.bars.flags.writeable
        assert source.fetch(symbol, until, None)["close"].tolist() == market.bars[:, CLOSE].tolist()
        books, feed = source.records(symbol, until)
        assert len(books.known) == 96
        assert len(feed.known) == 3
    assert source.market is source.market_of(LEADER)
    assert [each["symbol"] for each in source.describe()["spec"]["followers"]] == list(SYMBOLS[1:])
    with pytest.raises(UnknownName, match=r"no BTC/USDT; it makes SIM/USDT, NEAR/USDT"):
        source.fetch("BTC/USDT", until, None)
