"""Every traditional indicator against TA-Lib, or its published formula in pandas, over a year of bars: at 1e-9 of the
indicator's own scale, from its first value to the last."""

import numpy as np
import pandas as pd
import pytest
import talib

from pipelines.features.catalog import FEATURES

COLUMNS = [column.name for column in FEATURES.catalogue if column.category == "traditional"]


@pytest.fixture(scope="module")
def ours(year):
    return dict(zip(FEATURES.columns, FEATURES.run(year).T, strict=True))


@pytest.fixture(scope="module")
def market(year):
    """open, high, low, close, volume as contiguous arrays."""
    return dict(zip(("o", "h", "l", "c", "v"), np.ascontiguousarray(year[:, 1:6].T), strict=True))


def frame(m):
    return {name: pd.Series(values) for name, values in m.items()}


def away(average):
    """Return `close_to_…` of an average in price units."""
    return lambda m: np.log(m["c"] / average(m))


def rolled(m, name, n):
    return frame(m)[name].rolling(n)


def typical(m):
    return (m["h"] + m["l"] + m["c"]) / 3.0


def true_range(m):
    f = frame(m)
    last = f["c"].shift()
    return (
        pd.concat([f["h"] - f["l"], (f["h"] - last).abs(), (f["l"] - last).abs()], axis=1).max(axis=1).where(last > 0)
    )


def flow(m, sign_of):
    return pd.Series(typical(m) * m["v"] * (sign_of * np.diff(typical(m), prepend=np.nan) > 0)).rolling(14).sum()


def balance(m):
    """Volume placed by where the close stands in the bar; a bar without range counts 0."""
    width = m["h"] - m["l"]
    place = np.divide((m["c"] - m["l"]) - (m["h"] - m["c"]), width, out=np.zeros_like(width), where=width > 0)
    return pd.Series(place * m["v"]).rolling(20).sum() / rolled(m, "v", 20).sum()


def heikin_ashi(m):
    body = (m["o"] + m["h"] + m["l"] + m["c"]) / 4.0
    start = np.empty_like(body)
    start[0] = (m["o"][0] + m["c"][0]) / 2.0
    for i in range(1, len(body)):
        start[i] = (start[i - 1] + body[i - 1]) / 2.0
    return (body - start) / m["c"]


def seeded(values, n):
    """TA-Lib's EMA of values that begin with missing ones."""
    first = int(np.flatnonzero(~np.isnan(values))[0])
    out = np.full(len(values), np.nan)
    out[first:] = talib.EMA(np.ascontiguousarray(values[first:]), n)
    return out


def blau(m):
    change = np.diff(m["c"], prepend=np.nan)
    return 100.0 * seeded(seeded(change, 25), 13) / seeded(seeded(np.abs(change), 25), 13)


def agreement(m):
    return sum(np.sign(m["c"] - talib.SMA(m["c"], n)) for n in (20, 50, 200)) / 3.0


def drawdown(m):
    fall = 100.0 * (m["c"] / rolled(m, "c", 14).max() - 1.0)
    return np.sqrt((fall**2).rolling(14).mean())


def vortex(m, one, other):
    moved = (frame(m)[one] - frame(m)[other].shift()).abs()
    return moved.rolling(14).sum() / true_range(m).rolling(14).sum()


def macd(m, part):
    return talib.MACD(m["c"], 12, 26, 9)[part] / m["c"]


def mass(m):
    width = m["h"] - m["l"]
    return pd.Series(seeded(width, 9) / seeded(seeded(width, 9), 9)).rolling(25).sum()


def power(m, side):
    return (m[side] - talib.EMA(m["c"], 13)) / talib.ATR(m["h"], m["l"], m["c"], 14)


def squeeze(m):
    upper, middle, _ = talib.BBANDS(m["c"], 20, 2.0, 2.0)
    reach = talib.ATR(m["h"], m["l"], m["c"], 14)
    return np.where(np.isnan(upper), np.nan, upper - middle < 1.5 * reach)


def band(m):
    upper, middle, lower = talib.BBANDS(m["c"], 20, 2.0, 2.0)
    return (upper - lower) / middle


def slow(m, part):
    return talib.STOCH(m["h"], m["l"], m["c"], 14, 3, 0, 3, 0)[part]


def vwap(m):
    return pd.Series(typical(m) * m["v"]).rolling(20).sum() / rolled(m, "v", 20).sum()


def turned(m):
    return pd.Series(m["v"] * np.sign(np.diff(m["c"], prepend=np.nan))).rolling(20).sum() / rolled(m, "v", 20).sum()


def chop(m):
    width = rolled(m, "h", 14).max() - rolled(m, "l", 14).min()
    return 100.0 * np.log10(true_range(m).rolling(14).sum() / width) / np.log10(14.0)


