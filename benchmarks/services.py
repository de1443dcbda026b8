"""Measure serving over HTTP: decisions of four families in both arms, next to what others answer, and the memory.

Starts the real services under the real supervisor in a home of its own, on free ports, and stops them to the last
child. A decision is durable before its answer leaves; `mlflow models serve` and MLServer answer one row of one model,
in the same run, call by call. Run: python -m benchmarks services
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml

from bellwether.operations import start_stop
from benchmarks.fixture import FAMILY, by_decision_bar, fixture
from benchmarks.four_families import ALLOWED, Served, four_families, of_symbols
from benchmarks.inference import native
from benchmarks.measured import Row, Spread, pairs, spread
from benchmarks.peers import Peer, peers
from benchmarks.ports import free_ports
from flows.support import processes, service_table
from pipelines.bootstrap import serve_from_now_on
from pipelines.contracts import Floats
from pipelines.models.runtime import load_bundle
from pipelines.settings import Settings
from serving.client import Client
from serving.service.keys import write_key

SERVICES = ("decision", "models")
SYMBOLS = ("S00/USDT", "S01/USDT", "S02/USDT", "S03/USDT")
CLOSES, WARM = 400, 8  # decision bars that are timed, half of them in a batch; those before them, which load code
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
    for name, state in processes.services(settings, {n: service_table.SERVICES[n] for n in names}).items():
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


@contextmanager
def serving_symbols(
    at: Served, symbols: Sequence[str], folder: Path, names: tuple[str, ...] = ("decision",)
) -> Iterator[Settings]:
    """Run services on an installation of these symbols, which the models of one market answer for."""
    of_symbols(at, symbols, folder / "home")
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(at.params.model_dump(mode="json") | ALLOWED))
    with serving(folder / "home", names, BELLWETHER_PARAMS_FILE=str(params)) as settings:
        # this process trained the models and is the client now: a feed has no such objects, and a full search for
        # cycles among them takes as long as a close of 128 symbols
        serve_from_now_on()
        yield settings


def time_calls(at: Served, settings: Settings, closes: int, rivals: Sequence[Peer]) -> dict[str, Floats]:
    """Return the milliseconds (n,) of each kind of call, over closes that are sent in turn as one batch of SYMBOLS, and
    symbol by symbol: then each decision has a call of every peer next to it.

    One client, one connection a server.
    """
    took: dict[str, list[float]] = defaultdict(list)
    measured = [peer for peer in rivals if not peer.absent]
    with Client(settings) as client, httpx.Client() as bare:
        for i, bars in enumerate(by_decision_bar(at.live, at.params)[: closes + WARM]):
            if i == WARM:
                took.clear()
            if i % 2:
                everyone = [(symbol, bars, None, None) for symbol in SYMBOLS]
                took["observe all"].append(timed_ms(partial(client.observe_all, everyone)))
                took["decide all"].append(timed_ms(partial(client.decide_all, SYMBOLS)))
                continue
            for symbol in SYMBOLS:
                took["observe"].append(timed_ms(partial(client.observe, symbol, bars)))
            for j, symbol in enumerate(SYMBOLS):
                calls: list[tuple[str, Callable[[], Any]]] = [
                    ("decide", partial(client.decide, symbol)),
                    ("alive", lambda: bare.get(f"{settings.decision_url}/livez").raise_for_status()),
                    *((peer.name, partial(peer.predict, bare)) for peer in measured),
                ]
                for name, call in calls if j % 2 else reversed(calls):
                    took[name].append(timed_ms(call))
    return {name: np.array(each) for name, each in took.items()}


def predict_ms(settings: Settings, n: int) -> Floats:
    """Return the milliseconds (n,) of one row of the model service."""
    key = {"Authorization": f"Bearer {write_key(settings)}"}
    with httpx.Client(base_url=settings.model_url, headers=key) as models:
        width = len(models.get("/models").json()["families"][FAMILY]["champion"]["columns"])
        body = {"family": FAMILY, "rows": [[0.5] * width]}
        return np.array([timed_ms(lambda: models.post("/predict", json=body).raise_for_status()) for _ in range(n)])


@contextmanager
def rivals_of(tiny: bool) -> Iterator[list[Peer]]:
    """Serve one native XGBoost model by every peer; `tiny` starts none."""
    if tiny:
        yield []
        return
    source = fixture(tiny)
    model: Any = load_bundle(source.home / "bundles" / source.digests[0], source.digests[0])
    trees, rows, _ = native(source, model.columns, source.params)
    with peers(trees, model.columns, rows[0]) as running:
        yield running


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    at = four_families(tiny)
    with (
        tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch,
        rivals_of(tiny) as rivals,
        serving_symbols(at, SYMBOLS, Path(scratch), SERVICES) as settings,
    ):
        took = time_calls(at, settings, 8 if tiny else CLOSES, rivals)
        predicted, memory = predict_ms(settings, 20 if tiny else 500), memory_rows(settings)
    what, floor = "/decide of one symbol, four families, both arms, durable", "/livez of the same service"
    n, every = len(SYMBOLS), took["decide all"] + took["observe all"]
    alone = took["decide"].reshape(-1, n).sum(axis=1) + took["observe"].reshape(-1, n).sum(axis=1)
    pairable = min(len(every), len(alone))
    return [
        *(
            Row(what, "ms", spread(took["decide"], tail=True), peer.name, note=peer.absent)
            if peer.absent
            else pairs(what, "ms", took["decide"], peer.name, took[peer.name], "one client, wall time", tail=True)
            for peer in rivals
        ),
        pairs(what, "ms", took["decide"], floor, took["alive"], "one client, wall time", tail=True),
        pairs("/observe of one symbol, 15 one-minute bars, durable", "ms", took["observe"], floor, took["alive"],
              tail=True),
        pairs(f"a close of {n} symbols: one /observe and one /decide", "ms", every[:pairable],
              "one call of each a symbol", alone[:pairable], "closes in turn", tail=True),
        Row("  of that: /decide of all", "ms", spread(took["decide all"], tail=True)),
        Row("/predict of the model service, one row", "ms", spread(predicted, tail=True)),
        *memory,
    ]  # fmt: skip
