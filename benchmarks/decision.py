"""One whole decision in this process: features, signals, both arms, fusion, risk, durable on SQLite before it counts.

Beside it the usual way at its cheapest: nine indicators recomputed with pandas over the last bars and the native
models of both arms; signals, voices, fusion, risk and ledger are the same code. Run: python -m benchmarks decision
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
from benchmarks.fixture import FAMILY, Stand, by_decision_bar, stand
from benchmarks.inference import native
from benchmarks.measured import Row, pairs, spread
from pipelines.contracts import BAR_FIELDS, Decision, Floats, utc
from pipelines.data.timeframes import resample
from pipelines.models.calibration import raw
from pipelines.models.tabular import TabularModel
from pipelines.params import Params
from pipelines.store import Store
from pipelines.warm_start import read_warm_start
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.policy.decide import decide
from serving.policy.decision_row import flatten
from serving.risk.exposure import scenarios_of
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import ClosedBar, Symbol
from serving.state.tiers import Tier

TIER = Tier(2, "TIER_2: validator champion decides")
PARTS = ("features and signals", "models, fusion, risk", "durable in the ledger")


@dataclass(frozen=True, slots=True)
class Native(TabularModel):
    """The same model, answered by the library it was trained with."""

    trees: Any = None

    def raw(self, rows: Floats) -> Floats:
        return raw(self.trees, rows)


def natively(snapshot: Snapshot, at: Stand) -> Snapshot:
    """The same slots on the native models."""
    slots = {}
    for (family, arm), slot in snapshot.slots.items():
        params: Params = at.params.model_copy(update={"seed": at.params.seed + at.digests.index(slot.digest)})
        held = {field.name: getattr(slot.model, field.name) for field in fields(TabularModel)}
        slots[family, arm] = replace(slot, model=Native(**held, trees=native(at, slot.model.columns, params)[0]))
    return replace(snapshot, slots=slots)


class Desk:
    """What the decision service does between a closed bar and its answer, without the HTTP around it."""

    def __init__(self, at: Stand, snapshot: Snapshot, store: Store) -> None:
        self.params, self.snapshot = at.params, snapshot
        self.symbol = Symbol(read_warm_start(Path(at.warm["path"]), at.warm["digest"]))
        self.flat, self.ledger = flatten(at.params), Ledger(store)
        horizon_s = float(at.params.labels.horizon_bars * self.symbol.step_s)
        self.account = Account(scenarios=scenarios_of({self.symbol.name: self.symbol.warm.closes}, horizon_s))
        self.n = 0

    def ask(self, snapshot: Snapshot) -> Decision:
        close, self.n = utc(self.symbol.closed.close_time), self.n + 1
        portfolio = partial(self.account.portfolio, close, self.symbol.name)
        return decide(
            self.symbol, snapshot, self.params, self.flat, portfolio, (), tier=TIER, id=f"{self.n}", known_at=close,
            now=close,
        )  # fmt: skip

    def store(self, decision: Decision) -> None:
        closed: ClosedBar = self.symbol.closed
        self.ledger.append(decision, closed.features.tobytes(), closed.signals.tobytes()).result()


def timed(desk: Desk, bars: Floats, recomputed: Snapshot) -> tuple[Floats, Floats, Floats]:
    """Of m decision bars: microseconds (m, 3) by PARTS; of the usual way (m,), NaN without an event; events (m,)."""
    took, usual, event = np.empty((len(bars), 3)), np.full(len(bars), np.nan), np.zeros(len(bars))
    seen: deque[Floats] = deque(bars[:WINDOW], WINDOW)
    for i, bar in enumerate(bars):
        marks = [time.perf_counter()]
        desk.symbol.on_bar(bar)
        marks.append(time.perf_counter())
        decision = desk.ask(desk.snapshot)
        marks.append(time.perf_counter())
        desk.store(decision)
        marks.append(time.perf_counter())
        took[i] = np.diff(marks) * 1e6
        seen.append(bar)
        event[i] = decision.models["validator"]["champion"].event is not None
        if event[i]:
            began = time.perf_counter()
            with_pandas(pd.DataFrame(np.array(seen), columns=list(BAR_FIELDS)))
            desk.store(desk.ask(recomputed))
            usual[i] = (time.perf_counter() - began) * 1e6
    return took, usual, event


def measure(tiny: bool = False) -> list[Row]:
    at = stand(tiny)
    bars = resample(np.concatenate(by_decision_bar(at.live, at.params)), 60, 900)
    slots = ModelSlots(at.home / "serving", at.home / "bundles", lambda *refused: None)
    snapshot = slots.pending()
    assert snapshot is not None
    assert not snapshot.refused, snapshot.refused
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.open(f"sqlite:///{scratch}/store.db")
        desk = Desk(at, snapshot, store)
        warm = 16  # the first decisions load code
        took, usual, event = timed(desk, bars, natively(snapshot, at))
        desk.ledger.close()
        store.close()
    took, usual, asked = took[warm:], usual[warm:], event[warm:] == 1.0
    whole = took.sum(axis=1)
    rows = [
        Row("one decision, every bar", "us", spread(whole, tail=True), note="wall time; durable before it counts"),
        pairs("one decision, bars with an event", "us", whole[asked], f"pandas over {WINDOW} bars, native XGBoost",
              usual[asked], f"both arms of {FAMILY} score", tail=True),
    ]  # fmt: skip
    return rows + [Row(f"  of that: {name}", "us", spread(took[asked, i], tail=True)) for i, name in enumerate(PARTS)]
