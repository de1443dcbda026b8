"""Compile every kernel once and store the machine code, so that neither the first turn nor a service has to.

`make setup` runs it: `python -m bellwether.operations.compile_kernels`. One process folds a short simulated market
through what a turn and the services run; a second one runs the kernels of recordings, studies and other plans.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from flows.support.backtest import live_core
from pipelines import compiled
from pipelines.bootstrap import bootstrap as bootstrap_process
from pipelines.context_layout import NO_CONTEXT, TAPE_WIDTH
from pipelines.contracts import (
    BOOK_LEVELS,
    CLOSE,
    DAY_S,
    OPEN_TIME,
    VOLUME,
    Arrays,
    Books,
    ContextFeed,
    Floats,
    History,
    Trades,
    utc,
)
from pipelines.data import admission, collar, sampling
from pipelines.data.alignment import align
from pipelines.data.orderbook import hawkes
from pipelines.data.readers import recordings
from pipelines.data.readers.trades import bars_from_trades
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.evaluation import tail_risk
from pipelines.evaluation.backtest import backtest
from pipelines.evaluation.stress import bootstrap
from pipelines.evaluation.stressed import MarketHistory, Portfolio
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import StreamingFold
from pipelines.labels.barriers import triple_barrier
from pipelines.labels.returns import return_labels
from pipelines.models.base import Dataset
from pipelines.models.calibration_and_novelty import Calibration, Novelty, combine, stacked
from pipelines.models.compiled_trees import QUICK_SCORER_FROM, compiled_trees
from pipelines.models.reference import block_effects
from pipelines.models.regime.model_family import REGIME
from pipelines.models.views import VIEWS
from pipelines.params import Params
from pipelines.permissions import restrict
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import events
from pipelines.signals.regimes import market_state
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import flatten, to_rows
from serving.risk import exits
from serving.risk.exposure import AssetCloses, scenarios_of

T = TypeVar("T")
MARKET_DAYS = 30  # long enough for every feature to warm up and for some events to happen


def timed(what: str, run: Callable[[], T]) -> T:
    """Run a function, print its seconds, and return its result."""
    began = time.perf_counter()
    result = run()
    print(f"compiled {what}: {time.perf_counter() - began:.1f} s", flush=True)
    return result


def fold_twice(fold: StreamingFold, bars: Floats) -> Floats:
    """Return the values of a fold over bars (n, 9), after one live step: the two drivers of the same kernel."""
    state = fold.fresh()
    values = fold.run(bars, state=state)
    fold.step(state, bars[-1])
    return values


def fit_regimes(history: History, base: Floats, grid: Grid, base_grid: Grid, params: Params) -> None:
    """Fit and predict with the regime family, whose kernels no fold calls."""
    labels, view = return_labels(history.bars, base, grid, base_grid, params), VIEWS["regime"]
    keep = np.isfinite(history.features[:, FEATURES.index["volatility_regime"]])[labels["index"]]
    keep[: view.steps] = False
    index, values = labels["index"][keep], {name: labels[name][keep] for name in labels}
    data = Dataset(
        view.columns, lambda rows: view.build(history, index[rows]), at=np.arange(len(index)),
        weight=values["uniqueness"], extras={"ewma": values["ewma"]}, y=values["y"],
        uniqueness=values["uniqueness"], known=values["known"], ended=values["ended"],
    )  # fmt: skip
    data = data.select_columns(np.asarray(np.isfinite(data.newest()).all(axis=0)))
    REGIME.fit(data, params, 0.0, lambda line: None).predict(data.inputs(np.arange(2)))


def warm_turn(params: Params) -> None:
    """Run each compiled function of a turn on a small market, with the array types of real use."""
    spec = params.simulator.model_copy(
        update={"history_days": MARKET_DAYS, "live_days": 0, "drift_after_live_days": None}
    )
    base_grid = Grid("1m")
    grid = base_grid.at(params.data.decision_timeframe)
    base = timed("simulator", lambda: simulate(spec)).bars
    bars = timed("timeframes", lambda: resample(base, base_grid, grid))
    before, rules = collar.Recent(base[:-1], len(base) - 1, np.nan), params.data.quality
    timed(
        "admission",
        lambda: (
            admission.reasons(base, base_grid, utc(base[-1, OPEN_TIME] + DAY_S)),
            collar.outside(base[-1:], before, rules),
        ),
    )
    one = np.array([bars[0, OPEN_TIME]])
    books = Books(one, np.ones((1, 2, BOOK_LEVELS, 3)), np.ones((1, TAPE_WIDTH)))
    feed = ContextFeed(one, np.zeros(1, np.int64), one)
    timed("alignment", lambda: align(bars[:, OPEN_TIME], grid, books, feed))
    features = timed("features", lambda: fold_twice(FEATURES, bars))
    signals = fold_twice(SIGNALS, bars)
    scores = timed("category scores", lambda: CategoryScores.fit(signals))
    context = np.full((len(bars), len(NO_CONTEXT)), np.nan)
    history = History(bars, features, signals, np.empty((len(bars), 2, 0, 3)), context)
    timed("regimes", lambda: fit_regimes(history, base, grid, base_grid, params))
    direction, confidence = scores.score(signals)
    found = events(features, signals)
    known = grid.closes(bars[:, OPEN_TIME])
    closed = known[found.index]
    labels = timed(
        "labels",
        lambda: triple_barrier(
            base, closed, bars[found.index, CLOSE], found.direction, found.atr, params.labels.target_atr,
            params.labels.stop_atr, grid.deadline(closed, params.labels.horizon_bars),
        ),
    )  # fmt: skip
    flat = flatten(params)
    rows = to_rows(direction, confidence, event=0.0, tier=3.0, age_bars=0.0, breakers=0.0, embargoed=0.0)
    outs, codes = np.empty((len(rows), decision_kernel.OUT_WIDTH)), np.empty(len(rows), np.int64)
    timed(
        "decisions",
        lambda: (
            market_state(features[-1], signals[-1]),
            decision_kernel.decide_row(rows[0], flat, outs[0]),
            decision_kernel.decide_rows(rows, flat, outs, codes),
        ),
    )
    closes = AssetCloses(grid, np.column_stack([known, bars[:, CLOSE]]))
    loop = live_core(params, scenarios_of({"": closes}, params.labels.horizon_bars, params.risk.tail))
    fill, end, gross = np.full((3, len(bars)), np.nan)
    fill[found.index], end[found.index], gross[found.index] = labels.start_time, labels.exit_time, labels.gross_bps
    timed(
        "backtest",
        lambda: backtest(
            loop,
            rows,
            known,
            fill,
            end,
            end,
            gross,
            np.zeros(len(bars)),
            np.ones(len(bars)),
            np.zeros(len(bars)),
        ),
    )
    timed("trees", predict_by_trees)
    timed("calibration", calibrate_row)
    half = len(features) // 2
    timed("drift", lambda: block_effects(features[:half], features[half:], np.array([0]), half))


def predict_by_trees() -> None:
    """Predict by compiled trees as bundles have them, one row and many: boosted ones, and a forest of mirrored rows."""
    one: Arrays = {"feature": np.array([0, -1, -1], np.int32), "threshold": np.zeros(3, np.float32)}
    one |= {"roots": np.zeros(1, np.int32), "columns": np.array(2)}
    mirror = {"even": np.array([0]), "odd": np.array([0]), "centres": np.zeros(1, np.float32), "sides": np.array([1])}
    boosted: Arrays = {"value": np.ones(3, np.float32), "base": np.array(0.0, np.float32), "link": np.array("logistic")}
    forest: Arrays = {"value": np.ones(3), "base": np.array(0.0), "link": np.array("mean")}
    for arrays in (one | boosted, one | forest | mirror):
        trees = compiled_trees(arrays, 2)
        for rows in (1, QUICK_SCORER_FROM):
            trees.probabilities(np.ones((rows, 2)))


def calibrate_row() -> None:
    """Calibrate and average a row of members, and measure its novelty, as every served model does."""
    line, row, p = Calibration(1.0, 0.0, np.zeros((2, 2))), np.full((1, 1), 0.5), np.empty((2, 1, 1))
    line.calibrate(row[0])
    lines, no_class = stacked([line])[np.newaxis], np.empty((1, 0), bool)
    combine(row[np.newaxis], lines, np.ones(1), no_class, np.empty((1, 1, 1)), p[0], p[1])
    Novelty(row[0], row, 1.0).distance(row)


def random_walk(n: int, seed: int) -> Floats:
    """Return (n, 9) one-minute bars of a random walk: enough for what only has to be compiled."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 1e-3, n)))
    first = np.concatenate([[100.0], close[:-1]])
    volume = rng.uniform(1.0, 2.0, n)
    high, low = np.maximum(first, close) * 1.0005, np.minimum(first, close) * 0.9995
    trades, quoted = np.full(n, 9.0), 1e-4 * close
    return np.column_stack([60.0 * np.arange(n), first, high, low, close, volume, trades, volume / 2, quoted])


