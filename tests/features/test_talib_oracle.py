"""TA-Lib as the oracle, over a year of bars, at a relative 1e-9 of each indicator's own scale."""

import numpy as np
import pytest
import talib

from pipelines.features.catalog import FEATURES


@pytest.fixture(scope="module")
def ours(year):
    return dict(zip(FEATURES.columns, FEATURES.run(year).T, strict=True))


def agrees(ours, theirs, scale):
    """Same warm-up, and equal to 1e-9 of `scale` on every bar."""
    there = ~np.isnan(theirs)
    assert np.array_equal(there, ~np.isnan(ours))
    np.testing.assert_array_less(np.abs(ours - theirs)[there], 1e-9 * np.broadcast_to(scale, theirs.shape)[there])


def test_points_agree(ours, year):
    _, _, high, low, close, *_ = np.ascontiguousarray(year.T)
    agrees(ours["rsi_14"], talib.RSI(close, 14), 100.0)
    agrees(ours["adx_14"], talib.ADX(high, low, close, 14), 100.0)
    agrees(ours["stoch_k_14"], talib.STOCHF(high, low, close, 14, 1)[0], 100.0)
    agrees(ours["williams_r_14"], talib.WILLR(high, low, close, 14), 100.0)
    agrees(ours["roc_10"], talib.ROC(close, 10), 100.0)
    agrees(ours["cci_20"], talib.CCI(high, low, close, 20), 100.0 + np.abs(ours["cci_20"]))


def test_prices_agree(ours, year):
    _, _, high, low, close, *_ = np.ascontiguousarray(year.T)
    agrees(np.exp(-ours["close_to_ma5"]) * close, talib.SMA(close, 5), close)
    agrees(np.exp(-ours["close_to_ma20"]) * close, talib.SMA(close, 20), close)
    agrees(ours["atr_14"] * close, talib.ATR(high, low, close, 14), close)
    agrees(ours["momentum_10"] * np.roll(close, 10), talib.MOM(close, 10), close)
    agrees(ours["range_20"] * close, talib.MAX(high, 20) - talib.MIN(low, 20), close)


def test_bollinger_agrees(ours, year):
    close = np.ascontiguousarray(year[:, 4])
    upper, _, lower = talib.BBANDS(close, 20, 2.0, 2.0)
    agrees(lower + ours["bollinger_b_20"] * (upper - lower), np.where(np.isnan(upper), np.nan, close), close)


def test_macd_agrees(ours, year):
    close = np.ascontiguousarray(year[:, 4])
    line, signal, _ = talib.MACD(close, 12, 26, 9)  # TA-Lib shows the line only once the signal is there
    from_34 = np.where(np.isnan(line), np.nan, ours["macd_12_26"] * close)
    agrees(from_34, line, close)
    assert not np.isnan(signal[33])
