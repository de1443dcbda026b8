"""Time signals: everything for one live bar, a million bars in batch, and the usual code for the same rules.

Compared with talipp (incremental indicators, one value a call) where it is installed, and with pandas as such rules
are usually written. On recorded BTC/USDT bars where they are there, else on a simulated year.
Run: python -m benchmarks signals_speed
"""

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.features import MINUTES, QUARTERS, WINDOW, live, market
from benchmarks.measured import Row, cpu_seconds, in_turn, pairs, spread
from pipelines.context_layout import CONTEXT_WIDTH
from pipelines.contracts import BAR_FIELDS, BOOK_LEVELS, CLOSE, OPEN_TIME, RETAINED_BARS, Floats, History
from pipelines.data.alignment import align
from pipelines.data.bar_clock import clocked
from pipelines.features import technical
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import StreamingFold
from pipelines.signals import fvg, sweep, swings
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.warm_start import WarmStart
from serving.state.symbols import Symbol

MILLION = 1_000_000
TALIPP = "2.7.0"  # the version the figures were made with


def made_up_context(bars: Floats) -> tuple[Floats, Floats]:
    """Return books (n, 2, levels, 3) and context (n, CONTEXT_WIDTH), made up so that no step can return early: only
    their cost counts.
    """
    rng = np.random.default_rng(7)
    levels = np.empty((len(bars), 2, BOOK_LEVELS, 3))
    for side, way in enumerate((-1.0, 1.0)):
        levels[:, side, :, 0] = bars[:, CLOSE, None] * (1.0 + way * 1e-5 * (1.0 + np.arange(BOOK_LEVELS)))
    levels[..., 1:] = rng.lognormal(0.0, 0.5, (len(bars), 2, BOOK_LEVELS, 2))
    return levels, rng.uniform(0.0, 1.0, (len(bars), CONTEXT_WIDTH))


def everything_live(bars: Floats) -> tuple[Callable[[], Any], Callable[[int], float]]:
    """Return a call that steps through the last `WINDOW` of clocked bars with features and signals as serving does, and
    a function that gives the CPU seconds of the i-th of them.
    """
    levels, context = made_up_context(bars)
    states = []
    for fold in (FEATURES, SIGNALS):
        state = fold.fresh()
        fold.run(bars[:-WINDOW], levels[:-WINDOW], context[:-WINDOW], state)
        states.append((fold, state))

    def one(i: int) -> None:
        """Step through one bar."""
        for fold, state in states:
            fold.step(state, bars[i], levels[i], context[i])

    def window() -> None:
        """Step through the last `WINDOW` bars."""
        for i in range(-WINDOW, 0):
            one(i)

    return window, lambda i: cpu_seconds(partial(one, i - WINDOW))


def live_symbol(bars: Floats) -> Symbol:
    """Return the live state of a symbol after bars (n, 9) of 15 minutes, as the decision service holds it."""
    levels, context = align(bars[:, OPEN_TIME], QUARTERS, None, None)
    states = FEATURES.fresh(), SIGNALS.fresh()
    rows = [fold.run(bars, levels, context, state) for fold, state in zip((FEATURES, SIGNALS), states, strict=True)]
    history = History(*(part[-RETAINED_BARS:] for part in (bars, *rows, levels, context)))
    return Symbol(
        WarmStart(
            symbol="BENCH/USDT", base_grid=MINUTES, grid=QUARTERS, last_open_time=float(bars[-1, OPEN_TIME]) + 840.0,
            feature_state=states[0], signal_state=states[1], tail=bars[:0], history=history, books=None, feed=None,
            closes=np.column_stack([QUARTERS.closes(bars[:, OPEN_TIME]), bars[:, CLOSE]]),
            category_scores=CategoryScores.fit(rows[1]), clock="market", data_hash=None, traditional=None,
            traditional_miss_atr=None, reference={}, digest="",
        )
    )  # fmt: skip


def in_service(bars: Floats) -> tuple[Floats, Floats, Floats]:
    """Return CPU us of single calls as the service makes them: a closed decision bar, its two steps alone, and a base
    bar that closes no decision bar. Symbols and bare folds go through the last `WINDOW` bars after the same history.
    """
    symbol, waiting = live_symbol(bars[:-WINDOW]), live_symbol(bars[:-WINDOW])
    states = [(fold, fold.fresh()) for fold in (FEATURES, SIGNALS)]
    for fold, state in states:
        fold.run(bars[:-WINDOW], np.empty((len(bars) - WINDOW, 2, 0, 3)), state=state)

    def steps(bar: Floats) -> None:
        """Step through one clocked bar."""
        for fold, state in states:
            fold.step(state, bar)

    took = np.empty((WINDOW, 2))
    for i, (bar, shown) in enumerate(zip(bars[-WINDOW:], clocked(bars[-WINDOW:]), strict=True)):
        took[i] = cpu_seconds(partial(symbol.on_bar, bar)), cpu_seconds(partial(steps, shown))
    minutes = np.repeat(bars[-WINDOW:], 15, axis=0)  # as if each minute of a bar were that bar: only the cost counts
    minutes[:, OPEN_TIME] += np.tile(np.arange(15.0) * 60.0, WINDOW)
    each = np.array([cpu_seconds(partial(waiting.advance, minutes[i : i + 1])) for i in range(len(minutes))])
    return took[:, 0] * 1e6, took[:, 1] * 1e6, each[np.arange(len(each)) % 15 != 14] * 1e6


