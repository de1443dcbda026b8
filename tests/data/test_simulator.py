from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pytest

from pipelines.contracts import CLOSE, OPEN, OPEN_TIME, REGIMES, TAKER_BUY, TRADES, VOLUME
from pipelines.data.schemas import check, to_frame
from pipelines.data.simulator.market import DESIGN, simulate
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues
from pipelines.market_params import SimulatorParams

MINUTES = Grid("1m")

SPEC = SimulatorParams(
    symbol="SIM/USDT", seed=7, start=datetime(2024, 1, 1, tzinfo=UTC), history_days=40, live_days=14,
    drift_after_live_days=7, start_price=40_000.0, vol_15m_bps=45.0, edge=1.0,
)  # fmt: skip
DAY = 1440


@cache
def made(**changes):
    """A read-only market that many tests share."""
    return simulate(SPEC.model_copy(update=changes), tape=False)


def half_year():
    """200 days of history, without drift: what one market has to show."""
    return made(history_days=200, live_days=0)


def year_without_edge():
    """A year in which nothing predicts the price, with its books every five minutes."""
    return made(history_days=365, live_days=0, edge=0.0, book_every_minutes=5)


def slope_t(x, y):
    """t statistic of the slope of y on x."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    rest = y - slope * x
    return slope / np.sqrt((rest @ rest) / (len(x) - 2) / (x @ x))


def future_return(bars, minutes):
    """Log return of the `minutes` after each minute's open; the last rows, which have none, are cut off."""
    opened = np.log(bars[:, OPEN])
    return opened[minutes:] - opened[:-minutes]


def test_the_same_spec_gives_the_same_bytes_and_another_seed_another_market():
    one, again, other = made(), made.__wrapped__(), made(seed=8)
    assert one.bars.tobytes() == again.bars.tobytes()
    assert one.truth.pressure.tobytes() == again.truth.pressure.tobytes()
    moves = np.diff(np.log(one.bars[:, CLOSE])), np.diff(np.log(other.bars[:, CLOSE]))
    assert abs(np.corrcoef(*moves)[0, 1]) < 0.02
    assert (
        abs(
            np.corrcoef(one.bars[:, TAKER_BUY] / one.bars[:, VOLUME], other.bars[:, TAKER_BUY] / other.bars[:, VOLUME])[
                0, 1
            ]
        )
        < 0.02
    )


def test_bars_are_clean_whole_minutes_on_the_price_and_volume_grid():
    bars = made().bars
    check(to_frame(bars, MINUTES, None))
    assert len(bars) == 54 * DAY
    assert (np.diff(bars[:, OPEN_TIME]) == 60).all()
    assert np.array_equal(bars[:, OPEN : CLOSE + 1], np.round(bars[:, OPEN : CLOSE + 1], 2))
    assert np.array_equal(bars[:, VOLUME], np.round(bars[:, VOLUME], 5))
    assert (bars[:, TAKER_BUY] <= bars[:, VOLUME]).all()
    assert (bars[:, TRADES] >= 1).all()
    assert np.array_equal(bars[:, TRADES], np.rint(bars[:, TRADES]))


def test_the_history_does_not_depend_on_what_comes_after_it():
    assert made(live_days=0).bars.tobytes() == made(live_days=14).bars[: 40 * DAY].tobytes()


def test_bars_before_the_drift_date_are_the_same_with_and_without_drift():
    drifted, stationary = made(), made(drift_after_live_days=None)
    at = 47 * DAY
    assert drifted.truth.drift_time == SPEC.start + timedelta(days=47)
    assert stationary.truth.drift_time is None
    assert drifted.bars[:at].tobytes() == stationary.bars[:at].tobytes()
    assert (drifted.bars[at:, CLOSE] != stationary.bars[at:, CLOSE]).mean() > 0.99


def test_a_drift_date_after_the_last_bar_is_no_drift():
    assert made(drift_after_live_days=14).truth.drift_time is None


def test_drift_trebles_volatility_widens_the_taker_share_and_turns_the_edge():
    drifted, stationary = made(), made(drift_after_live_days=None)
    after = slice(47 * DAY, None)
    move = [np.diff(np.log(m.bars[after, CLOSE])).std() for m in (drifted, stationary)]
    share = [(m.bars[after, TAKER_BUY] / m.bars[after, VOLUME]).std() for m in (drifted, stationary)]
    assert move[0] / move[1] == pytest.approx(DESIGN.drift_vol, rel=0.02)
    assert 1.5 < share[0] / share[1] < 2.0  # clipped shares cannot double
    np.testing.assert_allclose(drifted.truth.drift[after], -DESIGN.drift_vol * stationary.truth.drift[after])


