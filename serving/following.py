"""What both services do beside answering: follow the generation file and say whether they are ready (V4)."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import GoldenMismatch
from pipelines.families import FAMILIES
from pipelines.models.runtime import check_golden
from pipelines.store import Store
from serving.slots import ARMS, POLL_SECONDS, Alarm, Snapshot


def alarm_to(store: Store) -> Alarm:
    """Alarms that go to the store, stamped now."""
    return lambda kind, severity, detail: store.raise_alarm(kind, severity, detail, datetime.now(UTC))


class Follower:
    """Runs `look` every POLL_SECONDS on the event loop until stopped. A fault ends it, and then readiness is red."""

    def __init__(self, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._look = look
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def fault(self) -> str | None:
        """Why it no longer runs; None while it does."""
        if self._task is None:
            return "not started"
        if not self._task.done():
            return None
        error = None if self._task.cancelled() else self._task.exception()
        return f"stopped: {error!r}; restart this service"

    async def _run(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(POLL_SECONDS)


def slot_checks(snapshot: Snapshot) -> list[dict[str, Any]]:
    """One line a loaded model (its golden rows, answered now) and one a refused bundle."""
    checks = []
    for (family, arm), slot in snapshot.slots.items():
        name = f"golden:{family}.{arm}"
        try:
            gap = check_golden(slot.model)
        except GoldenMismatch as error:
            checks.append({"name": name, "ok": False, "detail": str(error)})
        else:
            checks.append({"name": name, "ok": True, "detail": f"version {slot.version}, largest difference {gap:.1e}"})
    checks += [
        {"name": f"refused:{r.family}.{r.arm}", "ok": False, "detail": f"version {r.version}: {r.reason}"}
        for r in snapshot.refused
    ]
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
