"""What a service must come through: its champion swapped under load, and kill -9 at any moment under load.

The real decision service under the real supervisor, over HTTP, in a home of its own. A feeder shows it bars in pieces
and asks for a decision at every close, as a connector of a venue would: what was not acknowledged is sent again. Others
ask at the same time. Tests run these with small counts, `python -m benchmarks.evidence` with large ones.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bellwether.operations import start_stop
from bellwether.operations.replay_decisions import replay_decisions
from benchmarks.fixture import FAMILY, Stand, arm_of, by_decision_bar, stand
from benchmarks.services import MB, service_processes, serving
from flows.support import processes
from flows.support.installation import Installation
from pipelines.contracts import OPEN_TIME, Decision, Floats, utc
from pipelines.errors import BellwetherError, InputError, ServiceDown
from pipelines.settings import Settings
from pipelines.store import Promotion, Store, decision_payload
from pipelines.warm_start import read_warm_start
from serving.client import Client
from serving.inference.generation import write_generation
from serving.inference.predictions import faulty
from serving.state import symbols

DECISION = ("decision",)
ASKERS = 2  # clients that ask while the feeder feeds
ASK_EVERY_S = 0.02  # at most so often: a client that asks without a pause would only take the service's processor
PIECE = 5  # minutes sent at a time: a kill may come in the middle of a decision bar
PATIENCE_S = 60.0  # a service that was killed may take so long to answer again


@dataclass
class Load:
    """A feeder and ASKERS clients. What was acknowledged is kept; `faults` are answers nobody may get."""

    settings: Settings
    symbol: str
    groups: list[Floats]  # the minutes of each decision bar
    step_s: float
    pace_s: float
    forgiving: bool  # a service that does not answer is asked again: it was killed on purpose
    patience_s: float = PATIENCE_S
    client: Callable[[Settings], Client] = Client
    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: int = 0
    fed: int = 0  # decision bars shown and acknowledged
    faults: list[str] = field(default_factory=list)
    _close: datetime | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        targets = [self._feed, *[self._ask] * ASKERS]
        self._threads = [threading.Thread(target=self._guard, args=(target,), daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self._threads[0].join()
        self.stop()

    @property
    def over(self) -> bool:
        """Whether the feeder has no bars left, or gave up."""
        return not self._threads[0].is_alive()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _guard(self, target: Callable[[Client], None]) -> None:
        try:
            with self.client(self.settings) as client:
                target(client)
        except BellwetherError as error:
            self.faults.append(str(error))
            self._ended.set()

    def _feed(self, client: Client) -> None:
        for group in self.groups:
            for first in range(0, len(group), PIECE):
                if self._ended.is_set():
                    return
                self._insist(lambda part=group[first : first + PIECE]: client.observe(self.symbol, part))  # type: ignore[misc]
                time.sleep(self.pace_s)
            self._close = utc(group[0, OPEN_TIME] + self.step_s)
            self._take(self._insist(lambda: client.decide(self.symbol)))
            self.fed += 1

    def _ask(self, client: Client) -> None:
        while not self._ended.is_set():
            if self._close is not None:
                self._take(self._insist(lambda: client.decide(self.symbol)))
            time.sleep(max(self.pace_s, ASK_EVERY_S))

    def _insist(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        began = time.monotonic()
        while True:
            try:
                return ask()
            except (ServiceDown, InputError) as error:
                told = str(error)
                if not self.forgiving or "is before" in told or time.monotonic() > began + self.patience_s:
                    raise
                if isinstance(error, InputError) or ("answered" in told and "answered 503" not in told):
                    with self._lock:  # nobody may get that; told once each
                        self.faults += [told] if told not in self.faults else []
            time.sleep(0.05)

    def _take(self, answer: dict[str, Any]) -> None:
        with self._lock:
            self.answers += 1
            before = self.acknowledged.setdefault(answer["id"], answer)
        if before != answer:
            self.faults.append(f"decision {answer['id']} was answered in two ways")


@contextmanager
def house(
    tiny: bool,
    store_url: str = "",
    names: tuple[str, ...] = DECISION,
    inside: Path | None = None,
    champion: bool = True,
    **more: str,
) -> Iterator[tuple[Stand, Settings]]:
    """The decision service in a copy of the stand, alone by default: nothing of an earlier run is in its store.

    inside    an existing folder for the home; None = a temporary one
    champion  False: no model serves, and the traditional consensus decides
    """
    at = stand(tiny)
    with tempfile.TemporaryDirectory(prefix="bellwether-hardship-", dir=inside) as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        for name in ("bundles", "serving"):
            shutil.copytree(at.home / name, home / name, ignore=shutil.ignore_patterns("ack"))
        arms = {"champion": arm_of(at.digests[0], "1") if champion else None}
        write_generation(home / "serving", {FAMILY: arms}, warm_in(at, home / "serving"), datetime.now(UTC))
        with serving(home, names, store_url, **more) as settings:
            yield at, settings


def warm_in(at: Stand, serving_dir: Path) -> dict[str, str]:
    """The stand's warm start as it lies in a copy of it: a service reads only what is published in its own home."""
    return {**at.warm, "path": str(serving_dir / "warm" / at.warm["digest"])}


