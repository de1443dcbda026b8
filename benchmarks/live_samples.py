"""One sample of a running installation: what `bellwether status` says, next to what the ledger holds."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from flows.support import processes, service_table
from pipelines.contracts import JsonObject
from pipelines.errors import BellwetherError
from pipelines.families import FAMILIES
from pipelines.settings import Settings
from pipelines.store import Store
from serving.service.home_store import open_store

JOBS = "jobs"
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # in the environment of a flow run's process, and of all that it starts


def take_sample(where: Settings, with_folders: bool) -> JsonObject:
    """Return one sample: `at` epoch seconds, differences, ages in bars, alarms, retrains, RSS of each service.

    with_folders  whether the bytes of each folder of the home are counted, which takes a second
    """
    sample: JsonObject = {"at": time.time(), "rss": memory(where)}
    if with_folders:
        sample["folders"] = folder_bytes(where.home)
    try:
        return sample | observed(where)
    except BellwetherError as error:  # part of what is measured: `status` gave no answer
        return sample | {"error": str(error)}


def observed(where: Settings) -> JsonObject:
    """Return what status says and the ledger holds. Raises BellwetherError where either gives no answer."""
    from bellwether.operations.status import stored_status  # only when the environment names the home

    store = open_store(where)
    try:
        before = ledger(store)
        status: Mapping[str, Any] = stored_status()
        after = ledger(store)
    finally:
        store.close()
    feed = status["feed"] or {}
    return {
        "differences": differences(status, before, after),
        "health": status["health"],
        "market_time": feed.get("market_time"),
        "feed": feed.get("state"),
        "held": feed.get("condition") if feed.get("state") == "held" else None,
        "lag_bars": feed.get("lag_bars"),
        "bars_s": feed.get("bars_s"),
        "age_bars": {each["symbol"]: each["age_bars"] for each in status["universe"]},
        "tiers": {each["symbol"]: each["tier"] for each in status["universe"]},
        "alarms": after["alarms"],
        "retrains": after["retrains"],
        "decided": after["newest"],
    }


def ledger(store: Store) -> JsonObject:
    """Return what the ledger holds now: champions, alarms, requested retrains, newest decision of each symbol."""
    champions = {}
    for family in FAMILIES:
        line = store.slots(family).champion
        champions[family] = None if line is None else str(line.to_version)
    newest = {}
    for symbol in store.symbols():
        last = store.decisions(symbol, last=1)
        newest[symbol] = last[0].decision.as_of.isoformat() if last else None
    return {
        "champions": champions,
        "alarms": [
            {"id": a.id, "kind": a.kind, "severity": a.severity, "detail": a.detail, "at": a.at.isoformat(),
             "open": a.cleared_at is None}
            for a in store.alarms(open_only=False)
        ],
        "retrains": [
            {"id": r.id, "family": r.family, "reason": r.reason, "state": r.state, "detail": r.detail,
             "at": r.at.isoformat(), "finished_at": r.finished_at and r.finished_at.isoformat()}
            for r in store.retrain_requests()
        ],
        "newest": newest,
    }  # fmt: skip


def differences(status: Mapping[str, Any], before: JsonObject, after: JsonObject) -> list[str]:
    """Return in words where status says what the ledger held neither just before nor just after it was asked."""
    found = []
    for family, arms in status["families"].items():
        shown = arms["champion"] and str(arms["champion"]["version"])
        held = {each["champions"].get(family) for each in (before, after)}
        if shown not in held:
            found.append(f"champion of {family}: status {shown}, ledger {sorted(map(str, held))}")
    shown_alarms = {(a["kind"], a["at"]) for a in status["alarms"]}
    open_before, open_after = ({(a["kind"], a["at"]) for a in each["alarms"] if a["open"]} for each in (before, after))
    for kind, at in shown_alarms - (open_before | open_after):
        found.append(f"alarm {kind} of {at}: in status, not open in the ledger")
    for kind, at in (open_before & open_after) - shown_alarms:
        found.append(f"alarm {kind} of {at}: open in the ledger, not in status")
    symbols = {each["symbol"] for each in status["universe"]}
    for symbol in set(before["newest"]) - symbols:
        found.append(f"{symbol}: in the ledger, not in status")
    for each in status["universe"]:
        earliest = before["newest"].get(each["symbol"])
        if earliest is not None and (each["newest_bar"] is None or each["newest_bar"] < earliest):
            found.append(f"{each['symbol']}: decided at {earliest}, newest bar of status {each['newest_bar']}")
    return found


def memory(where: Settings) -> dict[str, int]:
    """Return service → resident bytes of its processes, and under JOBS those of the flow runs that `flows` starts."""
    found = dict.fromkeys([*service_table.services_of(where), JOBS], 0)
    for name in service_table.services_of(where):
        for process in processes.home_processes(where, name):
            try:
                owner = JOBS if FLOW_RUN in process.environ() else name
                found[owner] += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    return found


def folder_bytes(home: Path) -> dict[str, int]:
    """Return folder of the home → bytes of its files; a file with several links counts once, where it is met first."""
    seen: set[tuple[int, int]] = set()
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(home):
        folders.sort()
        inside = Path(folder).relative_to(home).parts
        name = inside[0] if inside else "."
        for file in files:
            try:
                stat = os.lstat(os.path.join(folder, file))
            except FileNotFoundError:  # removed meanwhile
                continue
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                found[name] = found.get(name, 0) + stat.st_size
    return found