def write_recording(folder: Path) -> Path:
    """Write a recording of three changes of a book, one a minute, and return its folder."""
    at = pd.date_range("2024-01-01", periods=3, freq="1min", tz="UTC")
    pd.DataFrame(
        {"receive_time": at, "event_time": at, "final_update_id": [2, 3, 4], "prev_final_update_id": [1, 2, 3],
         "side": "bid", "price": [99.0, 100.0, 99.5], "quantity": 1.0}
    ).to_parquet(folder / "depth_updates.parquet")  # fmt: skip
    pd.DataFrame(
        {"last_update_id": 1, "side": ["bid", "ask"], "price": [98.0, 101.0], "quantity": [1.0, 1.0]}
    ).to_parquet(folder / "depth_snapshot.parquet")
    return folder


def warm_rest(params: Params) -> None:
    """Run what a turn does not: recordings, trades, sampling, fits of arrivals, other exits, stress and tails.

    The signals come first, a third of all that is compiled: they are done when the other process needs them.
    """
    bars, rng = random_walk(900, 1), np.random.default_rng(2)
    timed("signals", lambda: fold_twice(SIGNALS, bars))
    with tempfile.TemporaryDirectory() as folder:
        timed("recordings", lambda: recordings.replay_recording(write_recording(Path(folder))))
    trades = Trades(
        bars[:, OPEN_TIME], bars[:, CLOSE], bars[:, VOLUME], np.where(rng.random(len(bars)) < 0.5, 1.0, -1.0)
    )
    timed("trades", lambda: bars_from_trades(trades, 60))
    timed(
        "sampling",
        lambda: (
            sampling.cusum(bars, 60.0),
            sampling.sampled_bars(bars, sampling.volume_bars(bars, 60.0, 20.0)),
            sampling.imbalance_bars(bars, 60.0, "volume", 20),
        ),
    )
    timed("arrivals", lambda: hawkes.fit(hawkes.simulate(1.0, 0.5, 2.0, 300.0, 3)))
    rules = exits.flatten(params.exits, params.labels)
    one = np.array([0])
    timed(
        "exits",
        lambda: exits.simulate_exits(bars, bars[one, OPEN_TIME], bars[one, CLOSE], one + 1, one + 0.01, 600.0, rules),
    )
    returns = np.diff(np.log(bars[:, CLOSE]))
    timed("tails", lambda: [tail_risk.estimate(returns, name, 0.95) for name in tail_risk.METHODS])
    portfolio = Portfolio(np.array([0.1]), np.array([0.02]), 5.0)
    daily = bars[:, np.newaxis].copy()
    daily[:, :, OPEN_TIME] *= 1440.0
    past = MarketHistory(("SIM/USDT",), DAY_S, daily, np.full((len(bars), 1), np.nan))
    timed("stress", lambda: bootstrap(portfolio, past, 100, params.seed))


def main() -> None:
    """Compile in two processes and mark the cache as warm; do nothing if it is."""
    bootstrap_process()
    restrict()
    try:
        if message := compiled.prepare():
            print(message)
    except OSError as error:
        sys.exit(f"the machine code of the kernels cannot be stored: {error}")
    if compiled.kernels_are_warm():
        print("the kernel cache is warm")
        return
    print(f"{len(compiled.kernel_sources())} files of kernels → {compiled.cache_dir()}")
    began = time.perf_counter()
    params = load_params()
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=bootstrap_process) as pool:
        for part in [pool.submit(run, params) for run in (warm_turn, warm_rest)]:
            part.result()
    compiled.mark_warm()
    print(f"warm after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
