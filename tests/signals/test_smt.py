"""S5 SMT divergence: drawn by hand, against its rule written over whole arrays, and on ETH with BTC."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.signal_subset import SignalSubset

from pipelines.context_layout import CONTEXT_INDEX, CONTEXT_WIDTH, NO_CONTEXT
from pipelines.contracts import BAR_WIDTH

FOLD = SignalSubset("smt")
CANDLES = Path(__file__).parents[2] / "../shared/data/candles"


def with_reference(reference):
    contexts = np.full((len(reference), CONTEXT_WIDTH), np.nan)
    contexts[:, CONTEXT_INDEX["reference_close"]] = reference
    return contexts


def market(close):
    bars = np.full((len(close), BAR_WIDTH), np.nan)
    bars[:, 0] = 900.0 * np.arange(len(close))
    bars[:, 1:5] = np.asarray(close)[:, np.newaxis]
    return bars


def peaks(first, second):
    """80 closes at 100 with one peak on bar 60 and one on bar 74: the second is confirmed on bar 79, the last."""
    close = np.full(80, 100.0)
    close[60], close[74] = first, second
    return close


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_a_higher_high_that_the_reference_does_not_confirm_signals_against_it(turn):
    own, other = turn * peaks(103.0, 104.0), turn * peaks(5010.0, 5008.0)
    rows = FOLD.run(market(own), None, with_reference(other))
    assert not rows[59:-1, 0].any()
    assert rows[-1, 0] == -turn
    assert rows[-1, 2:].tolist() == sorted([turn * 103.0, turn * 104.0])
    own_volatility, other_volatility = (np.sqrt((np.diff(closes[-60:]) ** 2).mean()) for closes in (own, other))
    assert rows[-1, 1] == pytest.approx((1.0 / own_volatility + 2.0 / other_volatility) / np.sqrt(14.0))


@pytest.mark.parametrize(
    ("own", "other"),
    [
        pytest.param(peaks(103.0, 104.0), peaks(110.0, 111.0), id="both higher"),
        pytest.param(peaks(103.0, 104.0), peaks(110.0, 110.0), id="the reference's are equal"),
        pytest.param(peaks(104.0, 103.0), peaks(111.0, 110.0), id="both lower"),
        pytest.param(peaks(104.0, 103.0), peaks(110.0, 111.0), id="only the reference higher"),
        pytest.param(peaks(100.0, 104.0), peaks(110.0, 108.0), id="one swing"),
        pytest.param(peaks(103.0, 104.0)[:-1], peaks(110.0, 108.0)[:-1], id="not confirmed yet"),
    ],
)
def test_it_gives_no_signal_where_the_two_agree_or_a_swing_is_not_known(own, other):
    assert FOLD.run(market(own), None, with_reference(other))[-1, 0] == 0.0


def test_without_a_reference_it_is_missing_and_it_recovers_once_the_gap_has_left_the_window(bars):
    assert np.isnan(FOLD.run(bars)).all()
    assert {column.needs for column in FOLD.catalogue} == {"context:reference_close"}
    reference = bars[::-1, 4].copy()
    whole = FOLD.run(bars, None, with_reference(reference))
    reference[1000:1003] = np.nan
    holed = FOLD.run(bars, None, with_reference(reference))
    assert np.isnan(holed[1000 : 1002 + 60]).all()
    assert holed[1002 + 60 :].tobytes() == whole[1002 + 60 :].tobytes()
    assert np.isfinite(whole[59:, 0]).all()


def expected(close, other):
    """Direction, strength, low, high of every bar, by pairs of swings; missing where 60 bars are not known."""
    n = len(close)
    wanted = np.full((n, 4), np.nan)
    known = np.convolve(np.isnan(close + other), np.ones(60))[:n] == 0
    wanted[known & (np.arange(n) >= 59), 0] = 0.0
    for side in (1.0, -1.0):
        own = side * close
        swings = [i for i in range(5, n - 5) if own[i - 5 : i].max() < own[i] >= own[i + 1 : i + 6].max()]
        for before, newest in pairwise(swings):
            t = newest + 5
            rise, fall = own[newest] - own[before], side * (other[newest] - other[before])
            if newest - before <= 49 and wanted[t, 0] == 0.0 and rise > 0.0 and fall < 0.0:
                usual = [np.sqrt((np.diff(x[t - 59 : t + 1]) ** 2).mean()) for x in (close, other)]
                size = (rise / usual[0] - fall / usual[1]) / np.sqrt(newest - before)
                wanted[t] = -side, size, *sorted([close[newest], close[before]])
    return wanted


@pytest.fixture(scope="module")
def ether() -> pd.DataFrame:
    """Hourly ETH 2022 to mid-2025 with BTC's close (NaN where BTC has no bar)."""
    paths = (
        CANDLES / "binance_spot_ethusdt_1h_to_2025h1.parquet",
        CANDLES / "binance_spot_btcusdt_1h_2017_2025h1.parquet",
    )
    for path in paths:
        if not path.exists():
            pytest.skip(f"recorded bars are not at {path.resolve()}")
    frame, bitcoin = (pd.read_parquet(path).set_index("open_time") for path in paths)
    frame["reference"] = bitcoin["close"].reindex(frame.index)
    return frame


def test_on_ether_next_to_bitcoin_it_is_the_rule_over_whole_arrays(ether):
    rows = FOLD.run(market(ether["close"].to_numpy()), None, with_reference(ether["reference"].to_numpy()))
    np.testing.assert_allclose(rows, expected(ether["close"].to_numpy(), ether["reference"].to_numpy()), rtol=1e-9)
    signalled = pd.Series(rows[:, 0], ether.index)
    sides = signalled.groupby(signalled.index.year).agg([lambda s: (s > 0).sum(), lambda s: (s < 0).sum()])
    assert (sides > 10).to_numpy().all()  # in every year, both ways
    assert signalled.abs().mean() < 0.05


def test_a_live_bar_after_a_restart_gives_the_bytes_of_the_batch(ether):
    bars, contexts = market(ether["close"].to_numpy()[:3000]), with_reference(ether["reference"].to_numpy()[:3000])
    whole, state = FOLD.run(bars, None, contexts), FOLD.fresh()
    FOLD.run(bars[:1000], None, contexts[:1000], state)
    state = FOLD.load(FOLD.dump(state))
    live = np.array([FOLD.step(state, bars[t], context=contexts[t]) for t in range(1000, 3000)])
    assert live.tobytes() == whole[1000:].tobytes()
    assert np.abs(whole[1000:, 0]).sum() > 3
    assert np.isnan(FOLD.step(state, bars[0], context=NO_CONTEXT)).all()