def load_of(at: Stand, settings: Settings, pace_s: float, forgiving: bool) -> Load:
    groups = by_decision_bar(at.live, at.params)
    step_s = float(groups[1][0, OPEN_TIME] - groups[0][0, OPEN_TIME])
    return Load(settings, at.params.simulator.symbol, groups, step_s, pace_s, forgiving)


# ---- swaps ----------------------------------------------------------------------------------------------------------


def swaps(count: int, tiny: bool = False) -> dict[str, Any]:
    """Swap the champion `count` times under load; every swap loads, verifies and rehearses another bundle.

    Returns swaps, answers, failed (answers that were no decision), generations answered, and the worker's memory:
    MB at the tenth swap and at the last.
    """
    with house(tiny) as (at, settings), Client(settings) as client:
        load = load_of(at, settings, 0.01, forgiving=False)
        load.start()
        worker, held = service_processes(settings, DECISION)["decision, worker"], []
        for i in range(count):
            digest = at.digests[(i + 1) % 2]
            arms = {"champion": arm_of(digest, str(i + 2))}
            generation = write_generation(
                settings.serving_dir, {FAMILY: arms}, warm_in(at, settings.serving_dir), datetime.now(UTC)
            )
            told = client.wait_for_generation(generation)
            if told["families"][FAMILY]["champion"]["version"] != str(i + 2) or told["refused"]:
                load.faults.append(f"swap {i + 1}: {told['families'][FAMILY]}, refused {told['refused']}")
            held.append(worker.memory_full_info().uss / MB)
        load.stop()
    return {
        "swaps": count, "answers": load.answers, "failed": len(load.faults), "faults": load.faults[:5],
        "generations_answered": len({d["generation"] for d in load.acknowledged.values()}),
        "mb_at_tenth": held[min(9, count - 1)], "mb_at_last": held[-1],
    }  # fmt: skip


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def crashes(
    count: int, tiny: bool = False, store_url: str = "", seed: int = 7, bars_after: int | None = None
) -> dict[str, Any]:
    """kill -9 at random moments under load, now the worker alone, now everything; then compare what is stored.

    Returns kills, acknowledged decisions, and what must be nought: lost (acknowledged, not stored or stored otherwise),
    doubled (two on the same bar and generation), lost_bars, state (decisions whose feature or signal bytes an
    uninterrupted run would not have had), not_replayed, faults.

    bars_after  decision bars fed after the last kill; None = all there are
    """
    rng = np.random.default_rng(seed)
    with house(tiny, store_url) as (at, settings):
        load = load_of(at, settings, 0.02, forgiving=True)
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
    """SIGKILL: to the worker, which its parent starts again; or to every process, and then `up`, as after a reboot."""
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
    """Return once all have ended, also those that nobody has asked how: the supervisor starts them again in seconds."""
    while any(map(processes.is_alive, killed)):
        time.sleep(0.01)


