"""Time one whole decision in this process: features, signals, both arms, fusion, risk, durable on SQLite.

Compared with the usual way at its cheapest: nine indicators recomputed with pandas over the last bars and the native
models of both arms; signals, category scores, fusion, risk and ledger are the same code.

Run: python -m benchmarks decision
"""

import tempfile
import time
from collections import deque
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.features import WINDOW, with_pandas
from benchmarks.fixture import FAMILY, Fixture, by_decision_bar, fixture
from benchmarks.inference import native
from benchmarks.measured import Row, pairs, spread
from pipelines.contracts import BAR_FIELDS, Decision, Floats, utc
from pipelines.data.timeframes import Grid, resample
from pipelines.models.calibration import raw
from pipelines.models.tabular import TabularModel
from pipelines.params import Params
from pipelines.store import Store
from pipelines.warm_start import read_warm_start
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.policy.decide import decide
from serving.policy.decision_row import policy_of
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import ClosedBar, Symbol
from serving.state.tiers import Tier

TIER = Tier(2, "TIER_2: validator champion decides")
PARTS = ("features and signals", "models, fusion, risk", "durable in the ledger")


@dataclass(frozen=True, slots=True)
class NativeModel(TabularModel):
    """Evaluate the same model with the library that trained it."""

    trees: Any = None

    def raw(self, rows: Floats) -> Floats:
        """Return the raw scores (n,) of rows (n, k) from the native trees."""
        return raw(self.trees, rows)


def with_native_models(snapshot: Snapshot, at: Fixture) -> Snapshot:
    """Return the same slots with native models in place of the exported ones."""
    slots = {}
    for (family, arm), slot in snapshot.slots.items():
        params: Params = at.params.model_copy(update={"seed": at.params.seed + at.digests.index(slot.digest)})
        values = {field.name: getattr(slot.model, field.name) for field in fields(TabularModel)}
        slots[family, arm] = replace(slot, model=NativeModel(**values, trees=native(at, slot.model.columns, params)[0]))
    return replace(snapshot, slots=slots)


class DecisionPath:
    """Run what the decision service does between a closed bar and its answer, without HTTP."""

    def __init__(self, at: Fixture, snapshot: Snapshot, store: Store) -> None:
        """Start from the fixture's warm start, with an empty account and a ledger on `store`."""
        self.params, self.snapshot = at.params, snapshot
        self.symbol = Symbol(read_warm_start(Path(at.warm["path"]), at.warm["digest"]))
        self.policy, self.ledger = policy_of(at.params), Ledger(store)
        closes = AssetCloses(self.symbol.grid, self.symbol.warm.closes)
        scenarios = scenarios_of({self.symbol.name: closes}, at.params.labels.horizon_bars, at.params.risk.tail)
        self.account = Account(scenarios=scenarios, newest_closes=lambda _: self.symbol.closes)
        self.n = 0

    def decide(self, snapshot: Snapshot) -> Decision:
        """Return the decision at the newest close with the models of `snapshot`; nothing is stored."""
        close, self.n = utc(self.symbol.closed.close_time), self.n + 1
        portfolio = partial(self.account.portfolio, close, self.symbol.name)
        return decide(
            self.symbol, snapshot, self.policy, portfolio, (), tier=TIER, id=f"{self.n}", known_at=close,
            now=close,
        )  # fmt: skip

    def store(self, decision: Decision) -> None:
        """Append the decision with its feature and signal bytes, and wait until it is durable."""
        closed: ClosedBar = self.symbol.closed
        self.ledger.append(decision, closed.features.tobytes(), closed.signals.tobytes()).result()


def timed(path: DecisionPath, bars: Floats, recomputed: Snapshot) -> tuple[Floats, Floats, Floats]:
    """Time m decision bars: microseconds (m, 3) by PARTS, of the usual way (m,) with NaN where there is no event, and
    whether each bar had an event (m,).
    """
    took, usual, event = np.empty((len(bars), 3)), np.full(len(bars), np.nan), np.zeros(len(bars))
    seen: deque[Floats] = deque(bars[:WINDOW], WINDOW)
    for i, bar in enumerate(bars):
        marks = [time.perf_counter()]
        path.symbol.on_bar(bar)
        marks.append(time.perf_counter())
        decision = path.decide(path.snapshot)
        marks.append(time.perf_counter())
        path.store(decision)
        marks.append(time.perf_counter())
        took[i] = np.diff(marks) * 1e6
        seen.append(bar)
        event[i] = decision.models["validator"]["champion"].event is not None
        if event[i]:
            started = time.perf_counter()
            with_pandas(pd.DataFrame(np.array(seen), columns=list(BAR_FIELDS)))
            path.store(path.decide(recomputed))
            usual[i] = (time.perf_counter() - started) * 1e6
    return took, usual, event


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    at = fixture(tiny)
    bars = resample(np.concatenate(by_decision_bar(at.live, at.params)), Grid("1m"), Grid("15m"))
    slots = ModelSlots(at.home / "serving", at.home / "bundles", lambda *refused: None)
    snapshot = slots.pending()
    assert snapshot is not None
    assert not snapshot.refused, snapshot.refused
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.open(f"sqlite:///{scratch}/store.db")
        path = DecisionPath(at, snapshot, store)
        warm = 16  # the first decisions load code
        took, usual, event = timed(path, bars, with_native_models(snapshot, at))
        path.ledger.close()
        store.close()
    took, usual, with_event = took[warm:], usual[warm:], event[warm:] == 1.0
    whole = took.sum(axis=1)
    rows = [
        Row("one decision, every bar", "us", spread(whole, tail=True), note="wall time; durable before it counts"),
        pairs("one decision, bars with an event", "us", whole[with_event], f"pandas over {WINDOW} bars, native XGBoost",
              usual[with_event], f"both arms of {FAMILY} score", tail=True),
    ]  # fmt: skip
    return rows + [
        Row(f"  of that: {name}", "us", spread(took[with_event, i], tail=True)) for i, name in enumerate(PARTS)
    ]
