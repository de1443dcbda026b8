"""Measure the fault matrix: what breaks, when it is detected, when it has recovered, and what is lost.

`FAULTS` is the table. Each fault is caused on real processes under the feeder and clients of `hardship`, ended, and
observed by a `Probe`. `observe_fault` measures one on a running installation; `case` starts what it needs. A fault that
the product does not recover from is recorded as observed, with what a person did then.

Run: python -m benchmarks.evidence faults
"""

import atexit
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from benchmarks import hardship
from benchmarks.fault_causes import (
    LIBFAKETIME,
    Cause,
    Target,
    again_with_the_worker,
    clock_ahead,
    database,
    decision_parent,
    disk_full,
    down_and_up,
    flipped,
    freeze,
    generation_replaced,
    key_gone,
    key_replaced,
    kill,
    naming_no_bundle,
    no_faketime,
    no_mount,
    of_bundle,
    page_flipped,
    parent_of,
    read_only,
    read_only_at_start,
    restore_store,
    store_locked,
    supervisors,
    warm_start_flipped,
    whole,
    without_warm_start,
    worker,
)
from benchmarks.fixture import Fixture
from benchmarks.hardship import DECISION, Load, load_of
from benchmarks.postgres import postgresql
from benchmarks.probes import CALLS, READS, Log, Probe, detected, doctor_findings, recorder
from pipelines.contracts import JsonObject
from pipelines.errors import BellwetherError
from pipelines.settings import Settings
from pipelines.store import Store

PACE_S = 0.1  # between the pieces of a decision bar: one bar takes about half a second, a month of them lasts a case
POLL_AGAIN_S = 1.0  # requests sent sooner after the end of a fault do not count
NOTICE_S = 3.0  # the same for a kill: the supervisor has to notice it first
ENDPOINTS = (*READS, *CALLS, "services", "up", "the new key")
CALM_S = 1.0  # everything has to be well for so long before a fault is caused
HEAL_S = 45.0  # a fault that is not over by itself after this waits for a person
LOAD_PATIENCE_S = 900.0  # the feeder outlasts every fault: its answers are part of the result
TMPFS_MB = 64
STACK = ("mlflow", "prefect", "decision", "flows", "models", "evidently")
REPAIRED = "was done by a person"


@dataclass(frozen=True)
class Fault:
    """Describe one row of the matrix.

    cause     starts the fault and ends it
    lasts_s   how long it lasts; 0 = it is over as soon as it is caused, as a kill is
    person    what a person has to do, where it is known beforehand that nothing else helps; empty = nothing
    repair    does that, or what the runbook would have a person try if it does not heal by itself
    where     plain: the decision service alone; postgresql: with its store there; remote: with the model service;
              tmpfs: in a home of TMPFS_MB; faketime: with a clock that can be moved; file_key: its key in a file;
              stack: all seven services, one installation for all such faults
    needs     says why it cannot be caused on this machine; empty = it can
    """

    description: str
    cause: Cause
    lasts_s: float = 0.0
    person: str = ""
    repair: Callable[[Target], None] = Target.up
    tried: str = "`bellwether up`"
    where: Literal["plain", "postgresql", "remote", "tmpfs", "faketime", "file_key", "stack"] = "plain"
    needs: Callable[[], str] = lambda: ""