def test_regimes_come_with_their_volatility_and_stay_for_hours():
    market = half_year()
    moves, regime = np.diff(np.log(market.bars[:, CLOSE])), market.truth.regime[1:]
    sd = [moves[regime == r].std() * np.sqrt(15) * 1e4 for r in range(len(REGIMES))]
    np.testing.assert_allclose(sd, 45.0 * np.array(DESIGN.vol_ratio), rtol=0.05)
    stays = np.diff(np.flatnonzero(np.diff(market.truth.regime)))
    assert stays.min() >= 180
    assert stays.max() <= 48 * 60
    assert np.bincount(regime, minlength=4).min() > 0.1 * len(regime)


def test_volume_is_seasonal_clusters_and_follows_absolute_moves():
    bars = half_year().bars[: 100 * DAY]
    volume, moves = np.log(bars[1:, VOLUME]), np.abs(np.diff(np.log(bars[:, CLOSE])))
    by_hour = bars[:, VOLUME].reshape(-1, 24, 60).mean(axis=(0, 2))
    assert by_hour[14] / by_hour[2] > 2
    assert np.corrcoef(volume[1:], volume[:-1])[0, 1] > 0.3
    assert np.corrcoef(volume, moves)[0, 1] > 0.3


def test_without_edge_pressure_and_flow_do_not_predict_the_price():
    market = year_without_edge()
    assert not market.truth.drift.any()
    moves = future_return(market.bars, 1)
    flow = market.bars[:-1, TAKER_BUY] / market.bars[:-1, VOLUME]
    for regime in range(len(REGIMES)):
        rows = market.truth.regime[:-1] == regime
        assert abs(slope_t(market.truth.pressure[:-1][rows], moves[rows])) < 3
    assert abs(slope_t(flow[:-1], moves[1:])) < 3


def test_without_edge_the_book_does_not_predict_the_price_to_come():
    market = year_without_edge()
    rows = market.bars[4::5, OPEN_TIME] + 60 == market.books.known
    assert rows.all()
    opened = np.log(market.bars[:, OPEN])
    index = np.arange(5, len(opened) - 15, 5)  # the minute that opens when the book is known
    ahead = opened[index + 15] - opened[index]
    size = market.books.levels[..., 1].sum(axis=2)
    imbalance = np.log(size[:, 0] / size[:, 1])
    for known in (imbalance, market.books.order_flow, market.books.order_flow_fast):
        x = known[: len(index)]
        assert abs(np.corrcoef(x, ahead)[0, 1]) * np.sqrt(len(x) / 3) < 3  # three snapshots share a quarter hour


def test_the_edge_moves_the_price_where_it_was_planted_and_nowhere_else():
    market = half_year()  # 7.3 standard errors or more in each regime
    moves = future_return(market.bars, 60)[::60]
    pressure, regime = market.truth.pressure[:-60:60], market.truth.regime[:-60:60]
    t = np.array([slope_t(pressure[regime == r], moves[regime == r]) for r in range(len(REGIMES))])
    assert (np.abs(t) > 3).all()
    assert np.array_equal(np.sign(t), np.sign(DESIGN.gain))


def test_edge_and_no_edge_have_the_very_same_volumes_and_flow():
    with_edge, without = made(), made(edge=0.0)
    flow = [VOLUME, TAKER_BUY]
    assert with_edge.bars[:, flow].tobytes() == without.bars[:, flow].tobytes()


def test_the_taker_share_leans_on_the_pressure_but_noisily():
    bars, pressure = half_year().bars[: 100 * DAY], half_year().truth.pressure[: 100 * DAY]
    share = bars[:, TAKER_BUY] / bars[:, VOLUME]
    assert 0.15 < np.corrcoef(share, pressure)[0, 1] < 0.5
    assert pressure.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_price": 1.0}, "start_price"),
        ({"start": datetime(2024, 1, 1, 0, 0, 30, tzinfo=UTC)}, "whole minute"),
        ({"drift_after_live_days": -41}, "drift_after_live_days"),
    ],
)
def test_a_spec_that_makes_no_market_is_refused_by_its_key(changes, message):
    with pytest.raises(BadValues, match=message):
        made(**changes)
