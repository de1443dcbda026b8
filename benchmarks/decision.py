"""Time what the decision service does at a close of four symbols, in this process: four families, both arms, durable.

Bars are stored and folded, every model of both arms answers, fusion, risk, and the decision is durable. Compared: one
batch with a symbol at a time, and one symbol with the usual way at its cheapest, which is nine indicators recomputed
with pandas over the last bars and the native model of one family in both arms, with no policy and nothing stored.

Run: python -m benchmarks decision
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from benchmarks.features import WINDOW, with_pandas
from benchmarks.fixture import by_decision_bar, fixture
from benchmarks.four_families import Served, four_families, of_symbols
from benchmarks.inference import native
from benchmarks.measured import Row, pairs, spread
from pipelines.contracts import BAR_FIELDS, Floats, JsonObject
from pipelines.data.timeframes import Grid, resample
from pipelines.models.calibration import raw
from pipelines.models.runtime import load_bundle
from pipelines.params import ModelsParams, Params
from pipelines.settings import Settings
from serving.client import bars_json
from serving.service.answers import answer, batch_answer, decisions_response
from serving.service.decision_engine import DecisionEngine
from serving.service.schemas import DecideRequest, ObserveBatchRequest, ObserveRequest

SYMBOLS = ("S00/USDT", "S01/USDT", "S02/USDT", "S03/USDT")
CLOSES, WARM = 200, 8  # decision bars that are timed; those before them, which load code
OBSERVE, DECIDE = 0, 1
CPU, WALL = 0, 1

Close = Callable[[DecisionEngine, Sequence[str], Sequence[bytes]], Awaitable[Floats]]


async def clocked(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the milliseconds of one call: CPU time of this process, in which other work does not count, and wall."""
    started = time.process_time(), time.perf_counter()
    await call()
    return (time.process_time() - started[CPU]) * 1e3, (time.perf_counter() - started[WALL]) * 1e3


async def batched(engine: DecisionEngine, symbols: Sequence[str], sent: Sequence[bytes]) -> Floats:
    """Observe and decide one close of all symbols in two calls; return ms (1, OBSERVE or DECIDE, CPU or WALL)."""

    async def observe() -> None:
        """Take the bars of all symbols, JSON to JSON."""
        request = ObserveBatchRequest.model_validate_json(b'{"observations":[' + b",".join(sent) + b"]}")
        observed = await engine.intake.observe_all(request.observations)
        answer(batch_answer("observations", "symbol", request.observations, observed))

    async def decide() -> None:
        """Decide on all symbols, JSON to JSON."""
        request = DecideRequest(symbols=list(symbols))
        decisions_response(request, await engine.decider.decide_all(symbols))

    return np.array([[await clocked(observe), await clocked(decide)]])


async def one_by_one(engine: DecisionEngine, symbols: Sequence[str], sent: Sequence[bytes]) -> Floats:
    """Do the same with two calls a symbol, one after another; return ms (symbols, OBSERVE or DECIDE, CPU or WALL)."""
    observed, decided = [], []
    for body in sent:

        async def observe(body: bytes = body) -> None:
            """Take the bars of one symbol, JSON to JSON."""
            answer(await engine.intake.observe(ObserveRequest.model_validate_json(body)))

        observed.append(await clocked(observe))
    for symbol in symbols:

        async def decide(symbol: str = symbol) -> None:
            """Decide on one symbol, JSON to JSON."""
            decisions_response(DecideRequest(symbol=symbol), await engine.decider.decide_all([symbol]))

        decided.append(await clocked(decide))
    return np.stack([observed, decided], axis=1)


async def closes_ms(
    where: Settings, params: Params, symbols: Sequence[str], bars: Sequence[Floats], close: Close
) -> Floats:
    """Return ms (closes, calls of each kind, OBSERVE or DECIDE, CPU or WALL) of an engine that starts for them."""
    engine = DecisionEngine(where, params)
    await engine.start()
    took = []
    for rows in bars:
        bodies: list[JsonObject] = [{"symbol": name, "bars": bars_json(rows)} for name in symbols]
        sent = [msgspec.json.encode(body) for body in bodies]
        took.append(await close(engine, symbols, sent))
    await engine.stop()
    return np.array(took)


def both_ways(at: Served, symbols: Sequence[str], closes: int) -> tuple[Floats, Floats]:
    """Return `closes_ms` of the same closes in one batch each, and with one symbol at a time."""
    params = at.params.model_copy(update={"models": ModelsParams(unseen_symbols="allow")})
    bars, took = by_decision_bar(at.live, at.params)[: closes + WARM], []
    with tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch:
        for close in (batched, one_by_one):
            where = of_symbols(at, symbols, Path(scratch) / close.__name__)
            took.append(asyncio.run(closes_ms(where, params, symbols, bars, close))[WARM:])
    return took[0], took[1]


def usual_ms(at: Served, n: int, tiny: bool) -> Floats:
    """Return the wall ms (n,) of the usual way for one symbol: indicators of WINDOW bars, one family in both arms."""
    bars, source = resample(at.live, Grid("1m"), Grid("15m")), fixture(tiny)
    arms = []
    for i, digest in enumerate(source.digests):
        model: Any = load_bundle(source.home / "bundles" / digest, digest)
        params = source.params.model_copy(update={"seed": source.params.seed + i})
        trees, rows, _ = native(source, model.columns, params)
        arms.append((trees, rows))
    took = np.empty(n)
    for i in range(n):
        window = bars[i % max(len(bars) - WINDOW, 1) :][:WINDOW]
        started = time.perf_counter()
        with_pandas(pd.DataFrame(window, columns=list(BAR_FIELDS)))
        for trees, rows in arms:
            raw(trees, rows[i % len(rows)][None])
        took[i] = (time.perf_counter() - started) * 1e3
    return took


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    at = four_families(tiny)
    together, alone = both_ways(at, SYMBOLS, 4 if tiny else CLOSES)
    single = alone.sum(axis=2)[:, :, WALL].ravel()  # observe and decide of one symbol
    usual = usual_ms(at, len(single), tiny)
    what = f"one close of {len(SYMBOLS)} symbols, four families, both arms, durable"
    whole, parts = "one call of each a symbol", alone.sum(axis=(1, 2))
    return [
        pairs(f"{what}: one batch", "ms", together.sum(axis=(1, 2))[:, WALL], whole, parts[:, WALL],
              "observed and decided, wall time, no HTTP", tail=True),
        pairs("  the same, CPU time", "ms", together.sum(axis=(1, 2))[:, CPU], whole, parts[:, CPU], tail=True),
        Row("  of that batch: decided", "ms", spread(together[:, 0, DECIDE, WALL], tail=True), note="wall time"),
        pairs("one symbol at a time: observed and decided, durable", "ms", single,
              f"pandas over {WINDOW} bars, native XGBoost of one family", usual, "wall time", tail=True),
        Row("  of that: decided", "ms", spread(alone[:, :, DECIDE, WALL].ravel(), tail=True), note="wall time"),
    ]  # fmt: skip
