"""Samplers: what they end on, against the definitions in plain Python, and that tomorrow changes nothing."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.contracts import BAR_FIELDS, CLOSE, HALF_SPREAD, OPEN_TIME, TAKER_BUY, VOLUME, Trades
from pipelines.data.readers.trades import bars_from_trades
from pipelines.data.sampling import (
    cusum,
    dollar_bars,
    imbalance_bars,
    mean_amount,
    sampled_bars,
    sampled_closes,
    signed_flow,
    ticks,
    volume_bars,
)
from pipelines.errors import BadShape, BadTimes, BadValues

RECORDED = Path(__file__).parents[2] / "../shared/data/candles/binance_spot_btcusdt_1m_2024.parquet"
COLUMNS = ["open", "high", "low", "close", "volume_base", "trade_count", "taker_buy_volume_base"]


def minutes(close, volume=1.0, bought=0.5):
    """1-minute bars with these closes; `bought` is the takers' share of the volume."""
    rows = np.empty((len(close), len(BAR_FIELDS)))
    rows[:, OPEN_TIME] = 60.0 * np.arange(len(close))
    rows[:, 1:5] = np.asarray(close, dtype=float)[:, None]
    rows[:, VOLUME] = volume
    rows[:, 6] = 10.0
    rows[:, TAKER_BUY] = np.asarray(bought) * rows[:, VOLUME]
    rows[:, HALF_SPREAD] = np.nan
    return rows


@pytest.fixture(scope="module")
def btc():
    """Two weeks of real minutes around the fall of August 2024."""
    if not RECORDED.exists():
        pytest.skip(f"recorded bars are not at {RECORDED.resolve()}")
    frame = pd.read_parquet(RECORDED, columns=["open_time", *COLUMNS])
    frame = frame[(frame.open_time >= "2024-07-29") & (frame.open_time < "2024-08-12")]
    seconds = frame.open_time.astype("int64").to_numpy() / {"us": 1e6, "ms": 1e3, "ns": 1e9}[frame.open_time.dt.unit]
    return np.column_stack([seconds, frame[COLUMNS].to_numpy(dtype=float), np.full(len(frame), np.nan)])


SAMPLERS = {
    "cusum": lambda rows: cusum(rows, 60),
    "volume": lambda rows: volume_bars(rows, 60, 1_500.0),
    "dollar": lambda rows: dollar_bars(rows, 60, 9e7),
    "tick imbalance": lambda rows: imbalance_bars(rows, 60, "tick", 60),
    "volume imbalance": lambda rows: imbalance_bars(rows, 60, "volume", 60),
    "dollar imbalance": lambda rows: imbalance_bars(rows, 60, "dollar", 60),
}


# ---- the definitions, one row at a time -------------------------------------------------------------------------


def totals_by_hand(amounts, limit):
    samples, total = [], 0.0
    for i, amount in enumerate(amounts):
        total += amount
        if total >= limit:
            samples.append((i, 0, total, limit))
            total = 0.0
    return samples


def cusum_by_hand(rows, horizon=240, calm=0.5, high=0.7, half_life=300, every=15, memory=480):
    moves = [math.log(b / a) for a, b in zip(rows[:-1, CLOSE], rows[1:, CLOSE], strict=True)]
    samples, taken, up, down = [], [], 0.0, 0.0
    variance = sum(m * m for m in moves[:half_life]) / half_life
    for i in range(half_life, len(moves) + 1):
        # `variance` is of the moves up to row i, and move i leads to row i + 1
        if i > half_life:
            variance = variance * 0.5 ** (1 / half_life) + (1 - 0.5 ** (1 / half_life)) * moves[i - 1] ** 2
        if i % every == 0:
            taken.append(variance)
        if i == len(moves):
            break
        newest = taken[-memory:]
        rank = 0.0
        if len(newest) == memory:
            rank = sum((v < newest[-1]) + 0.5 * (v == newest[-1]) for v in newest) / memory
        limit = (high if rank > 0.8 else calm) * math.sqrt(variance * horizon)
        up, down = max(0.0, up + moves[i]), min(0.0, down + moves[i])
        if up >= limit:
            samples.append((i + 1, 1, up, limit))
            up = 0.0
        elif down <= -limit:
            samples.append((i + 1, -1, down, limit))
            down = 0.0
    return samples