def seconds_for(bars: Floats, n: int) -> float:
    """Return the CPU seconds of n bars through features and signals, one history after another, states carried on."""
    levels, context = made_up_context(bars)
    states = [(fold, fold.fresh()) for fold in (FEATURES, SIGNALS)]
    span, done, took = bars[-1, OPEN_TIME] - 2.0 * bars[0, OPEN_TIME] + bars[1, OPEN_TIME], 0, 0.0
    while done < n:
        part = slice(0, min(len(bars), n - done))
        later = bars[part].copy()
        later[:, OPEN_TIME] += span * (done // len(bars))
        started = time.process_time()
        shown = clocked(later)
        for fold, state in states:
            fold.run(shown, levels[part], context[part], state)
        took += time.process_time() - started
        done += len(later)
    return took


# ---- the usual code ---------------------------------------------------------------------------------------------


def _atr(frame: pd.DataFrame) -> pd.Series:
    """Return the ATR 14 of each bar, in price units."""
    last = frame["close"].shift()
    reach = pd.concat([frame["high"] - frame["low"], (frame["high"] - last).abs(), (frame["low"] - last).abs()], axis=1)
    return reach.max(axis=1).ewm(alpha=1 / 14, adjust=False).mean()


def fvg_in_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the gaps of all bars, and the bar that first traded into each: found in vectors, followed in a loop."""
    least = fvg.MIN_ATR * _atr(frame)
    up = frame["low"] - frame["high"].shift(2) >= least
    down = frame["low"].shift(2) - frame["high"] >= least
    side = np.where(up, 1.0, np.where(down, -1.0, 0.0))
    top = np.where(up, frame["low"], np.where(down, frame["low"].shift(2), np.nan))
    bottom = np.where(up, frame["high"].shift(2), np.where(down, frame["high"], np.nan))
    low, high, mitigated = frame["low"].to_numpy(), frame["high"].to_numpy(), np.full(len(frame), np.nan)
    for i in np.flatnonzero(side):
        into = low[i + 1 :] <= top[i] if side[i] > 0 else high[i + 1 :] >= bottom[i]
        if into.any():
            mitigated[i] = i + 1 + np.argmax(into)
    return pd.DataFrame({"direction": side, "low": bottom, "high": top, "mitigated": mitigated}, index=frame.index)


def sweep_in_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the sweeps of all bars: swings by centred rolling extremes, each followed until it is swept or broken."""
    n, close, least = len(frame), frame["close"].to_numpy(), sweep.MIN_ATR * _atr(frame).to_numpy()
    depth, side = np.zeros(n), np.zeros(n)
    for way, column in ((1.0, "high"), (-1.0, "low")):
        edge = way * frame[column]
        found = np.flatnonzero(edge == edge.rolling(swings.WIDTH, center=True).max())
        levels, shut = edge.to_numpy(), way * close
        for i in found:
            level, beyond, extreme = levels[i], 0, -np.inf
            for j in range(i + swings.BARS_PER_SIDE + 1, n):
                if levels[j] <= level and not beyond:
                    continue
                beyond, extreme = beyond + 1, max(extreme, levels[j])
                if shut[j] < level:
                    if extreme - level >= least[j]:
                        if extreme - level > depth[j]:
                            depth[j], side[j] = extreme - level, -way
                        break
                    beyond, extreme = 0, -np.inf
                elif beyond >= sweep.WITHIN:
                    break
    return pd.DataFrame({"direction": side, "depth": depth}, index=frame.index)


def same(fold: StreamingFold, name: str, bars: Floats, expected: pd.DataFrame) -> str:
    """Describe how often both sides agree where one of them takes a side, after the warm-up."""
    ours = np.nan_to_num(fold.run(bars)[:, fold.index[f"{name}.direction"]])[200:]
    theirs = expected["direction"].to_numpy()[200:]
    either = (ours != 0) | (theirs != 0)
    difference = f"; ours tracks {sweep.MAX_SWINGS} swings a side, theirs all" if name == "sweep" else ""
    return (
        f"the same answer on {(ours == theirs)[either].mean():.1%} of {either.sum():,} bars where one does{difference}"
    )


# ---- talipp -----------------------------------------------------------------------------------------------------


def with_talipp(bars: Floats) -> tuple[Callable[[], Any], Callable[[], dict[str, float]]]:
    """Return a call that adds the last `WINDOW` bars one by one to nine of talipp's indicators after the history before
    them, and a function that gives their values in our units.
    """
    from talipp.indicators import ADX, ATR, BB, CCI, MACD, ROC, RSI, Stoch, Williams
    from talipp.ohlcv import OHLCV

    of_close: Any = [RSI(14), MACD(12, 26, 9), BB(20, 2.0), ROC(10)]
    of_bar: Any = [Stoch(14, 1), Williams(14), CCI(20), ATR(14), ADX(14, 14)]

    def add(rows: Floats) -> None:
        """Add rows (m, 9) to every indicator."""
        for _, opened, high, low, close, volume, *_ in rows.tolist():
            bar = OHLCV(opened, high, low, close, volume)
            for indicator in of_close:
                indicator.add(close)
            for indicator in of_bar:
                indicator.add(bar)
        for indicator in (*of_close, *of_bar):  # it stores all it was ever given; a service would discard it
            indicator.purge_oldest(max(0, len(indicator) - 4 * WINDOW))

    def values() -> dict[str, float]:
        """Return the newest value of six indicators."""
        rsi, _, _, roc = (indicator[-1] for indicator in of_close)
        _, williams, cci, atr, adx = (indicator[-1] for indicator in of_bar)
        close = float(bars[-1, CLOSE])
        return {"rsi_14": rsi, "roc_10": roc, "williams_r_14": williams, "cci_20": cci, "atr_14": atr / close,
                "adx_14": adx.adx}  # fmt: skip

    add(bars[-10 * WINDOW : -WINDOW])
    return lambda: add(bars[-WINDOW:]), values


def compare_with_talipp(bars: Floats, repeats: int) -> Row:
    """Return the row against talipp; without talipp, our side only."""
    family = StreamingFold("technical", (technical.GROUP,))
    what = f"{len(family.columns)} technical features, one live step"
    if importlib.util.find_spec("talipp") is None:
        took = np.array([cpu_seconds(live(family, bars)) for _ in range(repeats)])
        note = f"talipp is not installed, so there is no comparison: pip install talipp=={TALIPP}"
        return Row(what, "us a bar", spread(took / WINDOW * 1e6), note=note)
    call, values = with_talipp(bars)
    call()
    last = family.run(bars)[-1]
    gaps = {
        name: abs(last[family.index[name]] / value - 1.0) for name, value in values().items() if name in family.index
    }
    version = importlib.metadata.version("talipp")
    step, theirs = in_turn(live(family, clocked(bars)), call, repeats)
    return pairs(what, "us a bar", step / WINDOW * 1e6, f"talipp {version}, nine of them", theirs / WINDOW * 1e6,
                 f"{len(gaps)} of them compared, the same within {max(gaps.values()):.0e}")  # fmt: skip


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    repeats, slow = (3, 2) if tiny else (25, 5)
    bars, description = market(tiny)
    shown = clocked(bars)
    window, single = everything_live(shown)
    window()
    alone = np.array([single(i) for _ in range(1 if tiny else 4) for i in range(WINDOW)]) * 1e6
    n = 5_000 if tiny else MILLION
    frame = pd.DataFrame(bars, columns=list(BAR_FIELDS))
    columns = len(FEATURES.columns) + len(SIGNALS.columns)
    closed, bare, waiting = in_service(bars)
    rows = [
        Row(f"all {columns} features and signals, one live bar", "us a bar", spread(alone, tail=True),
            note="CPU of the two calls; book and context given"),
        pairs("  the same in the service, a decision bar that closes", "us", closed, "the two calls alone", bare,
              "without a book; gaps, records, clock and history on top", tail=True),
        Row("  a base bar that closes no decision bar", "us", spread(waiting, tail=True)),
        Row(f"all {columns} features and signals, batch of {n:,}", "s",
            spread(np.array([seconds_for(bars, n) for _ in range(1 if tiny else 3)]))),
        compare_with_talipp(bars, repeats),
    ]  # fmt: skip
    for name, family, usual in (("fvg", fvg.GROUP, fvg_in_pandas), ("sweep", sweep.GROUP, sweep_in_pandas)):
        fold = StreamingFold(f"{name}_alone", (family,))
        ours, theirs = in_turn(partial(fold.run, shown), partial(usual, frame), slow)
        ns = 1e9 / len(bars)
        rows.append(
            pairs(f"{name}, batch", "ns a bar", ours * ns, "pandas over all bars", theirs * ns,
                  f"{description}; {same(fold, name, bars, usual(frame))}")
        )  # fmt: skip
        newest = frame[-WINDOW:]
        step, again = in_turn(live(fold, shown), partial(usual, newest), repeats)
        rows.append(
            pairs(f"{name}, one live step", "us a bar", step / WINDOW * 1e6, f"pandas over the last {WINDOW} bars",
                  again * 1e6)
        )  # fmt: skip
    return rows
