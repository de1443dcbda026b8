"""What both services do besides answering: poll the generation file, and check that the loaded models answer right."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypedDict

from pipelines.errors import GoldenMismatch
from pipelines.families import FAMILIES
from pipelines.models.runtime import check_golden
from serving.inference.model_slots import ARMS, POLL_SECONDS, Snapshot

log = logging.getLogger("bellwether.generation_watcher")
AFTER_FAULT_SECONDS = 1.0


class Check(TypedDict):
    """Hold one line of a readiness probe; `ok` stays true of a check that only informs."""

    name: str
    ok: bool
    detail: str


class GenerationWatcher:
    """Run `poll` every POLL_SECONDS on the event loop until stopped.

    A fault of whatever kind ends one poll and never the next. It is logged, `report` is called with it, and readiness
    is red while it lasts; `report` is called with None when a poll succeeds again.
    """

    def __init__(
        self, poll: Callable[[], Coroutine[Any, Any, None]], report: Callable[[str | None], None] = lambda fault: None
    ) -> None:
        """Start without a task: `start` begins, `poll` runs once."""
        self._poll, self._report = poll, report
        self._fault: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to poll, on the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def fault(self) -> str | None:
        """Return why the last poll failed, or why none runs; None while polls succeed."""
        if self._task is None:
            return self._fault or "not started"
        return "stopped; restart this service" if self._task.done() else self._fault

    async def poll(self) -> None:
        """Poll once; its fault is reported, not raised."""
        try:
            await self._poll()
        except Exception as error:  # polling must go on: the next one may find the fault gone
            fault = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:300]
            if fault != self._fault:
                log.exception("a poll failed")
                self._report(fault)
            self._fault = fault
        else:
            if self._fault is not None:
                log.warning("polls succeed again after: %s", self._fault)
                self._report(None)
            self._fault = None

    async def _run(self) -> None:
        """Poll for ever; after a fault, wait longer."""
        while True:
            await self.poll()
            await asyncio.sleep(POLL_SECONDS if self._fault is None else AFTER_FAULT_SECONDS)


def slot_checks(snapshot: Snapshot) -> list[Check]:
    """Return one check a loaded model: its golden rows, predicted now."""
    checks: list[Check] = []
    for (family, arm), slot in snapshot.slots.items():
        name = f"golden:{family}.{arm}"
        try:
            gap = check_golden(slot.model)
        except GoldenMismatch as error:
            checks.append({"name": name, "ok": False, "detail": str(error)})
        else:
            checks.append({"name": name, "ok": True, "detail": f"version {slot.version}, largest difference {gap:.1e}"})
    return checks


def families(snapshot: Snapshot) -> dict[str, dict[str, dict[str, object] | None]]:
    """Return family → arm → lineage, columns, steps and classes of the model served; None where none is."""
    return {
        family: {
            arm: {
                **slot.lineage(),
                "columns": list(slot.model.columns),
                "steps": slot.model.steps,
                "classes": list(slot.model.classes),
            }
            if (slot := snapshot.slot(family, arm))
            else None
            for arm in ARMS
        }
        for family in FAMILIES
    }


def refusals(snapshot: Snapshot) -> list[dict[str, str]]:
    """Return the bundles that were refused: family, arm, version, reason."""
    return [{"family": r.family, "arm": r.arm, "version": r.version, "reason": r.reason} for r in snapshot.refused]
