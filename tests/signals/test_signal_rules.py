"""Each signal on a scene drawn by hand, and on real bars seen in a mirror."""

import numpy as np
import pytest
import talib

from pipelines.context_layout import CONTEXT_INDEX, CONTEXT_WIDTH
from pipelines.contracts import SCORE_NAMES
from pipelines.signals import fvg
from pipelines.signals.catalog import PRODUCERS, SIGNALS


def scene(*candles, calm=30):
    """`calm` bars of range 1 around 100 (so ATR is 1), then the candles (high, low, close)."""
    rows = [(100.5, 99.5, 100.0)] * calm + list(candles)
    high, low, close = np.array(rows, dtype=float).T
    n = len(rows)
    return np.column_stack(
        [
            900.0 * np.arange(n),
            close,
            high,
            low,
            close,
            np.full(n, 10.0),
            np.ones(n),
            np.full(n, 5.0),
            np.full(n, np.nan),
        ]
    )


def with_flow(flows):
    contexts = np.full((len(flows), CONTEXT_WIDTH), np.nan)
    contexts[:, CONTEXT_INDEX["order_flow"]] = flows
    return contexts


def rows_of(bars):
    return [dict(zip(SIGNALS.columns, row, strict=True)) for row in SIGNALS.run(bars)]


def test_a_gap_is_known_at_the_third_close_and_lives_open_mitigated_filled():
    bars = scene((102.0, 100.0, 101.9), (103.0, 101.5, 102.5), (103.0, 101.2, 102.0), (102.5, 100.4, 101.0))
    rows = rows_of(bars)
    assert [row["fvg.direction"] for row in rows[-4:]] == [0.0, 1.0, 0.0, 0.0]
    born = rows[-3]
    assert (born["fvg.low"], born["fvg.high"]) == (100.5, 101.5)
    assert 0.8 < born["fvg.strength"] < 1.0  # one price unit wide, ATR a little over one
    states = []
    for i in range(-3, 0):
        state = SIGNALS.fresh()
        SIGNALS.run(bars[: len(bars) + i + 1], state=state)
        states.append([gap.status for gap in fvg.gaps(SIGNALS.group_state(state, "fvg"))])
    assert states == [["open"], ["mitigated"], ["filled"]]
    assert [(r["fvg.open"], r["fvg.mitigated"], r["fvg.filled"]) for r in rows[-3:]] == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
    ]


def test_a_gap_under_the_least_size_gives_no_signal():
    rows = rows_of(scene((101.0, 100.0, 100.9), (101.5, 100.7, 101.2)))
    assert rows[-1]["fvg.direction"] == 0.0
    assert np.isnan(rows[-1]["fvg.strength"])


SWING = [(102.0, 99.6, 100.0)] + [(100.5, 99.5, 100.0)] * 5


def test_a_wick_beyond_a_confirmed_swing_that_closes_back_is_a_sweep():
    last = rows_of(scene(*SWING, (102.5, 99.8, 101.0)))[-1]
    assert last["sweep.direction"] == -1.0
    assert (last["sweep.low"], last["sweep.high"]) == (102.0, 102.5)
    assert 0.3 < last["sweep.strength"] < 0.5


def test_a_swing_is_not_swept_before_its_fifth_later_bar():
    assert rows_of(scene(*SWING[:-1], (102.5, 99.8, 101.0)))[-1]["sweep.direction"] == 0.0


def test_a_close_back_inside_on_the_third_bar_is_a_sweep_and_on_the_fourth_is_not():
    beyond, back = (102.6, 102.1, 102.4), (102.4, 101.0, 101.5)
    assert rows_of(scene(*SWING, beyond, beyond, back))[-1]["sweep.direction"] == -1.0
    assert rows_of(scene(*SWING, beyond, beyond, beyond, back))[-1]["sweep.direction"] == 0.0


def test_a_swept_swing_is_spent():
    rows = rows_of(scene(*SWING, (102.5, 99.8, 101.0), (102.4, 99.8, 101.0)))
    assert [row["sweep.direction"] for row in rows[-2:]] == [-1.0, 0.0]


def test_a_market_seen_in_a_mirror_flips_the_ict_signals(bars):
    mirrored = bars.copy()
    mirrored[:, 1:5] = 2e5 - bars[:, [1, 3, 2, 4]]
    straight, flipped = SIGNALS.run(bars), SIGNALS.run(mirrored)
    for name in PRODUCERS["ict"]:
        column = SIGNALS.index[f"{name}.direction"]
        np.testing.assert_array_equal(straight[:, column], -flipped[:, column])


