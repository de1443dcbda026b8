"""What a feature costs: the compiled fold beside TA-Lib's batch functions, and beside pandas recomputed at each bar.

Both sides of a ratio are measured in turn in one run, best of several, on the same seeded random-walk bars. Seconds are
CPU seconds of this process, so that other work on the machine is not counted. Run: python -m benchmarks.features
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import talib

from pipelines.contracts import BAR_FIELDS, Floats
from pipelines.features import technical
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import Fold
from pipelines.signals.catalog import SIGNALS

BARS = 35_040  # a year of 15 minutes
WINDOW = 500  # bars that the usual code recomputes at every bar
ROUNDS = 7


def market(n: int, seed: int = 7) -> Floats:
    """Random-walk bars (n, 8); prices in quote currency, 15 minutes apart."""
    rng = np.random.default_rng(seed)
    close = 4e4 * np.exp(np.cumsum(rng.normal(0, 3e-3, n)))
    opened = np.concatenate([[4e4], close[:-1]])
    high = np.maximum(opened, close) * (1 + np.abs(rng.normal(0, 1e-3, n)))
    low = np.minimum(opened, close) * (1 - np.abs(rng.normal(0, 1e-3, n)))
    volume = rng.lognormal(5, 0.7, n)
    times = 1.7040672e9 + 900.0 * np.arange(n)
    return np.column_stack([times, opened, high, low, close, volume, np.floor(volume), volume * rng.beta(8, 8, n)])


def with_talib(high: Floats, low: Floats, close: Floats) -> None:
    """The indicators of the technical family, each by its TA-Lib batch function."""
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
    """The usual way to serve: the technical nine, recomputed over the last bars to read their last row."""
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
    spread = typical.rolling(20).apply(lambda x: np.abs(x - x.mean()).mean(), raw=True)
    last = close.shift()
    reach = pd.concat([high - low, (high - last).abs(), (low - last).abs()], axis=1).max(axis=1)
    atr = reach.ewm(alpha=1 / 14, adjust=False).mean()
    return {
        "rsi_14": (100 * gain / (gain + loss)).iloc[-1],
        "macd_12_26": (macd / close).iloc[-1],
        "bollinger_b_20": ((close - middle + width) / (2 * width)).iloc[-1],
        "stoch_k_14": stoch.iloc[-1],
        "williams_r_14": stoch.iloc[-1] - 100,
        "cci_20": ((typical - centre) / (0.015 * spread)).iloc[-1],
        "atr_14": (atr / close).iloc[-1],
        "momentum_10": close.pct_change(10).iloc[-1],
        "roc_10": 100 * close.pct_change(10).iloc[-1],
    }


def best(*works: Callable[[], Any]) -> list[float]:
    """Least CPU seconds of one call of each, taken in turn over the rounds after one that is not counted."""
    least = [float("inf")] * len(works)
    for counted in [False] + [True] * ROUNDS:
        for i, work in enumerate(works):
            start = time.process_time()
            work()
            if counted:
                least[i] = min(least[i], time.process_time() - start)
    return least


def run(bars: Floats) -> dict[str, float]:
    """Batch speed of the whole catalogues on `bars` (n, 8): nanoseconds a bar, and a column a bar."""
    features, signals = best(lambda: FEATURES.run(bars), lambda: SIGNALS.run(bars))
    out = {}
    for fold, seconds in ((FEATURES, features), (SIGNALS, signals)):
        out[f"{fold.name}_ns_per_bar"] = seconds / len(bars) * 1e9
        out[f"{fold.name}_ns_per_column"] = seconds / len(bars) / len(fold.columns) * 1e9
    return out


def live(fold: Fold, bars: Floats) -> Callable[[], Any]:
    """A call that takes the last `WINDOW` bars one by one, as serving does, after the history before them."""
    state = fold.fresh()
    fold.run(bars[:-WINDOW], None, state)
    return lambda: [fold.step(state, bar) for bar in bars[-WINDOW:]]


def measure() -> dict[str, float]:
    """Every figure by name; a ratio above 1 means the fold is that many times faster."""
    bars = market(BARS)
    family = Fold("technical", (technical.FAMILY,))
    high, low, close = (np.ascontiguousarray(bars[:, i]) for i in (2, 3, 4))
    frame = pd.DataFrame(bars[-WINDOW:], columns=list(BAR_FIELDS))
    fold_s, talib_s = best(lambda: family.run(bars), lambda: with_talib(high, low, close))
    features_s, signals_s, technical_s, pandas_s = best(
        live(FEATURES, bars), live(SIGNALS, bars), live(family, bars), lambda: [with_pandas(frame) for _ in range(5)]
    )
    return run(bars) | {
        "technical_fold_ns_per_bar": fold_s / BARS * 1e9,
        "technical_talib_ns_per_bar": talib_s / BARS * 1e9,
        "batch_fold_against_talib": talib_s / fold_s,
        "features_live_us": features_s / WINDOW * 1e6,
        "signals_live_us": signals_s / WINDOW * 1e6,
        "technical_live_us": technical_s / WINDOW * 1e6,
        "technical_pandas_us": pandas_s / 5 * 1e6,
        "live_fold_against_pandas": (pandas_s / 5) / (technical_s / WINDOW),
    }


def main() -> None:
    figures = measure()
    print(
        f"{BARS:,} bars, best of {ROUNDS} in CPU time; "
        f"{len(FEATURES.columns)} features, {len(SIGNALS.columns)} signal columns"
    )
    for name, value in figures.items():
        print(f"  {name:32} {value:12,.2f}")
    print(
        f"batch: the technical family takes {1 / figures['batch_fold_against_talib']:.1f} times TA-Lib's time\n"
        f"live: one step is {figures['live_fold_against_pandas']:,.0f} times faster than pandas over {WINDOW} bars"
    )


if __name__ == "__main__":
    main()