FAULTS: dict[str, Fault] = {
    "decision_parent_killed": Fault("kill -9: decision, parent", kill(decision_parent)),
    "decision_worker_killed": Fault("kill -9: decision, worker", kill(worker)),
    "supervisor_killed": Fault("kill -9: supervisor, then `up`", kill(supervisors), person="`bellwether up`"),
    "decision_worker_frozen": Fault("SIGSTOP 10 s: decision, worker", freeze(worker), 10.0),
    "store_locked": Fault("store locked by another, 20 s", store_locked, 20.0),
    "postgresql_frozen": Fault("SIGSTOP 20 s: PostgreSQL", freeze(database), 20.0, where="postgresql"),
    "disk_full": Fault("disk full, 10 s", disk_full, 10.0, person="free space", where="tmpfs", needs=no_mount),
    "home_read_only": Fault("home read-only, 10 s", read_only, 10.0, person="make it writable", needs=no_mount),
    "home_read_only_at_start": Fault("home read-only at start", read_only_at_start, 1.0, needs=no_mount,
                                     person="make it writable, `bellwether up`"),
    "store_page_flipped": Fault("one page of store.db overwritten", page_flipped, 20.0, repair=restore_store,
                                person="`bellwether restore FILE`, the newest backup"),
    "generation_garbage": Fault("generation.json: garbage, 5 s", generation_replaced(lambda _: "}{ \0"), 5.0),
    "generation_empty": Fault("generation.json: empty, 5 s", generation_replaced(lambda _: ""), 5.0),
    "generation_without_warm_start": Fault("generation.json: no warm_start, 5 s",
                                           generation_replaced(without_warm_start), 5.0),
    "generation_names_no_bundle": Fault("generation.json: a bundle that is missing, 5 s",
                                        generation_replaced(naming_no_bundle), 5.0),
    "bundle_flipped": Fault("one byte of the champion's bundle", flipped(of_bundle), 15.0, repair=again_with_the_worker,
                            person="`bellwether promote FAMILY VERSION`: it is fetched again"),
    "warm_start_flipped": Fault("one byte of the warm start", warm_start_flipped, 15.0, repair=down_and_up,
                                person="`bellwether down`, `bellwether up`: it is folded again"),
    "clock_a_day_ahead": Fault("clock a day ahead, 10 s, and back", clock_ahead, 10.0, where="faketime",
                               needs=no_faketime),
    "model_service_killed": Fault("kill -9: models, parent; remote mode", kill(whole("models")), where="remote"),
    "key_file_gone": Fault("key file gone, 5 s", key_gone, 5.0, where="file_key"),
    "key_file_replaced": Fault("key file replaced, 5 s", key_replaced, 5.0, where="file_key"),
    "models_killed": Fault("kill -9: models, parent", kill(parent_of("models")), where="stack"),
    "mlflow_killed": Fault("kill -9: MLflow", kill(parent_of("mlflow")), where="stack"),
    "prefect_killed": Fault("kill -9: Prefect", kill(parent_of("prefect")), where="stack"),
    "flows_killed": Fault("kill -9: flows", kill(parent_of("flows")), where="stack"),
    "evidently_killed": Fault("kill -9: Evidently", kill(parent_of("evidently")), where="stack"),
    "mlflow_frozen": Fault("SIGSTOP 20 s: MLflow", freeze(whole("mlflow")), 20.0, where="stack"),
}  # fmt: skip


# ---- one fault, measured --------------------------------------------------------------------------------------------