def compare(at: Stand, settings: Settings, store: Store, load: Load) -> dict[str, Any]:
    records = store.decisions()
    stored = {record.decision.id: record for record in records}
    bars = np.vstack(load.groups[: load.fed])
    kept = store.bars(load.symbol)
    walk = symbols.restore_symbol(read_warm_start(Path(at.warm["path"]), at.warm["digest"]), bars[:0])
    # one bar more: a client may have its decision before the feeder has
    told = np.vstack(load.groups[: load.fed + 1])
    rows = {c.close_time: (c.features.tobytes(), c.signals.tobytes()) for c in walk.advance(told)}
    keys = [_key(record.decision) for record in records]
    store.add_promotion(_line_of(at))
    replayed = replay_decisions(Installation(settings, at.params, store), records)
    return {
        "lost": sum(
            id not in stored or not _same(decision_payload(stored[id].decision), answer)
            for id, answer in load.acknowledged.items()
        ),
        "doubled": len(keys) - len(set(keys)),
        "lost_bars": int(len(bars) - len(np.intersect1d(bars[:, OPEN_TIME], kept[:, OPEN_TIME]))),
        "state": sum(
            rows.get(record.decision.as_of.timestamp()) != (record.features, record.signals) for record in records
        ),
        "not_replayed": replayed.decisions - replayed.equal,
        "why": dict(replayed.not_replayable) | {d["id"]: d["fields"] for d in replayed.different[:3]},
        "faults": load.faults[:5],
    }  # fmt: skip


def _key(decision: Decision) -> tuple[Any, ...]:
    """What makes a decision another one. A fault that lowers the tier is a reason to decide on the same bar again."""
    return decision.symbol, decision.as_of, decision.generation, decision.tier, decision.breakers


def _line_of(at: Stand) -> Promotion:
    """What the ledger would say of the champion that a house begins with."""
    return Promotion(
        at=utc(0), actor="house", action="promote", family=FAMILY, arm="champion", from_version=None, to_version="1",
        digest=at.digests[0], run_id="benchmark", data_hash="benchmark", git_commit="benchmark", verdict_passed=True,
        reason="house",
    )  # fmt: skip


def _same(stored: dict[str, Any], answered: dict[str, Any]) -> bool:
    """What was answered is what is stored, field by field; the answer may hold more."""
    return all(answered.get(name) == value for name, value in stored.items())


# ---- the model service beside it ------------------------------------------------------------------------------------


def together(count: int, tiny: bool = False) -> dict[str, Any]:
    """`count` decision bars with the model service asked, made again with models in this process; then it is killed.

    Returns bars, spoken (validator answers with a number), faulty (answers that the service failed to give, which a
    replay would take as recorded; nothing may be), different (of a decision and the one that is made again:
    nothing may be), and of the killed service: out (tier and the champion's reason at the next event), back (tier once
    it answers again).
    """
    patient = {"BELLWETHER_MODELS": "remote", "BELLWETHER_MODEL_TIMEOUT_MS": "5000"}
    with house(tiny, "", (*DECISION, "models"), **patient) as (at, settings), Client(settings) as client:
        load = load_of(at, settings, 0.0, forgiving=False)
        bars = iter(load.groups)
        said = [_shown(client, load, next(bars)) for _ in range(count)]
        gone = [p for name, p in service_processes(settings, ("models",)).items() if name.startswith("models")]
        for process in gone:
            process.kill()
        _until_gone(gone)
        for group in bars:  # until a bar on which a model is asked
            out = _shown(client, load, group)
            if out["event"] is not None:
                break
        start_stop.up(settings, ("models",))
        for group in bars:  # a bar at a time until trust is back; the client looks for it every two seconds
            back = _shown(client, load, group)
            time.sleep(0.05)
            if back["tier"] < 3:
                break
        store = Store.open(settings.store)
        try:
            store.add_promotion(_line_of(at))
            asked = {answer["id"] for answer in said}
            replayed = replay_decisions(
                Installation(settings, at.params, store), [r for r in store.decisions() if r.decision.id in asked]
            )
        finally:
            store.close()
    champions = [answer["models"][FAMILY]["champion"] for answer in said]
    answered = [told for answer in said for arms in answer["models"].values() for told in arms.values()]
    return {
        "bars": replayed.equal + len(replayed.different),
        "spoken": sum(champion["p"] is not None for champion in champions),
        "faulty": sum(faulty(told) is not None for told in answered),
        "different": replayed.different[:3],
        "out": (out["tier"], out["models"][FAMILY]["champion"]["reason"]),
        "back": back["tier"],
    }


def _shown(client: Client, load: Load, group: Floats) -> dict[str, Any]:
    client.observe(load.symbol, group)
    return client.decide(load.symbol)