ORACLES = {
    "close_to_sma_50": away(lambda m: talib.SMA(m["c"], 50)),
    "close_to_sma_200": away(lambda m: talib.SMA(m["c"], 200)),
    "close_to_ema_12": away(lambda m: talib.EMA(m["c"], 12)),
    "close_to_ema_26": away(lambda m: talib.EMA(m["c"], 26)),
    "close_to_wma_20": away(lambda m: talib.WMA(m["c"], 20)),
    "close_to_trima_20": away(lambda m: talib.TRIMA(m["c"], 20)),
    "close_to_dema_20": away(lambda m: talib.DEMA(m["c"], 20)),
    "close_to_tema_20": away(lambda m: talib.TEMA(m["c"], 20)),
    "close_to_t3_5": away(lambda m: talib.T3(m["c"], 5, 0.7)),
    "close_to_kama_10": away(lambda m: talib.KAMA(m["c"], 10)),
    "close_to_linreg_14": away(lambda m: talib.LINEARREG(m["c"], 14)),
    "linreg_slope_14": lambda m: talib.LINEARREG_SLOPE(m["c"], 14) / m["c"],
    "close_to_midpoint_14": away(lambda m: talib.MIDPOINT(m["c"], 14)),
    "close_to_midprice_14": away(lambda m: talib.MIDPRICE(m["h"], m["l"], 14)),
    "close_to_sar": away(lambda m: talib.SAR(m["h"], m["l"], 0.02, 0.2)),
    "macd_signal_9": lambda m: macd(m, 1),
    "macd_histogram": lambda m: macd(m, 2),
    "ppo_12_26": lambda m: talib.PPO(m["c"], 12, 26, 1),
    "trix_15": lambda m: talib.TRIX(m["c"], 15),
    "ultimate_7_14_28": lambda m: talib.ULTOSC(m["h"], m["l"], m["c"], 7, 14, 28),
    "stoch_slow_k_14": lambda m: slow(m, 0),
    "stoch_d_14": lambda m: slow(m, 1),
    "stoch_rsi_14": lambda m: talib.STOCHRSI(m["c"], 14, 14, 1, 0)[0],
    "balance_of_power": lambda m: talib.BOP(m["o"], m["h"], m["l"], m["c"]),
    "aroon_up_25": lambda m: talib.AROON(m["h"], m["l"], 25)[1],
    "aroon_down_25": lambda m: talib.AROON(m["h"], m["l"], 25)[0],
    "plus_di_14": lambda m: talib.PLUS_DI(m["h"], m["l"], m["c"], 14),
    "minus_di_14": lambda m: talib.MINUS_DI(m["h"], m["l"], m["c"], 14),
    "dx_14": lambda m: talib.DX(m["h"], m["l"], m["c"], 14),
    "adxr_14": lambda m: talib.ADXR(m["h"], m["l"], m["c"], 14),
    "bollinger_width_20": band,
    "true_range": lambda m: talib.TRANGE(m["h"], m["l"], m["c"]) / m["c"],
    "mfi_14": lambda m: talib.MFI(m["h"], m["l"], m["c"], m["v"], 14),
    "obv_20": turned,
    "cmf_20": balance,
    "close_to_vwap_20": away(vwap),
    "keltner_20": lambda m: (m["c"] - talib.EMA(m["c"], 20)) / (2.0 * talib.ATR(m["h"], m["l"], m["c"], 14)),
    "squeeze_20": squeeze,
    "donchian_20": lambda m: (m["c"] - talib.MIN(m["l"], 20)) / (talib.MAX(m["h"], 20) - talib.MIN(m["l"], 20)),
    "heikin_ashi_body": heikin_ashi,
    "support_50": lambda m: (m["c"] - talib.MIN(m["l"], 50)) / talib.ATR(m["h"], m["l"], m["c"], 14),
    "resistance_50": lambda m: (talib.MAX(m["h"], 50) - m["c"]) / talib.ATR(m["h"], m["l"], m["c"], 14),
    "trend_agreement": agreement,
    "choppiness_14": chop,
    "vortex_plus_14": lambda m: vortex(m, "h", "l"),
    "vortex_minus_14": lambda m: vortex(m, "l", "h"),
    "bull_power_13": lambda m: power(m, "h"),
    "bear_power_13": lambda m: power(m, "l"),
    "awesome_5_34": lambda m: (talib.SMA((m["h"] + m["l"]) / 2, 5) - talib.SMA((m["h"] + m["l"]) / 2, 34)) / m["c"],
    "mass_25": mass,
    "ulcer_14": drawdown,
    "tsi_25_13": blau,
    "dpo_20": lambda m: (np.roll(m["c"], 11) - talib.SMA(m["c"], 20)) / m["c"],
}
SHOWN_LATER = {"stoch_slow_k_14": 18, "stoch_rsi_14": 28}  # TA-Lib shows these only once their other line is there


def rounded_moves(m):
    """Bars with a typical price in the window of 14 that moved by less than prices round: TA-Lib takes a side there."""
    return pd.Series(np.abs(np.diff(typical(m), prepend=0.0)) < 1e-9).rolling(14).max().to_numpy() == 1.0


@pytest.mark.parametrize("name", COLUMNS)
def test_it_equals_its_oracle(ours, market, name):
    mine, theirs = ours[name], np.array(ORACLES[name](market), dtype=float)
    if name == "mfi_14":
        assert rounded_moves(market).mean() < 0.01
        theirs = np.where(rounded_moves(market), mine, theirs)
    there = ~np.isnan(theirs)
    column = FEATURES.catalogue[FEATURES.index[name]]
    first = SHOWN_LATER.get(name, column.warmup) - 1
    assert np.flatnonzero(there)[0] == first
    assert np.array_equal(there[first:], ~np.isnan(mine)[first:])
    least = 1.0 if column.unit.startswith(("log", "fraction of price")) else np.nanmax(np.abs(theirs)) * 1e-3
    scale = np.maximum(np.abs(theirs[there]), least)  # a distance to the price is as exact as the price
    np.testing.assert_array_less(np.abs(mine - theirs)[there], 1e-9 * scale)


def test_the_catalogue_has_at_least_fifty_indicators_each_with_formula_unit_range_warmup_and_source():
    columns = [c for c in FEATURES.catalogue if c.category in ("traditional", "technical")]
    assert len(columns) >= 50
    assert set(ORACLES) == set(COLUMNS)
    assert all(c.formula and c.unit and c.source and c.warmup >= 1 and c.low < c.high for c in columns)
