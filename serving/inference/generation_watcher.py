"""What both services do beside answering: follow the generation file and say whether they are ready (V4)."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import GoldenMismatch
from pipelines.families import FAMILIES
from pipelines.models.runtime import check_golden
from pipelines.store import Store
from serving.inference.model_slots import ARMS, POLL_SECONDS, Snapshot

log = logging.getLogger("bellwether.following")
AFTER_FAULT_SECONDS = 1.0


class AlarmQueue:
    """Alarms on their way to the store: no request waits for it, and a store that is down loses none.

    An entry is (kind, severity, detail, about, over): one replaces its kind's open one about the same; over = closed.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, str, str, str, bool]] = deque()
        self._lock = threading.Lock()

    def append(self, alarm: tuple[str, str, str, str, bool]) -> None:
        with self._lock:
            if alarm not in self._waiting:
                self._waiting.append(alarm)

    def flush(self, store: Store) -> None:
        """Hand over what waits, oldest first; what the store refuses goes on waiting."""
        while self._waiting:
            self._raise(store, *self._waiting[0])
            with self._lock:
                self._waiting.popleft()

    @staticmethod
    def _raise(store: Store, kind: str, severity: str, detail: str, about: str, over: bool) -> None:
        at = datetime.now(UTC)
        for alarm in store.alarms():
            if alarm.kind == kind and alarm.detail.startswith(about) and alarm.detail != detail:
                store.clear_alarm(alarm.id, at)
        told = store.raise_alarm(kind, severity, detail, at)
        if over:
            store.clear_alarm(told, at)


class GenerationWatcher:
    """Runs `look` every POLL_SECONDS on the event loop until stopped.

    A fault of whatever kind ends one look and never the next: it is logged, `tell` is called with it, readiness is red
    while it lasts, and `tell` is called with None when a look is whole again.
    """

    def __init__(
        self, look: Callable[[], Coroutine[Any, Any, None]], tell: Callable[[str | None], None] = lambda fault: None
    ) -> None:
        self._look, self._tell = look, tell
        self._fault: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def fault(self) -> str | None:
        """Why its last look was not whole, or why it does not run; None while all is well."""
        if self._task is None:
            return self._fault or "not started"
        return "stopped; restart this service" if self._task.done() else self._fault

    async def poll(self) -> None:
        """One look; its fault is told, not raised."""
        try:
            await self._look()
        except Exception as error:  # whoever follows must go on: the next look may find it mended
            told = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:300]
            if told != self._fault:
                log.exception("a look failed")
                self._tell(told)
            self._fault = told
        else:
            if self._fault is not None:
                log.warning("looks are whole again after: %s", self._fault)
                self._tell(None)
            self._fault = None

    async def _run(self) -> None:
        while True:
            await self.poll()
            await asyncio.sleep(POLL_SECONDS if self._fault is None else AFTER_FAULT_SECONDS)


def slot_checks(snapshot: Snapshot) -> list[dict[str, Any]]:
    """One line a loaded model: its golden rows, answered now."""
    checks = []
    for (family, arm), slot in snapshot.slots.items():
        name = f"golden:{family}.{arm}"
        try:
            gap = check_golden(slot.model)
        except GoldenMismatch as error:
            checks.append({"name": name, "ok": False, "detail": str(error)})
        else:
            checks.append({"name": name, "ok": True, "detail": f"version {slot.version}, largest difference {gap:.1e}"})
    return checks


def families(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """family → champion and challenger: lineage and input columns, or null."""
    return {
        family: {
            arm: slot.lineage()
            | {"columns": list(slot.model.columns), "steps": slot.model.steps, "classes": list(slot.model.classes)}
            if (slot := snapshot.slot(family, arm))
            else None
            for arm in ARMS
        }
        for family in FAMILIES
    }


def refusals(snapshot: Snapshot) -> list[dict[str, str]]:
    return [{"family": r.family, "arm": r.arm, "version": r.version, "reason": r.reason} for r in snapshot.refused]
