"""Time features: the compiled fold against TA-Lib's batch functions, and against pandas recomputed at each bar.

On recorded BTC/USDT bars where they are there, else on a simulated year. Exchange clocks, which the other side has not,
are read before and timed in a row of their own. Run: python -m benchmarks features
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import talib

from benchmarks.fixture import recorded, recording, simulated
from benchmarks.measured import Row, cpu_seconds, in_turn, pairs, spread
from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, Floats
from pipelines.data.bar_clock import clocked
from pipelines.data.timeframes import Grid, resample
from pipelines.features import technical
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import StreamingFold
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

WINDOW = 500  # bars that the usual code recomputes at every bar


def market(tiny: bool) -> tuple[Floats, str]:
    """Return 15-minute bars (n, 9) and their description."""
    path = recording("binance_spot_btcusdt_1m_2024.parquet")
    if path.is_file() and not tiny:
        return resample(recorded(path), MINUTES, QUARTERS), "BTC/USDT 2024, 15m"
    return resample(simulated(load_params(), 20 if tiny else 365), MINUTES, QUARTERS), "simulated, 15m"


def with_talib(high: Floats, low: Floats, close: Floats) -> None:
    """Compute the indicators of the technical group, each by its TA-Lib batch function."""
    talib.RSI(close, 14)
    talib.MACD(close, 12, 26, 9)
    talib.BBANDS(close, 20, 2.0, 2.0)
    talib.STOCHF(high, low, close, 14, 1)
    talib.WILLR(high, low, close, 14)
    talib.CCI(high, low, close, 20)
    talib.ATR(high, low, close, 14)
    talib.MOM(close, 10)
    talib.ROC(close, 10)
    talib.ADX(high, low, close, 14)


def with_pandas(frame: pd.DataFrame) -> dict[str, float]:
    """Return nine of the technical group, recomputed over the last bars for their last row: the usual way to serve."""
    high, low, close = frame["high"], frame["low"], frame["close"]
    change = close.diff()
    gain = change.clip(lower=0).ewm(alpha=1 / 14, adjust=False).mean()
    loss = (-change.clip(upper=0)).ewm(alpha=1 / 14, adjust=False).mean()
    macd = close.ewm(span=12, adjust=False).mean() - close.ewm(span=26, adjust=False).mean()
    middle, width = close.rolling(20).mean(), 2 * close.rolling(20).std(ddof=0)
    top, bottom = high.rolling(14).max(), low.rolling(14).min()
    stoch = 100 * (close - bottom) / (top - bottom)
    typical = (high + low + close) / 3
    centre = typical.rolling(20).mean()
    away = typical.rolling(20).apply(lambda x: np.abs(x - x.mean()).mean(), raw=True)
    last = close.shift()
    reach = pd.concat([high - low, (high - last).abs(), (low - last).abs()], axis=1).max(axis=1)
    atr = reach.ewm(alpha=1 / 14, adjust=False).mean()
    return {
        "rsi_14": (100 * gain / (gain + loss)).iloc[-1],
        "macd_12_26": (macd / close).iloc[-1],
        "bollinger_b_20": ((close - middle + width) / (2 * width)).iloc[-1],
        "stoch_k_14": stoch.iloc[-1],
        "williams_r_14": stoch.iloc[-1] - 100,
        "cci_20": ((typical - centre) / (0.015 * away)).iloc[-1],
        "atr_14": (atr / close).iloc[-1],
        "momentum_10": close.pct_change(10).iloc[-1],
        "roc_10": 100 * close.pct_change(10).iloc[-1],
    }


def live(fold: StreamingFold, bars: Floats) -> Callable[[], Any]:
    """Return a call that steps through the last `WINDOW` of clocked bars one by one, as serving does, after the history
    before them.
    """
    state = fold.fresh()
    fold.run(bars[:-WINDOW], state=state)
    return lambda: [fold.step(state, bar) for bar in bars[-WINDOW:]]


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    repeats = 3 if tiny else 25
    bars, description = market(tiny)
    family = StreamingFold("technical", (technical.GROUP,))
    high, low, close = (np.ascontiguousarray(bars[:, i]) for i in (2, 3, 4))
    frame = pd.DataFrame(bars[-WINDOW:], columns=list(BAR_FIELDS))
    shown = clocked(bars)
    batch, of_talib = in_turn(lambda: family.run(shown), lambda: with_talib(high, low, close), repeats)
    step, of_pandas = in_turn(live(family, shown), lambda: with_pandas(frame), repeats)
    whole, again = in_turn(live(FEATURES, shown), lambda: with_pandas(frame), repeats)
    run = np.array([[cpu_seconds(partial(f.run, shown)) for f in (FEATURES, SIGNALS)] for _ in range(repeats)])
    clocks = np.array([cpu_seconds(partial(clocked, bars)) for _ in range(repeats)])
    columns, ns = len(family.columns), 1e9 / len(bars)
    same = f"same values within {gap(family, bars, frame):.0e}"
    return [
        pairs(f"{columns} technical features, batch", "ns a bar", batch * ns, "TA-Lib batch", of_talib * ns,
              f"{description}, {len(bars):,} bars"),
        pairs(f"{columns} technical features, one live step", "us a bar", step / WINDOW * 1e6,
              f"pandas, 9 of them over {WINDOW} bars", of_pandas * 1e6, same),
        pairs(f"all {len(FEATURES.columns)} features, one live step", "us a bar", whole / WINDOW * 1e6,
              f"pandas, 9 of them over {WINDOW} bars", again * 1e6),
        Row(f"the {shown.shape[1] - BAR_WIDTH} columns of the exchange clocks, batch", "ns a bar", spread(clocks * ns)),
        Row(f"all {len(FEATURES.columns)} features, batch", "ns a bar", spread(run[:, 0] * ns)),
        Row(f"all {len(SIGNALS.columns)} signal columns, batch", "ns a bar", spread(run[:, 1] * ns)),
    ]  # fmt: skip


def gap(family: StreamingFold, bars: Floats, frame: pd.DataFrame) -> float:
    """Return the largest relative difference of the two sides at the last bar: they compute the same thing."""
    expected, folded = with_pandas(frame), family.run(bars)[-1]
    return max(float(abs(folded[family.index[name]] / value - 1.0)) for name, value in expected.items() if value)
