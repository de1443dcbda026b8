"""Measure signals a second over HTTP: closes of 128 symbols, four families in both arms, durable.

A signal is one new bar of one symbol through features, every model of both arms, fusion, risk and ledger: nothing is
answered from memory. A close is one /observe of all symbols and one /decide of all. The client runs on this machine
too; its own CPU time is stated, and it is part of what is measured.

Run: python -m benchmarks throughput
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.fixture import by_decision_bar
from benchmarks.four_families import Served, four_families
from benchmarks.measured import Row, pairs, spread
from benchmarks.services import serving_symbols
from pipelines.contracts import Floats, JsonObject
from pipelines.errors import ServiceDown
from pipelines.settings import Settings
from serving.client import Client

SYMBOLS, CLOSES, WARM = 128, 32, 3  # symbols; decision bars that are timed; those before them, which load code
OBSERVED, DECIDED, CLIENT = 0, 1, 2
LSTM, RARE = "predictor", 5  # the family of the LSTM, answered once in so many closes, as of a 5-minute bar
ATTEMPTS = 10


class Retrying:
    """Call again what the service answers 503, as a client does; on a busy machine a transaction may take too long."""

    def __init__(self) -> None:
        """Start at none."""
        self.retries = 0

    def call(self, request: Callable[[], JsonObject]) -> JsonObject:
        """Return the answer of a request. Raises ServiceDown where ATTEMPTS of them fail."""
        for left in reversed(range(ATTEMPTS)):
            try:
                return request()
            except ServiceDown:
                if not left:
                    raise
                self.retries += 1
                time.sleep(0.5)
        raise AssertionError


def closes_s(at: Served, settings: Settings, symbols: tuple[str, ...], closes: int, retrying: Retrying) -> Floats:
    """Return seconds (closes, 3): wall time of /observe, of /decide, and this client's own CPU time for both.

    Raises  ServiceDown if a symbol got no decision of its own on the new bar
    """
    took, known = [], set[str]()
    with Client(settings) as client:
        for bars in by_decision_bar(at.live, at.params)[: closes + WARM]:
            own, started = time.process_time(), time.perf_counter()
            sent = [(symbol, bars, None, None) for symbol in symbols]
            retrying.call(partial(client.observe_all, sent))
            observed = time.perf_counter()
            answers = retrying.call(partial(client.decide_all, symbols))["decisions"]
            took.append((observed - started, time.perf_counter() - observed, time.process_time() - own))
            new = {str(one.get("id", "")) for one in answers} - known - {""}
            if len(new) != len(symbols):
                raise ServiceDown(f"{len(new)} of {len(symbols)} symbols were decided: not the work to be measured")
            known |= new
    return np.array(took[WARM:])


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    at, symbols = four_families(tiny), tuple(f"S{i:03d}/USDT" for i in range(4 if tiny else SYMBOLS))
    without = replace(at, families={family: arms for family, arms in at.families.items() if family != LSTM})
    retrying, took = Retrying(), []
    for served in (at, without):
        with (
            tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch,
            serving_symbols(served, symbols, Path(scratch)) as settings,
        ):
            took.append(closes_s(served, settings, symbols, 4 if tiny else CLOSES, retrying))
    every, fewer = (each[:, OBSERVED] + each[:, DECIDED] for each in took)
    own = f"the client's own CPU {np.median(took[0][:, CLIENT]) * 1e3:.0f} ms a close; nothing from memory"
    if retrying.retries:
        own += f"; {retrying.retries} calls were answered 503 and sent again: this machine is too busy to quote"
    return [
        Row(f"signals a second, {len(symbols)} symbols over HTTP, four families, both arms, durable", "1/s",
            spread(len(symbols) / every), note=own),
        Row("  one close of all: /observe and /decide", "ms", spread(every * 1e3, tail=True), note="wall time"),
        pairs("  of that: /decide of all", "ms", took[0][:, DECIDED] * 1e3, "/observe of all",
              took[0][:, OBSERVED] * 1e3, tail=True),
        Row(f"  signals a second with the LSTM at every {RARE}th close", "1/s",
            spread(RARE * len(symbols) / (every + (RARE - 1) * fewer)),
            note="from closes with it, and closes of a home that has none"),
    ]  # fmt: skip