def imbalance_by_hand(flow, expected, half_life=20.0, within=4.0):
    slow, each = 0.5 ** (1 / half_life), 0.5 ** (1 / (half_life * expected))
    mean, square = sum(flow[:expected]) / expected, sum(f * f for f in flow[:expected]) / expected
    samples, sample, length = [], [], float(expected)
    for i in range(expected, len(flow)):
        if not sample:
            limit = max(length * abs(mean), (math.sqrt(expected) - 0.583) * math.sqrt(square))
        sample.append(flow[i])
        if abs(sum(sample)) >= limit:
            samples.append((i, 1 if sum(sample) > 0 else -1, sum(sample), limit))
            length = slow * length + (1 - slow) * len(sample)
            length = min(max(length, expected / within), expected * within)
            sample = []
        mean, square = each * mean + (1 - each) * flow[i], each * square + (1 - each) * flow[i] ** 2
    return samples


def assert_same(samples, by_hand, least):
    assert len(by_hand) > least
    assert samples.last.tolist() == [row for row, *_ in by_hand]
    assert samples.side.tolist() == [side for _, side, *_ in by_hand]
    np.testing.assert_allclose(samples.amount, [amount for *_, amount, _ in by_hand], rtol=1e-9)
    np.testing.assert_allclose(samples.threshold, [limit for *_, limit in by_hand], rtol=1e-9)


def test_cusum_is_the_definition_on_real_minutes(btc):
    by_hand = cusum_by_hand(btc)
    assert_same(cusum(btc, 60), by_hand, 100)
    ratio = np.array([limit for *_, limit in by_hand])
    assert ratio.max() > 2 * ratio.min()  # the week holds calm and panic


def test_volume_and_dollar_bars_are_the_definition_on_real_minutes(btc):
    assert_same(volume_bars(btc, 60, 1_500.0), totals_by_hand(btc[:, VOLUME], 1_500.0), 100)
    assert_same(dollar_bars(btc, 60, 9e7), totals_by_hand(btc[:, VOLUME] * btc[:, CLOSE], 9e7), 100)


@pytest.mark.parametrize("unit", ["tick", "volume", "dollar"])
def test_imbalance_bars_are_the_definition_on_real_minutes(btc, unit):
    flow = 2 * btc[:, TAKER_BUY] / btc[:, VOLUME] - 1
    flow *= {"tick": 1.0, "volume": btc[:, VOLUME], "dollar": btc[:, VOLUME] * btc[:, CLOSE]}[unit]
    assert_same(imbalance_bars(btc, 60, unit, 60), imbalance_by_hand(flow.tolist(), 60), 100)


# ---- what holds for all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_cut_of_the_future_changes_nothing_before(btc, name):
    whole = SAMPLERS[name](btc)
    for cut in (5_000, 11_111, 17_777):
        part, n = SAMPLERS[name](btc[:cut]), int((whole.last < cut).sum())
        assert len(part) == n > 0
        for field in ("first", "last", "known", "side", "amount", "threshold"):
            np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[:n])


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_follow_one_another_and_reach_their_threshold_on_their_last_row_alone(btc, name):
    s = SAMPLERS[name](btc)
    assert (np.abs(s.amount) >= s.threshold).all()
    assert (s.first <= s.last).all()
    np.testing.assert_array_equal(s.first[1:], s.last[:-1] + 1)
    np.testing.assert_array_equal(s.known, btc[s.last, OPEN_TIME] + 60)
    if name == "cusum":
        return  # its sums also start again at a change of sign, as in the definition above
    amounts = {"volume": btc[:, VOLUME], "dollar": btc[:, VOLUME] * btc[:, CLOSE]}.get(name)
    if amounts is None:
        amounts = signed_flow(btc, name.split()[0])
    for first, last, limit in zip(s.first, s.last, s.threshold, strict=True):
        reached = np.abs(np.cumsum(amounts[first : last + 1])) >= limit
        assert reached[-1]
        assert not reached[:-1].any()