def observe_fault(target: Target, fault: Fault, compare: bool = True) -> JsonObject:
    """Cause `fault` on a running target under its load, end it, wait until all is as before, compare what is stored.

    Returns detected_s and by; responses: endpoint → words during the fault; slowest_s of each; alarms; doctor: its
    findings during the fault and not before; heals: "by itself", REPAIRED or "not in time"; answers_s and
    healed_s after the end of the fault; person: what had to be done; lost, doubled, lost_bars and the rest of
    hardship's comparison.
    """
    before = set(doctor_findings(target.settings))
    with Probe(target.settings, target.names, target.log) as probe:
        healthy = _wait_until_calm(target, probe)
        started = time.monotonic()
        found: set[str] = set()
        with fault.cause(target):
            if fault.lasts_s:
                time.sleep(fault.lasts_s / 2)
                found = set(doctor_findings(target.settings))
                time.sleep(max(0.0, started + fault.lasts_s - time.monotonic()))
            during = time.monotonic()
        ended, poll_after_s = (during, POLL_AGAIN_S) if fault.lasts_s else (started, NOTICE_S)
        heals, person = "by itself", fault.person
        if fault.person and fault.repair is not Target.up:
            fault.repair(target)  # known not to heal by itself: what the person does is part of the case
            heals, ended = REPAIRED, time.monotonic()
        elif fault.person.endswith("`bellwether up`"):
            target.up()
        healed = _until_as_before(target, probe, healthy, ended, poll_after_s)
        if not fault.lasts_s:
            found = set(doctor_findings(target.settings)) if healed is None else found
        if healed is None:
            with suppress(BellwetherError, OSError):
                fault.repair(target)
            heals, person, ended = REPAIRED, person or fault.tried, time.monotonic()
            healed = _until_as_before(target, probe, healthy, ended, poll_after_s)
        if healed is None:
            heals = "not in time"
        until = max(during, ended) if heals != "by itself" else during + (healed or 0.0)
        detected_s, by = detected(probe, healthy, started)
        figures: JsonObject = {
            "description": fault.description, "detected_s": detected_s, "by": by, "heals": heals, "person": person,
            "answers_s": _answers_again(target.log, ended), "healed_s": healed,
            "responses": {name: target.log.of(name).between(started, until) for name in ENDPOINTS},
            "slowest_s": {name: target.log.of(name).slowest_s(started, until) for name in (*READS, *CALLS)},
            "alarms": sorted({kind for _, kind in probe.new_alarms(started)}), "doctor": sorted(found - before),
        }  # fmt: skip
    if compare:
        figures |= compared(target)
    if target.load.over:
        figures["faults"] = [*figures.get("faults", []), "the load ran out of bars or ended before this fault did"]
    return figures


def compared(target: Target) -> JsonObject:
    """Compare what is stored with what was acknowledged so far; return hardship's figures."""
    acknowledged, faults = dict(target.load.acknowledged), list(target.load.faults)
    so_far = replace(target.load, acknowledged=acknowledged, faults=faults)
    so_far.fed = target.load.fed
    store = Store.open(target.settings.store)
    try:
        return {"acknowledged": len(acknowledged)} | hardship.compare(target.at, target.settings, store, so_far)
    finally:
        store.close()


def _wait_until_calm(target: Target, probe: Probe) -> dict[str, str]:
    """Wait until everything was well for CALM_S; return the state of every endpoint then.

    Returns after HEAL_S in any case: a fault on top of one that does not heal is measured too.
    """
    deadline, since, well = time.monotonic() + HEAL_S, time.monotonic(), probe.healthy()
    while time.monotonic() - since < CALM_S and time.monotonic() < deadline:
        time.sleep(0.1)
        now = probe.healthy()
        if now != well or not all(now.values()) or now["services"] != "up" or target.load.fed < 1:
            since, well = time.monotonic(), now
    return well


def _until_as_before(
    target: Target, probe: Probe, healthy: dict[str, str], ended: float, poll_after_s: float
) -> float | None:
    """Return the seconds after `ended` until every endpoint and service answers as before and the feeder's calls
    succeed; None after HEAL_S.
    """
    deadline = ended + HEAL_S
    while time.monotonic() < deadline:
        calls, everyone = [target.log.of(name) for name in CALLS], [target.log.of(name) for name in (*CALLS, *healthy)]
        well = probe.healthy() == healthy and all(call.now().startswith("200") for call in calls)
        if well and min(each.requested_at for each in everyone) > ended + poll_after_s:
            return max(0.0, max(each.changes[-1][0] for each in everyone) - ended)
        time.sleep(0.1)
    return None


