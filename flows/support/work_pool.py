"""The Prefect work pool of profile `cluster`: what its workers run, how each shows life, what ends a run that died.

A worker has a folder of its own and shares no disk with the home: see flows.support.home_copy.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines.settings import Settings

POOL = "bellwether"
POLLED = "reconcile"  # a deployment that the home serves; its runner requests the work of all of those at once
BEAT_S = 10  # between two heartbeats of a worker
SILENT = timedelta(seconds=4 * BEAT_S)  # after which a worker does not work
RUN_BEAT_S = 30  # between two heartbeats of a run; Prefect takes no less
RUN_SILENT = timedelta(seconds=4 * RUN_BEAT_S)  # after which a run is ended as crashed
DEAD_RUNS = "bellwether-ends-runs-that-died"
Request = Callable[[str, Mapping[str, object]], Any]  # path of the Prefect API, body → parsed answer, None without one


def folder(home: Path, name: str) -> Path:
    """Return the folder that a worker of this home has for itself."""
    return home / "workers" / name


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables by which workers and runs send heartbeats; none without a pool."""
    if not settings.runs_workers:
        return {}
    return {"PREFECT_WORKER_HEARTBEAT_SECONDS": str(BEAT_S), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(RUN_BEAT_S)}


def shows_life(worker: str, since: str, request: Request) -> bool:
    """Return whether a worker of the pool, or with no name the runner of the home, requests work after `since`."""
    return is_beating(request, worker, since) if worker else is_polling(request, since)


def is_polling(request: Request, since: str) -> bool:
    """Return whether our runner requested work after `since` (ISO 8601) and within the last minute."""
    wanted = {"deployments": {"name": {"any_": [POLLED]}}}  # of all, Prefect would take a fifth of a second to answer
    found = request("/deployments/filter", wanted) or []
    oldest = max(datetime.fromisoformat(since), datetime.now(UTC) - timedelta(minutes=1))
    return any(one["last_polled"] and datetime.fromisoformat(one["last_polled"]) > oldest for one in found)


def is_beating(request: Request, name: str, since: str) -> bool:
    """Return whether the server has a heartbeat of this worker, after `since` (ISO 8601) and within SILENT."""
    oldest = max(datetime.fromisoformat(since), datetime.now(UTC) - SILENT)
    found = request(f"/work_pools/{POOL}/workers/filter", {"limit": 50}) or []
    beats = [one["last_heartbeat_time"] for one in found if one["name"] == name]
    return any(beat and datetime.fromisoformat(beat) > oldest for beat in beats)


async def make_pool(client: Any) -> None:
    """Make the pool and the automation that ends its dead runs, where they are not on the server yet."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    if not await client.read_automations_by_name(DEAD_RUNS):
        await client.create_automation(dead_runs())


def dead_runs() -> Any:
    """Return the automation that ends a run as crashed, once it sent no heartbeat for RUN_SILENT and did not end.

    A run whose machine is gone is ended by nobody else, and would hold its deployment up for ever.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=DEAD_RUNS,
        description="Ends a run that sends no heartbeat any more, so that the next one may start",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")),
            },
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=RUN_SILENT,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="it sent no heartbeat any more")],
    )
