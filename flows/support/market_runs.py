"""Who starts the deployments by themselves: Prefect's schedules at speed 1, the reconciler in market time at any other.

A market that is recorded or simulated and runs at another speed than the time of day has schedules of its own: the
intervals of the plan, in market time. Meanwhile Prefect's schedules of those deployments are held, which is to say
inactive; they are given back as they were once the market runs at speed 1 again, or its feed is stopped.
"""

import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import psutil
from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Crashed

from flows.support.due import APART, Due, Progress, after_start, brought_up, due
from flows.support.frozen import frozen
from flows.support.installation import Installation
from flows.support.market_time import learning_now, market_speed
from flows.support.pacing import Pacing, Who, read_pacing, row_of, write_pacing
from flows.support.schedules import market_intervals, plan
from flows.support.started_by import BY_ITSELF
from pipelines.settings import Settings
from serving.state.feed_state import read_feed_state

log = logging.getLogger("bellwether.due")
ARTIFACT = "next-due"  # key of the table on Prefect's page of artifacts
UNDER_WAY = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING)
WITH_PROCESS = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
NEED_WORKSPACE = ("ingest", "retention")  # build with DVC, as a retrain does: not while one runs


def poll(installation: Installation, at: datetime) -> list[str]:
    """Start what is due in market time, and hold or give back Prefect's schedules. Return a line for each run.

    at  time of day. Raises what the Prefect client raises where its server does not answer.
    """
    before = read_pacing(installation.settings)
    speed = market_speed(installation)
    if math.isnan(speed):  # the feed's file cannot be read: its alarm says so, and the next second may bring another
        return []
    feed = read_feed_state(installation.settings.serving_dir)
    stands = feed is None or feed.stopped  # nothing moves the market: Prefect's schedules are as good
    who: Who = "prefect" if speed == 1.0 or stands else "market"
    recent = before.checked is not None and timedelta(0) <= at - before.checked < APART
    if feed is not None and feed.stopped and before.who == "market" and recent:
        who = "market"  # a restart, or a fault that is tried again, is no stop; nothing starts while it is not alive
    pacing = replace(before, who=who, speed=speed, every=market_intervals(installation.params))
    looks = who != before.who or before.checked is None or not timedelta(0) <= at - before.checked < APART
    if looks:
        with get_client(sync_client=True) as client:
            pacing = (hold_schedules if who == "market" else give_back_schedules)(client, installation.settings, pacing)
            pacing = coalesce_late(client, pacing, plan(installation.params), at)
        pacing = replace(pacing, checked=at)
    lines: list[str] = []
    if who == "market":
        pacing, lines = start_due(installation, pacing, at, resumed=before.who != "market")
    if pacing != before:
        write_pacing(installation.settings, pacing)
    return lines


def tidy_before_serving(installation: Installation, at: datetime) -> None:
    """End the runs whose process ended with the flows before, and cancel what is overdue but the newest run of each
    deployment, before any of it is picked up.

    An error is logged: the deployments have to be served.
    """
    try:
        with get_client(sync_client=True) as client:
            end_orphans(client, runs_alive())
            pacing = coalesce_late(client, read_pacing(installation.settings), plan(installation.params), at)
        write_pacing(installation.settings, pacing)
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.error("overdue and orphaned runs were not looked at: %s; each may start, or hold others up", error)


def end_orphans(client: Any, alive: Collection[str]) -> list[str]:
    """End the runs of deployments that are under way by the server and have no process; return their names.

    The process that serves the deployments was killed with them, and nobody else tells the server: such a run would
    hold its deployment up for ever. Called while nothing serves them. A run that waits for a person is left alone.

    alive  ids of the runs that a process works on still
    """
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(WITH_PROCESS)))),
        limit=200,
    )  # fmt: skip
    # the runs of a pool may have their process on another machine; without heartbeats an automation ends them
    here = [run for run in found if run.deployment_id is not None and run.work_pool_name is None]
    orphans = [run for run in here if str(run.id) not in alive]
    for run in orphans:
        client.set_flow_run_state(run.id, Crashed(message="its process ended with the flows"), force=True)
        log.warning("run %s was under way when the flows ended; it is ended", run.name)
    return [run.name for run in orphans]


