"""Stress the decision service: its champion swapped under load, and kill -9 at any moment under load.

The real decision service under the real supervisor, over HTTP, in a home of its own. A feeder sends bars in pieces and
requests a decision at every close, as a connector of a venue would: what was not acknowledged is sent again. Clients
request decisions at the same time. Tests run these with small counts, `python -m benchmarks.evidence` with large ones.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bellwether.operations import start_stop
from bellwether.operations.replay_decisions import replay_decisions
from benchmarks.fixture import FAMILY, Fixture, arm_of, by_decision_bar, fixture, serve_arms
from benchmarks.services import MB, service_processes, serving
from flows.support import processes
from flows.support.installation import Installation
from pipelines.contracts import OPEN_TIME, Decision, Floats, JsonObject, ModelAnswer, utc
from pipelines.errors import BellwetherError, InputError, ServiceDown
from pipelines.settings import Settings
from pipelines.store import Promotion, Store, decision_payload
from pipelines.warm_start import read_warm_start
from serving.client import Client
from serving.inference.predictions import faulty
from serving.state import symbols

DECISION = ("decision",)
CLIENTS = 2  # clients that request decisions while the feeder feeds
REQUEST_EVERY_S = 0.02  # at most so often: a client without a pause would only take the service's processor
PIECE = 5  # minutes sent at a time: a kill may come in the middle of a decision bar
PATIENCE_S = 60.0  # a service that was killed may take so long to answer again


@dataclass
class Load:
    """Run a feeder and CLIENTS clients; record acknowledged decisions. `faults` are answers that must not occur."""

    settings: Settings
    symbol: str
    groups: list[Floats]  # the minutes of each decision bar
    step_s: float
    pace_s: float
    retries: bool  # requests without an answer are sent again: the service was killed on purpose
    patience_s: float = PATIENCE_S
    client: Callable[[Settings], Client] = Client
    acknowledged: dict[str, JsonObject] = field(default_factory=dict)
    answers: int = 0
    fed: int = 0  # decision bars sent and acknowledged
    faults: list[str] = field(default_factory=list)
    _close: datetime | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start the threads of feeder and clients."""
        targets = [self._feed, *[self._request_decisions] * CLIENTS]
        self._threads = [threading.Thread(target=self._guard, args=(target,), daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the end of the feeder, then stop the clients."""
        self._threads[0].join()
        self.stop()

    @property
    def over(self) -> bool:
        """Return whether the feeder has no bars left, or gave up."""
        return not self._threads[0].is_alive()

    def stop(self) -> None:
        """Stop all threads and wait for their end."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _guard(self, target: Callable[[Client], None]) -> None:
        """Run one client; an error becomes a fault and ends the load."""
        try:
            with self.client(self.settings) as client:
                target(client)
        except BellwetherError as error:
            self.faults.append(str(error))
            self._ended.set()

    def _feed(self, client: Client) -> None:
        """Send the minutes of each decision bar in pieces and request a decision at its close."""
        for group in self.groups:
            for first in range(0, len(group), PIECE):
                if self._ended.is_set():
                    return
                self._retry(partial(client.observe, self.symbol, group[first : first + PIECE]))
                time.sleep(self.pace_s)
            self._close = utc(group[0, OPEN_TIME] + self.step_s)
            self._acknowledge(self._retry(lambda: client.decide(self.symbol)))
            self.fed += 1

    def _request_decisions(self, client: Client) -> None:
        """Request decisions until the load ends."""
        while not self._ended.is_set():
            if self._close is not None:
                self._acknowledge(self._retry(lambda: client.decide(self.symbol)))
            time.sleep(max(self.pace_s, REQUEST_EVERY_S))

    def _retry(self, request: Callable[[], JsonObject]) -> JsonObject:
        """Send a request until it is answered; record answers that must not occur once each."""
        started = time.monotonic()
        while True:
            try:
                return request()
            except (ServiceDown, InputError) as error:
                text = str(error)
                if not self.retries or "is before" in text or time.monotonic() > started + self.patience_s:
                    raise
                if isinstance(error, InputError) or ("answered" in text and "answered 503" not in text):
                    with self._lock:  # must not occur; recorded once each
                        self.faults += [text] if text not in self.faults else []
            time.sleep(0.05)

    def _acknowledge(self, answer: JsonObject) -> None:
        """Record a decision; two different answers under one id are a fault."""
        with self._lock:
            self.answers += 1
            before = self.acknowledged.setdefault(answer["id"], answer)
        if before != answer:
            self.faults.append(f"decision {answer['id']} was answered in two ways")


@contextmanager
def serving_fixture(
    tiny: bool,
    store_url: str = "",
    names: tuple[str, ...] = DECISION,
    parent: Path | None = None,
    champion: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[Fixture, Settings]]:
    """Run the decision service in a copy of the fixture, alone by default, with an empty store.

    parent    an existing folder for the home; None = a temporary one
    champion  False: no model serves, and the traditional consensus decides
    variables  environment of the services; an empty value removes a variable
    """
    at = fixture(tiny)
    with tempfile.TemporaryDirectory(prefix="bellwether-hardship-", dir=parent) as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        for name in ("bundles", "serving"):
            shutil.copytree(at.home / name, home / name, ignore=shutil.ignore_patterns("ack"))
        arms = {"champion": arm_of(at.digests[0], "1") if champion else None}
        where = Settings(home=home, store_url=store_url)
        serve_arms(where, {FAMILY: arms}, warm_in(at, home / "serving"), datetime.now(UTC))
        with serving(home, names, store_url, **(variables or {})) as settings:
            yield at, settings


def warm_in(at: Fixture, serving_dir: Path) -> dict[str, str]:
    """Return the fixture's warm start with its path in a copy.

    A service reads only what is published in its own home.
    """
    return {**at.warm, "path": str(serving_dir / "warm" / at.warm["digest"])}


def load_of(at: Fixture, settings: Settings, pace_s: float, retries: bool) -> Load:
    """Return a load of the fixture's live bars, not started yet."""
    groups = by_decision_bar(at.live, at.params)
    step_s = float(groups[1][0, OPEN_TIME] - groups[0][0, OPEN_TIME])
    return Load(settings, at.params.simulator.symbol, groups, step_s, pace_s, retries)


# ---- swaps ----------------------------------------------------------------------------------------------------------


def swaps(count: int, tiny: bool = False) -> JsonObject:
    """Swap the champion `count` times under load; every swap loads, verifies and warms up another bundle.

    Returns swaps, answers, failed (answers that were no decision), generations answered, and the worker's memory:
    MB at the tenth swap and at the last.
    """
    with serving_fixture(tiny) as (at, settings), Client(settings) as client:
        load = load_of(at, settings, 0.01, retries=False)
        load.start()
        worker, memory_mb = service_processes(settings, DECISION)["decision, worker"], []
        for i in range(count):
            digest = at.digests[(i + 1) % 2]
            arms = {"champion": arm_of(digest, str(i + 2))}
            generation = serve_arms(settings, {FAMILY: arms}, warm_in(at, settings.serving_dir), datetime.now(UTC))
            status = client.wait_for_generation(generation)
            if status["families"][FAMILY]["champion"]["version"] != str(i + 2) or status["refused"]:
                load.faults.append(f"swap {i + 1}: {status['families'][FAMILY]}, refused {status['refused']}")
            memory_mb.append(worker.memory_full_info().uss / MB)
        load.stop()
    return {
        "swaps": count, "answers": load.answers, "failed": len(load.faults), "faults": load.faults[:5],
        "generations_answered": len({d["generation"] for d in load.acknowledged.values()}),
        "mb_at_tenth": memory_mb[min(9, count - 1)], "mb_at_last": memory_mb[-1],
    }  # fmt: skip


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def crashes(
    count: int, tiny: bool = False, store_url: str = "", seed: int = 7, bars_after: int | None = None
) -> JsonObject:
    """Kill -9 at random moments under load, the worker and everything in turn; then compare what is stored.

    Returns kills, acknowledged decisions, and what must be 0: lost (acknowledged, not stored or stored otherwise),
    doubled (two on the same bar and generation), lost_bars, state (decisions whose feature or signal bytes an
    uninterrupted run would not have had), not_replayed, faults.

    bars_after  decision bars fed after the last kill; None = all there are
    """
    rng = np.random.default_rng(seed)
    with serving_fixture(tiny, store_url) as (at, settings):
        load = load_of(at, settings, 0.02, retries=True)
        load.start()
        for i in range(count):
            time.sleep(rng.uniform(0.3, 1.5))
            _kill(settings, whole=bool(i % 2))
            with Client(settings) as client:
                client.wait_for_generation(1, PATIENCE_S)
        load.pace_s = 0.0
        if bars_after is not None:
            del load.groups[load.fed + bars_after :]
        load.join()
        store = Store.open(settings.store)
        try:
            found = compare(at, settings, store, load)
        finally:
            store.close()
    return {"kills": count, "acknowledged": len(load.acknowledged), "answers": load.answers} | found


def _kill(settings: Settings, whole: bool) -> None:
    """Send SIGKILL to the worker, which its parent starts again; or to every process, and then run `up`, as after a
    reboot.
    """
    if not whole:
        service_processes(settings, DECISION)["decision, worker"].kill()
        return
    everything = processes.home_processes(settings)
    for process in everything:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _until_gone(everything)
    start_stop.up(settings, DECISION)


def _until_gone(killed: list[psutil.Process]) -> None:
    """Wait until all have ended, also those not reaped: the supervisor starts them again in seconds."""
    while any(map(processes.is_alive, killed)):
        time.sleep(0.01)


def compare(at: Fixture, settings: Settings, store: Store, load: Load) -> JsonObject:
    """Compare what was acknowledged with what is stored, and replay it; return the figures of `crashes`."""
    records = store.decisions()
    stored = {record.decision.id: record for record in records}
    bars = np.vstack(load.groups[: load.fed])
    stored_bars = store.bars(load.symbol)
    walk = symbols.restore_symbol(read_warm_start(Path(at.warm["path"]), at.warm["digest"]), bars[:0])
    # one bar more: a client may have its decision before the feeder has
    fed = np.vstack(load.groups[: load.fed + 1])
    rows = {c.close_time: (c.features.tobytes(), c.signals.tobytes()) for c in walk.advance(fed)}
    keys = [_key(record.decision) for record in records]
    store.add_promotion(_ledger_line(at))
    replayed = replay_decisions(Installation(settings, at.params, store), records)
    return {
        "lost": sum(
            id not in stored or not _same(decision_payload(stored[id].decision), answer)
            for id, answer in load.acknowledged.items()
        ),
        "doubled": len(keys) - len(set(keys)),
        "lost_bars": int(len(bars) - len(np.intersect1d(bars[:, OPEN_TIME], stored_bars[:, OPEN_TIME]))),
        "state": sum(
            rows.get(record.decision.as_of.timestamp()) != (record.features, record.signals) for record in records
        ),
        "not_replayed": replayed.decisions - replayed.equal,
        "why": dict(replayed.not_replayable) | {d["id"]: d["fields"] for d in replayed.different[:3]},
        "faults": load.faults[:5],
    }  # fmt: skip


def _key(decision: Decision) -> tuple[Any, ...]:
    """Return what makes a decision distinct.

    A fault that lowers the tier is a reason to decide on the same bar again.
    """
    return decision.symbol, decision.as_of, decision.generation, decision.tier, decision.breakers


def _ledger_line(at: Fixture) -> Promotion:
    """Return the ledger's line of the champion that a fixture begins with."""
    return Promotion(
        at=utc(0), actor="fixture", action="promote", family=FAMILY, arm="champion", from_version=None, to_version="1",
        digest=at.digests[0], run_id="benchmark", data_hash="benchmark", git_commit="benchmark", verdict_passed=True,
        reason="fixture",
    )  # fmt: skip


def _same(stored: JsonObject, answered: JsonObject) -> bool:
    """Return whether the stored decision equals the answer, field by field; the answer may have more."""
    return all(answered.get(name) == value for name, value in stored.items())


# ---- with the model service --------------------------------------------------------------------------------------


def together(count: int, tiny: bool = False) -> JsonObject:
    """Decide `count` bars with the model service, and again with models in this process; then kill the service.

    Returns bars, predicted (validator answers with a number), faulty (answers that the service failed to give, which a
    replay would accept as recorded; must be 0), different (between a decision and its replay; must be empty), and of
    the killed service: out (tier at the next event, and why the champion answered here, not there), back (tier
    at the first event that it answers again).
    """
    patient = {"BELLWETHER_MODELS": "remote", "BELLWETHER_MODEL_TIMEOUT_MS": "5000"}
    with (
        serving_fixture(tiny, "", (*DECISION, "models"), variables=patient) as (at, settings),
        Client(settings) as client,
    ):
        load = load_of(at, settings, 0.0, retries=False)
        bars = iter(load.groups)
        decisions = [_observe_and_decide(client, load, next(bars)) for _ in range(count)]
        gone = [p for name, p in service_processes(settings, ("models",)).items() if name.startswith("models")]
        for process in gone:
            process.kill()
        _until_gone(gone)
        for group in bars:  # until a bar with an event
            out = _observe_and_decide(client, load, group)
            if out["event"] is not None:
                break
        start_stop.up(settings, ("models",))
        for group in bars:  # until it answers; the client retries every two seconds
            back = _observe_and_decide(client, load, group)
            time.sleep(0.05)
            if back["event"] is not None and "fallback" not in back["models"][FAMILY]["champion"]:
                break
        store = Store.open(settings.store)
        try:
            store.add_promotion(_ledger_line(at))
            ids = {answer["id"] for answer in decisions}
            replayed = replay_decisions(
                Installation(settings, at.params, store), [r for r in store.decisions() if r.decision.id in ids]
            )
        finally:
            store.close()
    champions = [answer["models"][FAMILY]["champion"] for answer in decisions]
    records = [record for answer in decisions for arms in answer["models"].values() for record in arms.values()]
    return {
        "bars": replayed.equal + len(replayed.different),
        "predicted": sum(champion["p"] is not None for champion in champions),
        "faulty": sum(faulty(ModelAnswer.from_dict(record)) is not None for record in records),
        "different": replayed.different[:3],
        "out": (out["tier"], out["models"][FAMILY]["champion"].get("fallback")),
        "back": back["tier"],
    }


def _observe_and_decide(client: Client, load: Load, group: Floats) -> JsonObject:
    """Send the minutes of one decision bar and return the decision at its close."""
    client.observe(load.symbol, group)
    return client.decide(load.symbol)
