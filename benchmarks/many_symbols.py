"""Time one close of sixteen symbols: a batched /observe and a batched /decide, against one call of each a symbol.

Every symbol is the same market under another name, and models answer for all by `models.unseen_symbols: allow`. What
a request does in this process is timed: its JSON is read, bars are stored durably and folded, models answer,
decisions are stored durably and written as JSON. HTTP itself comes on top, twice a close instead of 32 times.

Run: python -m benchmarks many_symbols
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import SecretStr

from benchmarks.fixture import FAMILY, arm_of, by_decision_bar, fixture, serve_arms
from benchmarks.four_families import four_families
from benchmarks.measured import Row, pairs, spread
from pipelines.contracts import Floats, JsonObject
from pipelines.params import ModelsParams, Params
from pipelines.settings import Settings
from pipelines.warm_start import _seal
from serving.client import bar_json
from serving.inference.generation import read_generation
from serving.service.answers import decisions_answer, observations_answer
from serving.service.decision_engine import DecisionEngine
from serving.service.schemas import DecideRequest, ObserveBatchRequest, ObserveRequest

SYMBOLS = tuple(f"S{i:02d}/USDT" for i in range(16))
CLOSES, WARM = 96, 8  # decision bars that are timed; those before them, which load code
SPEED = 900.0  # market seconds a second, `feed.speed`: a bar of 15 minutes each second

Close = Callable[[DecisionEngine, list[JsonObject]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Trained:
    """Hold what one market was trained into: home, arms by family, warm start, parameters, minutes by decision bar."""

    home: Path
    families: JsonObject
    warm: dict[str, str]
    params: Params
    bars: list[Floats]


def trained(tiny: bool, root: Path) -> Trained:
    """Train four families in both arms on one market; `tiny`: one family."""
    if tiny:
        small = fixture(tiny)
        arms = {arm: arm_of(digest) for arm, digest in zip(("champion", "challenger"), small.digests, strict=True)}
        return Trained(small.home, {FAMILY: arms}, small.warm, small.params, by_decision_bar(small.live, small.params))
    at = four_families(root)
    families = (read_generation(at.home / "serving") or {})["families"]
    return Trained(at.home, families, at.warm, at.params, by_decision_bar(at.live, at.params))


def installed(at: Trained, home: Path) -> Settings:
    """Return an installation of SYMBOLS: the same market under sixteen names."""
    shutil.copytree(at.home / "bundles", home / "bundles")
    named = {symbol: renamed(at.warm, symbol, home / "serving" / "warm") for symbol in SYMBOLS}
    where = Settings(home=home, store_url="", write_key=SecretStr("benchmark"))
    serve_arms(where, at.families, named, datetime.now(UTC))
    return where


def renamed(warm: dict[str, str], symbol: str, into: Path) -> dict[str, str]:
    """Return the entry of the same published warm start under another symbol."""
    draft = into / symbol.replace("/", "-")
    shutil.copytree(warm["path"], draft)
    meta = json.loads((draft / "meta.json").read_text())
    digest = _seal(draft, meta | {"symbol": symbol})
    return warm | {"digest": digest, "path": str(draft.rename(into / digest))}


async def batched(engine: DecisionEngine, sent: list[JsonObject]) -> None:
    """Observe and decide one close of all symbols, in two calls."""
    request = ObserveBatchRequest.model_validate_json(json.dumps({"observations": sent}))
    observed = await engine.intake.observe_all(request.observations)
    json.dumps(observations_answer(request, observed))
    asked = DecideRequest(symbols=list(SYMBOLS))
    json.dumps(decisions_answer(asked, await engine.decider.decide_all(SYMBOLS)))


async def one_by_one(engine: DecisionEngine, sent: list[JsonObject]) -> None:
    """Do the same with two calls a symbol, one after another."""
    for body in sent:
        json.dumps(await engine.intake.observe(ObserveRequest.model_validate_json(json.dumps(body))))
    for symbol in SYMBOLS:
        json.dumps(decisions_answer(DecideRequest(symbol=symbol), await engine.decider.decide_all([symbol])))


async def timed(where: Settings, params: Params, bars: list[Floats], close: Close) -> Floats:
    """Return (n, 2) ms of each close: CPU time of this process, in which other work does not count, and wall time."""
    engine = DecisionEngine(where, params)
    await engine.start()
    took = []
    for rows in bars:
        sent: list[JsonObject] = [{"symbol": name, "bars": [bar_json(row) for row in rows]} for name in SYMBOLS]
        started = time.process_time(), time.perf_counter()
        await close(engine, sent)
        took.append(((time.process_time() - started[0]) * 1e3, (time.perf_counter() - started[1]) * 1e3))
    await engine.stop()
    return np.array(took)


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    closes, warm = (4, 1) if tiny else (CLOSES, WARM)
    took = {}
    with tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch:
        at = trained(tiny, Path(scratch) / "trained")
        params = at.params.model_copy(update={"models": ModelsParams(unseen_symbols="allow")})
        for name, close in (("batched", batched), ("one by one", one_by_one)):
            where = installed(at, Path(scratch) / name)
            took[name] = asyncio.run(timed(where, params, at.bars[: closes + warm], close))[warm:]
    step_ms = 900.0 / SPEED * 1e3
    return [
        pairs(f"one close of {len(SYMBOLS)} symbols, observed and decided", "ms", took["batched"][:, 0],
              "one call of each a symbol", took["one by one"][:, 0], "CPU time, without HTTP", tail=True),
        pairs("  the same, wall time", "ms", took["batched"][:, 1], "one call of each a symbol",
              took["one by one"][:, 1], "durable on this disk", tail=True),
        Row(f"  share of the time between closes at speed {SPEED:.0f}", "%",
            spread(took["batched"][:, 1] / step_ms * 100.0), note="wall time"),
    ]  # fmt: skip