@pytest.mark.parametrize("name", SAMPLERS)
def test_volume_is_conserved(btc, name):
    s = SAMPLERS[name](btc)
    made, rows = sampled_bars(btc, s), btc[s.first[0] : s.last[-1] + 1]
    for column in (VOLUME, 6, TAKER_BUY):
        assert made[:, column].sum() == pytest.approx(rows[:, column].sum(), rel=1e-12)
    assert made[:, 2].max() == rows[:, 2].max()
    assert made[:, 3].min() == rows[:, 3].min()
    np.testing.assert_array_equal(made[:, CLOSE], btc[s.last, CLOSE])
    np.testing.assert_array_equal(made[:, OPEN_TIME], btc[s.first, OPEN_TIME])


# ---- by hand ----------------------------------------------------------------------------------------------------


def test_the_spread_of_a_sample_is_the_mean_of_the_recorded_ones():
    rows = minutes([100.0] * 6)
    rows[:, HALF_SPREAD] = [np.nan, 0.1, 0.3, np.nan, np.nan, 0.2]
    bars = sampled_bars(rows, volume_bars(rows, 60, 3.0))
    np.testing.assert_allclose(bars[:, HALF_SPREAD], [0.2, 0.2])
    rows[:3, HALF_SPREAD] = np.nan
    assert np.isnan(sampled_bars(rows, volume_bars(rows, 60, 3.0))[0, HALF_SPREAD])


def test_a_minute_that_holds_several_thresholds_ends_one_sample_and_is_not_carried_over():
    s = volume_bars(minutes([100.0] * 6, volume=[3, 3, 25, 4, 5, 1]), 60, 10.0)
    assert s.last.tolist() == [2, 5]
    assert s.first.tolist() == [0, 3]
    assert s.amount.tolist() == [31.0, 10.0]
    assert s.known.tolist() == [180.0, 360.0]


def zigzag(n, step=1e-3):
    """A market that goes up and down by `step`: its volatility is `step`, and it goes nowhere."""
    return 100.0 * np.exp(step * (np.arange(n) % 2))


@pytest.mark.parametrize("way", [1, -1])
def test_cusum_signals_when_a_move_adds_up_and_is_mirrored(way):
    quiet = zigzag(101)
    moved = quiet[-1] * np.exp(way * 1e-3 * np.arange(1, 11))  # ten steps one way
    s = cusum(minutes(np.concatenate([quiet, moved])), 60, horizon=49, half_life=50)  # 0.5 · 1e-3 · √49: 3.5 steps
    assert s.side.tolist() == [way, way]
    # a zigzag that ended by a fall left a step of it in the sum of falls
    assert s.last.tolist() == ([104, 108] if way > 0 else [103, 107])


def test_cusum_is_silent_in_a_market_that_goes_nowhere_or_stands_still():
    assert len(cusum(minutes(zigzag(2_000)), 60, half_life=50)) == 0
    assert len(cusum(minutes([100.0] * 2_000), 60, half_life=50)) == 0


def test_high_volatility_raises_the_threshold_from_half_to_seven_tenths():
    wild = np.concatenate([zigzag(1_000), zigzag(200, 5e-3)])
    rows = minutes(np.concatenate([wild, wild[-1] * np.exp(5e-3 * np.arange(1, 100))]))
    s, same = (cusum(rows, 60, horizon=64, half_life=50, every=5, memory=100, high=high) for high in (0.7, 0.5))
    assert s.threshold[-1] / same.threshold[-1] == pytest.approx(1.4, rel=0.02)


def test_balanced_flow_gives_samples_of_about_the_expected_length():
    rng = np.random.default_rng(3)
    s = imbalance_bars(minutes(np.full(60_000, 100.0), bought=rng.integers(0, 2, 60_000)), 60, "tick", 50)
    assert 40 < np.diff(s.last).mean() < 70
    assert abs(s.side.mean()) < 0.15