def test_cvd_is_the_share_of_volume_that_takers_lean():
    bars = scene(calm=30)
    bars[:, 7] = 7.5  # three quarters bought by takers
    last = rows_of(bars)[-1]
    assert (last["cvd.direction"], last["cvd.strength"]) == (1.0, 0.5)
    bars[:, 7] = 5.0
    assert rows_of(bars)[-1]["cvd.direction"] == 0.0


def test_a_new_high_on_falling_delta_is_a_bearish_divergence():
    bars = scene((101.5, 100.0, 101.2))
    bars[-10:, 7] = 2.5
    last = rows_of(bars)[-1]
    assert last["cvd_divergence.direction"] == -1.0
    assert last["cvd_divergence.strength"] == pytest.approx(50.0 / 200.0)
    assert (last["cvd_divergence.low"], last["cvd_divergence.high"]) == (100.0, 101.2)


def test_the_books_flow_signals_by_its_side_and_its_usual_size(bars):
    flows = np.concatenate([np.tile([2.0, -2.0], 30), [-6.0, 0.0]])
    before, pressed, still = SIGNALS.run(bars[:62], None, with_flow(flows))[
        59:, [SIGNALS.index[f"ofi.{c}"] for c in ("direction", "strength")]
    ]
    assert before.tolist() == [-1.0, 1.0]
    assert pressed.tolist() == [-1.0, pytest.approx(6.0 / np.sqrt((59 * 4.0 + 36.0) / 60))]
    assert still[0] == 0.0
    assert np.isnan(still[1])


def test_strategy_stances_are_those_of_talib(bars):
    out = SIGNALS.run(bars)
    close, high, low = (np.ascontiguousarray(bars[:, i]) for i in (4, 2, 3))
    rsi, adx = talib.RSI(close, 14), talib.ADX(high, low, close, 14)
    lead = talib.SMA(close, 20) - talib.SMA(close, 50)
    wanted = {
        "ma_cross": np.sign(lead),
        "rsi": np.where(np.isnan(rsi), np.nan, (rsi < 30.0) * 1.0 - (rsi > 70.0)),
        "macd": np.sign(talib.MACD(close)[2]),
        "regime_ma": np.where(adx >= 25.0, np.sign(lead), lead * 0.0),
    }
    for name, side in wanted.items():
        np.testing.assert_array_equal(out[:, SIGNALS.index[f"{name}.direction"]], side, err_msg=name)


def test_the_consensus_signals_only_when_a_majority_begins(bars):
    out = SIGNALS.run(bars)
    stances = [SIGNALS.index[f"{name}.direction"] for name in PRODUCERS["traditional"] if name != "consensus"]
    votes = out[:, stances].sum(axis=1)
    side = np.where(np.abs(votes) >= 3, np.sign(votes), 0.0)
    begins = (side[1:] != 0) & (side[1:] != side[:-1]) & ~np.isnan(votes[:-1])
    signalled = out[1:, SIGNALS.index["consensus.direction"]]
    np.testing.assert_array_equal(signalled[49:], np.where(begins, side[1:], 0.0)[49:])
    assert 0.01 < begins.mean() < 0.15


@pytest.mark.parametrize("name", [name for names in PRODUCERS.values() for name in names])
def test_strength_is_positive_exactly_where_a_signal_signals(bars, contexts, name):
    # a flow that is made up agrees with no price: fifteen stars come together on candles alone
    out = SIGNALS.run(bars, None, None if name == "unicorn" else contexts)
    assert np.nansum(np.abs(out[:, SIGNALS.index[f"{name}.direction"]])) > 0
    side, strength = out[:, SIGNALS.index[f"{name}.direction"]], out[:, SIGNALS.index[f"{name}.strength"]]
    assert set(side[~np.isnan(side)]) <= {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(strength > 0.0, np.abs(side) > 0.0)
    low, high = out[:, SIGNALS.index[f"{name}.low"]], out[:, SIGNALS.index[f"{name}.high"]]
    assert not np.any(low >= high)  # a heatmap may have a wall on one side only


def test_every_category_has_producers_and_every_signal_belongs_to_one():
    assert tuple(PRODUCERS) == SCORE_NAMES
    names_used = [name for names in PRODUCERS.values() for name in names]
    assert len(names_used) == len(set(names_used))
    assert {f"{name}.direction" for name in names_used} == {c for c in SIGNALS.columns if c.endswith(".direction")}
    assert all(PRODUCERS.values())