def runs_alive() -> set[str]:
    """Return the ids of the runs that processes of this machine work on."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found - {""}


def start_due(
    installation: Installation, pacing: Pacing, at: datetime, resumed: bool = False
) -> tuple[Pacing, list[str]]:
    """Start the runs that are due, if the feed is alive. Return the pacing after it and a line for each run.

    resumed  Prefect's own schedules started the runs until now, so none was missed
    """
    every, market = pacing.every, learning_now(installation)
    pacing = replace(pacing, progress=brought_up(every, pacing.progress, market, resumed))
    feed = read_feed_state(installation.settings.serving_dir)
    if feed is None or not feed.is_alive(at) or not due(every, pacing.progress, market, at):
        return pacing, []
    lines = []
    with get_client(sync_client=True) as client:
        wanted = startable(client, every, pacing.held)
        busy = under_way(client, every) | (every.keys() - wanted) | held_up(installation)
        for run in due(every, pacing.progress, market, at, busy):
            start(run)
            started = after_start(pacing.progress[run.deployment], run, at)
            pacing = replace(pacing, progress={**pacing.progress, run.deployment: started})
            write_pacing(installation.settings, pacing)  # after each: a run that was started is not started twice
            lines.append(f"{run.deployment} started: due {run.occurrence:%F %H:%M} of the market, of {run.coalesced}")
        if lines:
            show_next_due(client, every, pacing.progress, market)
    return pacing, lines


def start(run: Due) -> None:
    """Start one run, marked as one that no person started; the same occurrence a second time starts nothing."""
    run_deployment(
        f"{run.deployment}/{run.deployment}", timeout=0, as_subflow=False, tags=[BY_ITSELF],
        idempotency_key=f"{run.deployment} {run.occurrence.isoformat()}",
    )  # fmt: skip


def held_up(installation: Installation) -> set[str]:
    """Return the deployments that may not start now: retrains that are frozen, and what a running retrain holds up."""
    found = {"retrain"} if frozen(installation.settings, "retrain") else set()
    working = any(request.state == "running" for request in installation.store.retrain_requests(last=20))
    return found | (set(NEED_WORKSPACE) if working else set())


# ---- Prefect's own schedules -----------------------------------------------------------------------------------------


def hold_schedules(client: Any, settings: Settings, pacing: Pacing) -> Pacing:
    """Make the active Prefect schedules of what follows the market inactive; return the pacing that remembers which."""
    to_hold, held = [], dict(pacing.held)
    for name in pacing.every:
        found = _deployment(client, name)
        active = [each.id for each in found.schedules if each.active] if found is not None else []
        to_hold += [(found.id, one) for one in active]
        if active:
            held[name] = tuple(dict.fromkeys([*held.get(name, ()), *map(str, active)]))
    if to_hold:  # written first: what is held without being remembered would never be given back
        write_pacing(settings, replace(read_pacing(settings), held=held))
    for deployment, one in to_hold:
        client.update_deployment_schedule(deployment, one, active=False)
    return replace(pacing, held=held)


def give_back_schedules(client: Any, settings: Settings, pacing: Pacing) -> Pacing:
    """Make the Prefect schedules active again that were so before they were held; one that was deleted stays so."""
    for name, ids in pacing.held.items():
        found = _deployment(client, name)
        there = {str(each.id): each.id for each in found.schedules} if found is not None else {}
        for one in ids:
            if one in there:
                client.update_deployment_schedule(found.id, there[one], active=True)
    return replace(pacing, held={})


def startable(client: Any, names: Iterable[str], held: Mapping[str, Collection[str]]) -> set[str]:
    """Return the deployments that no person paused: not as a whole, and with a schedule that is held or active."""
    found = set()
    for name in names:
        deployment = _deployment(client, name)
        if deployment is None or deployment.paused:
            continue
        if any(each.active or str(each.id) in held.get(name, ()) for each in deployment.schedules):
            found.add(name)
    return found


def under_way(client: Any, names: Iterable[str]) -> set[str]:
    """Return the deployments with a run that waits or runs, no matter who started it.

    Runs that Prefect's schedules plan ahead do not count.
    """
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(UNDER_WAY)))),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=list(names))),
        limit=200,
    )
    counted = {run.deployment_id for run in runs if not (run.auto_scheduled and run.state_type == StateType.SCHEDULED)}
    return {name for name in names if (found := _deployment(client, name)) is not None and found.id in counted}


def coalesce_late(client: Any, pacing: Pacing, names: Iterable[str], at: datetime) -> Pacing:
    """Cancel the overdue runs of Prefect's schedules but the newest of each deployment, and count them.

    After a night off one run of each starts, not one for every time it was due.
    """
    late = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=at),
        ),
        limit=200,
    )
    overdue: dict[Any, list[Any]] = {}
    for run in late:
        if run.auto_scheduled and run.deployment_id is not None:
            overdue.setdefault(run.deployment_id, []).append(run)
    counts = dict(pacing.late)
    for name in names if any(len(runs) > 1 for runs in overdue.values()) else ():
        found = _deployment(client, name)
        runs = sorted(overdue.get(found and found.id, ()), key=lambda run: run.next_scheduled_start_time)
        for run in runs[:-1]:
            why = "missed while nothing ran; only the newest overdue run starts"
            client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
            counts[name] = counts.get(name, 0) + 1
    return replace(pacing, late=counts)


def show_next_due(
    client: Any, every: Mapping[str, timedelta], progress: Mapping[str, Progress], market: datetime
) -> None:
    """Write what is next due in market time to Prefect's page of artifacts."""
    rows = [{"deployment": name, **row_of(progress[name], each, market)} for name, each in every.items()]
    table = ArtifactCreate(
        key=ARTIFACT,
        type="table",
        data=json.dumps(rows),
        description=f"Due in market time, as of {market:%F %H:%M} UTC",
    )
    client.create_artifact(table)


def _deployment(client: Any, name: str) -> Any:
    """Return a deployment as the server has it; None if it is not registered."""
    try:
        return client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        return None
