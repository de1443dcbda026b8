"""Compile every kernel once and keep the machine code, so that neither the first turn nor a service has to.

`make setup` runs it: `python -m flows.warm`. It folds a short simulated market through each compiled part.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flows.backtest import live_core
from flows.doctor import kernels_are_warm, warm_mark
from pipelines.compiled import cache_dir, kernel_sources
from pipelines.contracts import (
    BOOK_LEVELS,
    CLOSE,
    NO_CONTEXT,
    OPEN_TIME,
    TAPE_WIDTH,
    TIMEFRAME_SECONDS,
    Books,
    ContextFeed,
    Floats,
    History,
)
from pipelines.data.alignment import align
from pipelines.data.simulator import simulate
from pipelines.data.timeframes import resample
from pipelines.evaluation.backtest import backtest
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import Fold
from pipelines.labels.barriers import triple_barrier
from pipelines.labels.returns import return_labels
from pipelines.models.base import Dataset
from pipelines.models.regime.recipe import REGIME
from pipelines.models.views import VIEWS
from pipelines.monitoring.drift import block_effects
from pipelines.settings import Params, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import events
from pipelines.signals.voices import Voices
from serving import core
from serving.policy import flatten, to_rows
from serving.risk.exposure import scenarios_of

MARKET_DAYS = 30  # long enough for every feature to warm up and for some events to happen


def timed(what: str, run: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    print(f"compiling {what} …", end=" ", flush=True)
    result = run()
    print(f"{time.perf_counter() - began:.1f} s", flush=True)
    return result


def fold_twice(fold: Fold, bars: Floats) -> Floats:
    """Batch, then one live step: the two drivers of the same kernel."""
    state = fold.fresh()
    values = fold.run(bars, state=state)
    fold.step(state, bars[-1])
    return values


def fit_regimes(history: History, base: Floats, step_s: int, params: Params) -> None:
    """Fit and answer: the kernels of the regime family, which no fold drives."""
    told, view = return_labels(history.bars, base, step_s, params), VIEWS["regime"]
    keep = np.isfinite(history.features[:, FEATURES.index["volatility_regime"]])[told["index"]]
    keep[: view.steps] = False
    index, values = told["index"][keep], {name: told[name][keep] for name in told}
    data = Dataset(
        view.columns, lambda rows: view.build(history, index[rows]), at=np.arange(len(index)),
        more={"ewma": values["ewma"]},
        **{name: values[name] for name in ("y", "weight", "uniqueness", "known", "ended")},
    )  # fmt: skip
    data = data.narrow(np.asarray(np.isfinite(data.newest()).all(axis=0)))
    REGIME.fit(data, params, 0.0, lambda line: None).answer(data.inputs(np.arange(2)))


def warm(params: Params) -> None:
    """Run each compiled function on a small market, with the array types it meets in real use."""
    spec = params.simulator.model_copy(
        update={"history_days": MARKET_DAYS, "live_days": 0, "drift_after_live_days": None}
    )
    step_s = TIMEFRAME_SECONDS[params.data.decision_timeframe]
    base = timed("simulator", lambda: simulate(spec)).bars
    bars = timed("timeframes", lambda: resample(base, 60, step_s))
    one = np.array([bars[0, OPEN_TIME]])
    books = Books(one, np.ones((1, 2, BOOK_LEVELS, 3)), np.ones((1, TAPE_WIDTH)))
    feed = ContextFeed(one, np.zeros(1, np.int64), one)
    timed("alignment", lambda: align(bars[:, OPEN_TIME] + step_s, step_s, books, feed))
    features = timed("features", lambda: fold_twice(FEATURES, bars))
    signals = timed("signals", lambda: fold_twice(SIGNALS, bars))
    voices = timed("voices", lambda: Voices.fit(signals))
    context = np.full((len(bars), len(NO_CONTEXT)), np.nan)
    history = History(bars, features, signals, np.empty((len(bars), 2, 0, 3)), context)
    timed("regimes", lambda: fit_regimes(history, base, step_s, params))
    direction, confidence = voices.speak(signals)
    found = events(features, signals)
    closed = bars[found.index, OPEN_TIME] + step_s
    labels = timed(
        "labels",
        lambda: triple_barrier(
            base, closed, bars[found.index, CLOSE], found.direction, found.atr, params.labels.target_atr,
            params.labels.stop_atr, params.labels.horizon_bars * step_s,
        ),
    )  # fmt: skip
    flat = flatten(params)
    rows = to_rows(direction, confidence, event=0.0, tier=3.0, age_bars=0.0, breakers=0.0)
    outs, codes = np.empty((len(rows), core.OUT_WIDTH)), np.empty(len(rows), np.int64)
    timed("decisions", lambda: (core.decide_row(rows[0], flat, outs[0]), core.core_batch(rows, flat, outs, codes)))
    closes = np.column_stack([bars[:, OPEN_TIME] + step_s, bars[:, CLOSE]])
    loop = live_core(params, scenarios_of({"": closes}, params.labels.horizon_bars * step_s))
    fill, end, gross = np.full((3, len(bars)), np.nan)
    fill[found.index], end[found.index], gross[found.index] = labels.start_time, labels.exit_time, labels.gross_bps
    timed(
        "backtest",
        lambda: backtest(
            loop, rows, bars[:, OPEN_TIME] + step_s, fill, end, gross, np.zeros(len(bars)), 0.0, 100, params.seed
        ),
    )
    half = len(features) // 2
    timed("drift", lambda: block_effects(features[:half], features[half:], np.array([0]), half))


def main() -> None:
    if kernels_are_warm():
        print("the kernel cache is warm")
        return
    print(f"{len(kernel_sources())} files of kernels → {cache_dir()}")
    began = time.perf_counter()
    warm(load_params())
    warm_mark().touch()
    print(f"warm after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
