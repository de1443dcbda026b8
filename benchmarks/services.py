"""Measure serving: memory of every process, and a decision over HTTP from one client.

Starts the real services under the real supervisor in a home of its own, on free ports, and stops them to the last
child. Run: python -m benchmarks services
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bellwether.operations import start_stop
from benchmarks.fixture import FAMILY, Fixture, by_decision_bar, fixture
from benchmarks.measured import Row, Spread, pairs, spread
from benchmarks.ports import free_ports
from flows.support import processes
from pipelines.contracts import Floats
from pipelines.settings import Settings
from serving.client import Client
from serving.service.keys import write_key

SERVICES = ("decision", "models")
MB = 2**20


@contextmanager
def serving(home: Path, names: tuple[str, ...] = SERVICES, store_url: str = "", **variables: str) -> Iterator[Settings]:
    """Run the services.

    The store is named in the environment, so that an exported one is never written to; an empty value in `variables`
    removes a variable.
    """
    before = dict(os.environ)
    os.environ |= {"BELLWETHER_STORE_URL": store_url, "BELLWETHER_WRITE_KEY": "benchmark", **variables}
    for name in [name for name, value in variables.items() if not value]:
        del os.environ[name]
    decision, models, mlflow, prefect, evidently = free_ports(5)
    settings = Settings(home=home, decision_port=decision, model_port=models, mlflow_port=mlflow, prefect_port=prefect,
                        evidently_port=evidently)  # fmt: skip
    try:
        start_stop.up(settings, names)
        yield settings
    finally:
        start_stop.down(settings)
        os.environ.clear()
        os.environ |= before


def service_processes(settings: Settings, names: tuple[str, ...] = SERVICES) -> dict[str, psutil.Process]:
    """Return the serving processes by name: the parent and the worker of each service, and the supervisor."""
    found, everyone = {}, {p.pid: p for p in processes.home_processes(settings)}
    for name, state in processes.services(settings, {n: processes.SERVICES[n] for n in names}).items():
        parent = everyone.pop(int(state["pid"] or 0))
        found[f"{name}, parent"] = parent
        for child in parent.children(recursive=True):
            everyone.pop(child.pid, None)
            serves = "worker" in " ".join(child.cmdline())
            found[f"{name}, {'worker' if serves else child.name()}"] = child
    rest = sorted(everyone.values(), key=lambda process: process.pid)  # it keeps one process a service
    return found | {f"supervisor, process {i + 1}": process for i, process in enumerate(rest)}


def memory_rows(settings: Settings) -> list[Row]:
    """Return the memory of each process.

    USS: what its end would free. Peak: the most it ever had resident, shared pages included.
    """
    rows = []
    for name, process in sorted(service_processes(settings).items()):
        uss = process.memory_full_info().uss / MB
        status = Path(f"/proc/{process.pid}/status")  # Linux: the peak is reported nowhere else
        lines = status.read_text().splitlines() if status.is_file() else []
        peak = next(
            (f"peak RSS {int(line.split()[1]) / 1024:.0f} MB" for line in lines if line.startswith("VmHWM")), ""
        )
        rows.append(Row(f"memory of {name}", "MB USS", Spread(uss, uss, uss, 1), note=peak))
    return rows


def timed_ms(call: Callable[[], Any]) -> float:
    """Return the milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def time_calls(at: Fixture, settings: Settings, n: int) -> dict[str, Floats]:
    """Return the milliseconds (n,) of each call, in turn, over n decision bars.

    One client, one connection a service.
    """
    groups = by_decision_bar(at.live, at.params)[:n]
    calls: dict[str, list[float]] = {name: [] for name in ("observe", "decide", "alive", "predict")}
    symbol = at.params.simulator.symbol
    urls = (settings.decision_url, settings.model_url)
    key = {"Authorization": f"Bearer {write_key(settings)}"}
    with (
        Client(settings) as client,
        httpx.Client(base_url=urls[0]) as bare,
        httpx.Client(base_url=urls[1], headers=key) as models,
    ):
        width = len(models.get("/models").json()["families"][FAMILY]["champion"]["columns"])
        body = {"family": FAMILY, "rows": [[0.5] * width]}
        for group in groups:
            calls["observe"].append(timed_ms(partial(client.observe, symbol, group)))
            calls["decide"].append(timed_ms(lambda: client.decide(symbol)))
            calls["alive"].append(timed_ms(lambda: bare.get("/livez").raise_for_status()))
            calls["predict"].append(timed_ms(lambda: models.post("/predict", json=body).raise_for_status()))
    return {name: np.array(took) for name, took in calls.items()}


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    at = fixture(tiny)
    with serving(at.home) as settings:
        took = time_calls(at, settings, 20 if tiny else 1500)
        memory = memory_rows(settings)
    floor = took["alive"]
    return [
        pairs("/decide, a new bar each time", "ms", took["decide"], "/livez of the same service", floor,
              "one client, wall time, durable before the answer", tail=True),
        pairs("/observe, 15 one-minute bars", "ms", took["observe"], "/livez of the same service", floor,
              "durable before the answer", tail=True),
        Row("/predict of the model service, one row", "ms", spread(took["predict"], tail=True)),
        *memory,
    ]  # fmt: skip