@pytest.mark.parametrize(("bought", "way"), [(1.0, 1), (0.0, -1)])
def test_a_one_sided_tape_ends_samples_on_its_side_and_sooner_than_a_balanced_one(bought, way):
    rng = np.random.default_rng(3)
    share = np.concatenate([rng.integers(0, 2, 2_000).astype(float), np.full(200, bought)])
    s = imbalance_bars(minutes(np.full(2_200, 100.0), bought=share), 60, "tick", 50)
    late = s.last >= 2_020
    assert (s.side[late] == way).all()
    assert late.sum() >= 3


def test_without_takers_the_tick_rule_signs_a_row():
    rows = minutes([100.0, 101, 101, 100, 100, 102], volume=[1, 2, 3, 4, 5, 6])
    rows[:, TAKER_BUY] = np.nan
    assert signed_flow(rows, "volume").tolist() == [0, 2, 3, -4, -5, 6]
    rows[4, TAKER_BUY] = 4.0  # where it is known, it counts
    assert signed_flow(rows, "tick").tolist() == [0, 1, 1, -1, pytest.approx(0.6), 1]
    rows[4, VOLUME] = rows[4, TAKER_BUY] = 0.0
    assert signed_flow(rows, "tick")[4] == 0.0


def test_trades_end_a_sample_at_their_own_time_and_give_the_volume_of_minutes():
    rng = np.random.default_rng(5)
    n = 5_000
    trades = Trades(
        np.cumsum(rng.exponential(0.8, n)), 100 + np.cumsum(rng.normal(0, 0.01, n)), rng.lognormal(0, 1, n),
        rng.choice([-1.0, 1.0], n),
    )  # fmt: skip
    rows = ticks(trades)
    assert signed_flow(rows, "tick").tolist() == trades.side.tolist()
    s = volume_bars(rows, 0, 100.0)
    np.testing.assert_array_equal(s.known, trades.time[s.last])
    made = sampled_bars(rows, s)
    assert ((made[:, VOLUME] >= 100.0) & (made[:, VOLUME] < 100.0 + trades.size.max())).all()
    assert rows[:, VOLUME].sum() == pytest.approx(bars_from_trades(trades, 60)[:, VOLUME].sum())
    assert len(imbalance_bars(rows, 0, "volume", 100)) > 10


def test_a_close_is_evaluated_by_which_a_sample_is_newly_known():
    rows = minutes([100.0] * 60, volume=1.0)
    s = volume_bars(rows, 60, 7.0)  # known at 7, 14, 21, 28, 35, 42, 49, 56 minutes
    assert sampled_closes(s, 900.0 * np.arange(1, 4)).tolist() == [True, True, True]
    assert sampled_closes(s, 60.0 * np.array([7, 8, 13, 14])).tolist() == [True, False, False, True]
    assert sampled_closes(volume_bars(rows, 60, 100.0), 900.0 * np.arange(1, 4)).tolist() == [False, False, False]


def test_what_cannot_be_sampled_is_refused_with_the_row():
    rows = minutes([100.0] * 10)
    assert mean_amount(rows, "volume", 30) == 30.0
    assert mean_amount(rows, "dollar", 30) == 3_000.0
    with pytest.raises(BadShape):
        cusum(rows[:, :5], 60)
    with pytest.raises(BadTimes, match="row 1"):
        cusum(rows[::-1], 60)
    with pytest.raises(BadValues, match="threshold of 0"):
        volume_bars(rows, 60, 0.0)
    rows[3, VOLUME] = np.nan
    with pytest.raises(BadValues, match=r"volume.*row 3"):
        dollar_bars(rows, 60, 100.0)
    assert len(cusum(rows, 60)) == 0  # reads closes alone
    rows[2, CLOSE] = 0.0
    with pytest.raises(BadValues, match=r"close.*row 2"):
        cusum(rows, 60)
