"""A decision service that keeps what it receives in a real store, and can fail before or after it has stored."""

from dataclasses import replace

import numpy as np

from pipelines.contracts import OPEN_TIME, utc
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues, ServiceDown
from pipelines.record_codec import DecisionRecord
from pipelines.store import BarBatch
from support.records import DECISION

MINUTES = Grid("1m")
QUARTERS = MINUTES.at("15m")
WALL = utc(1_800_000_000.0)


class StoringService:
    """Answer as the decision service does. `faults` is a list of words, one for each call to come.

    "before"  the call fails, nothing is stored; "after": it is stored and fails all the same; None: it succeeds
    "unknown" no symbol is served yet
    `refused`: symbol → kind of the error that it alone is answered with
    """

    def __init__(self, store, grid=QUARTERS):
        self.store, self.grid = store, grid
        self.faults, self.calls, self.unknown, self.refused = [], [], set(), {}

    def _fault(self):
        return self.faults.pop(0) if self.faults else None

    def _fail(self, fault, when):
        if fault == when:
            raise ServiceDown("no answer")

    def observe_all(self, observations):
        self.calls.append(("observe", [symbol for symbol, *_ in observations]))
        fault = self._fault()
        self._fail(fault, "before")
        found = []
        for symbol, bars, books, feed in observations:
            if symbol in self.unknown or fault == "unknown":
                found.append({"symbol": symbol, "error": f"no {symbol}", "kind": "UnknownName", "fields": {}})
                continue
            if symbol in self.refused:
                found.append({"symbol": symbol, "error": "refused", "kind": self.refused[symbol], "fields": {}})
                continue
            before = self.closed(symbol)
            known = MINUTES.closes(bars[:, OPEN_TIME])
            try:
                new = self.store.add_bars(BarBatch(symbol, bars, known, WALL, books, feed))
            except BadValues as error:
                found.append({"symbol": symbol, "error": str(error), "kind": "BadValues", "fields": {}})
                continue
            after = self.closed(symbol)
            found.append({"symbol": symbol, "new": new, "closed": [] if after == before else [after]})
        self._fail(fault, "after")
        return {"observations": found}

    def closed(self, symbol):
        """Return the close of the newest whole decision bar, epoch s; None without one."""
        newest = self.store.newest_bar(symbol)
        if newest is None:
            return None
        opened, close = self.grid.around(newest)
        return close if newest + 60.0 >= close else opened

    def decide_all(self, symbols):
        self.calls.append(("decide", list(symbols)))
        fault = self._fault()
        self._fail(fault, "before")
        made = []
        for symbol in symbols:
            close = self.closed(symbol)
            n = len(self.store.decisions(symbol, since=utc(close), until=utc(close + 1.0)))
            decision = replace(
                DECISION, id=f"{symbol} {close:.0f} {n}", symbol=symbol, as_of=utc(close), event=None, stop=None
            )
            self.store.add_decisions([DecisionRecord(decision, b"", b"")])
            made.append(decision.to_dict() | {"api": 1})
        self._fail(fault, "after")
        return {"decisions": made}

    def outcome_all(self, outcomes):
        self.calls.append(("outcome", [outcome.decision_id for outcome in outcomes]))
        fault = self._fault()
        self._fail(fault, "before")
        found = []
        for one in outcomes:
            try:
                found.append({"decision_id": one.decision_id, "new": self.store.add_outcome(one, WALL)})
            except BadValues as error:
                found.append({"decision_id": one.decision_id, "error": str(error), "kind": "BadValues", "fields": []})
        self._fail(fault, "after")
        return {"outcomes": found}

    def decided(self, symbol):
        """Return the closes decided on, epoch s, in order, each as often as it was."""
        return [record.decision.as_of.timestamp() for record in self.store.decisions(symbol)]


def minutes(first, n, seed=0):
    """Return n one-minute bars from `first` (epoch s) on."""
    rng = np.random.default_rng(seed)
    close = 100.0 + np.cumsum(rng.normal(0.0, 0.05, n))
    opened = np.r_[100.0, close[:-1]]
    times = first + 60.0 * np.arange(n)
    high, low = np.maximum(opened, close) + 0.01, np.minimum(opened, close) - 0.01
    ones = np.ones(n)
    return np.column_stack([times, opened, high, low, close, ones, ones, 0.5 * ones, np.full(n, np.nan)])