def _answers_again(log: Log, ended: float) -> float | None:
    """Return the seconds after `ended` until the feeder's calls are answered with 200; 0 if they always were."""
    calls = [log.of(name) for name in CALLS]
    if not all(call.now().startswith("200") for call in calls):
        return None
    last = [
        at
        for call in calls
        for (at, words), (_, earlier) in zip(call.changes[1:], call.changes, strict=False)
        if words.startswith("200") and not earlier.startswith("200")
    ]
    return max(0.0, max(last) - ended) if last else 0.0


# ---- the installations ----------------------------------------------------------------------------------------------


@contextmanager
def running(
    fault: Fault, tiny: bool = False, pace_s: float = PACE_S, parent: Path | None = None, store_url: str = ""
) -> Iterator[Target]:
    """Start a target as `fault` needs it, with its load; stop both at the end."""
    with ExitStack() as context:
        scratch = Path(context.enter_context(tempfile.TemporaryDirectory(prefix="bellwether-fault-")))
        names: tuple[str, ...] = DECISION
        variables: dict[str, str] = {}
        if fault.where == "postgresql":
            store_url = context.enter_context(postgresql())
        elif fault.where == "tmpfs":
            parent = context.enter_context(tmpfs(scratch / "disk"))
            variables = {"BELLWETHER_DISK_WARN_MB": "8", "BELLWETHER_DISK_STOP_MB": "2"}
        elif fault.where == "remote":
            names = (*DECISION, "models")
            variables = {"BELLWETHER_MODELS": "remote"}
        elif fault.where == "faketime":
            (scratch / "clock").write_text("+0\n")
            variables = {
                "LD_PRELOAD": str(LIBFAKETIME), "FAKETIME_TIMESTAMP_FILE": str(scratch / "clock"),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        elif fault.where == "file_key":
            variables = {"BELLWETHER_WRITE_KEY": ""}
        at, settings = context.enter_context(
            hardship.serving_fixture(tiny, store_url, names, parent=parent, variables=variables)
        )
        target = _start_load(at, settings, names, scratch, pace_s)
        context.callback(_stop_load, target.load)
        yield target


def _start_load(at: Fixture, settings: Settings, names: tuple[str, ...], scratch: Path, pace_s: float) -> Target:
    """Start feeder and clients with a log of their answers; return the target."""
    log = Log()
    load = load_of(at, settings, pace_s, retries=True)
    load.client, load.patience_s = recorder(log), LOAD_PATIENCE_S
    load.start()
    return Target(at, settings, names, load, log, scratch)


def _stop_load(load: Load) -> None:
    """Stop feeder and clients without waiting for answers."""
    load.patience_s = 0.0
    load.stop()


@contextmanager
def tmpfs(folder: Path, megabytes: int = TMPFS_MB) -> Iterator[Path]:
    """Mount a small file system of its own. Needs the right to mount."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


_STACK = ExitStack()  # the seven services, once a process; stopped when it ends


@cache
def stack() -> Target:
    """Start all seven services on the fixture's warm start, once a process.

    No model is registered, so the consensus decides: these faults are about the servers next to the decision service.
    """
    atexit.register(_STACK.close)
    scratch = Path(_STACK.enter_context(tempfile.TemporaryDirectory(prefix="bellwether-stack-")))
    at, settings = _STACK.enter_context(hardship.serving_fixture(False, "", STACK, champion=False))
    target = _start_load(at, settings, STACK, scratch, PACE_S)
    _STACK.callback(_stop_load, target.load)
    return target


def case(name: str) -> JsonObject:
    """Measure one row of the matrix, on a target of its own or the shared one.

    Never raises: a failure becomes `not_run`.
    """
    fault = FAULTS[name]
    if why := fault.needs():
        return {"description": fault.description, "not_run": why}
    try:
        if fault.where == "stack":
            return observe_fault(stack(), fault)
        with running(fault) as target:
            return observe_fault(target, fault)
    except Exception as error:  # noqa: BLE001  # a gap in the matrix with its cause is better than no matrix
        return {"description": fault.description, "not_run": f"{type(error).__name__}: {str(error)[:400]}"}
