"""Schedule the flows: the plan of this release, what the Prefect server has, and the reset to the plan.

The plan is sent once, when a deployment is not on the server yet. From then on schedules, default parameters and the
drift trigger belong to the people who edit them in the Prefect UI; no restart or release changes them. While a market
runs at another speed than the time of day, `flows.support.market_runs` holds the schedules of what follows the market.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectException

from flows.monitor import DRIFT_EVENT
from flows.support.earlier_parameters import TEMPLATE, name_families
from flows.support.run_names import words
from pipelines.contracts import DAY_S
from pipelines.models.catalog import MODEL_FAMILIES
from pipelines.params import Params

TRIGGER = "bellwether-drift-requests-retrain"
OLD_TRIGGER, OLD_EVENT = "bellwether-drift-asks-for-retrain", "bellwether.retrain-asked"  # of 0.5.0, 0.6.0
log = logging.getLogger("bellwether.schedules")
Schedule: TypeAlias = CronSchedule | IntervalSchedule
Held: TypeAlias = Mapping[str, Sequence[str]]  # deployment → ids of its schedules that are held
NONE_HELD: Held = {}
DAY = timedelta(days=1)


def drift_trigger() -> DeploymentEventTrigger:
    """Return the trigger by which a drift event starts the retrain deployment, with its families and reason."""
    return DeploymentEventTrigger(
        name=TRIGGER,
        match={"prefect.resource.id": "bellwether.families"},
        expect={DRIFT_EVENT},
        parameters={"families": TEMPLATE, "reason": "{{ event.payload.reason }}"},
    )


@dataclass(frozen=True)
class Plan:
    """Define when one deployment runs by itself: its schedules, default parameters, and if a drift event starts it.

    every  interval in market time, where the market runs at another speed than the time of day; None = it follows the
           time of day at any speed. flows.support.market_runs starts those runs
    """

    schedules: tuple[Schedule, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    on_drift: bool = False
    every: timedelta | None = None


def plan(params: Params) -> dict[str, Plan]:
    """Return deployment → its plan, for every deployment."""
    every = market_intervals(params)
    planned = {
        "ingest": Plan((_daily("10 0"),), {"observed": True}),
        "train": Plan(),
        "evaluate": Plan(),
        "promote": Plan(),
        "reconcile": Plan((IntervalSchedule(interval=timedelta(minutes=15)),)),
        "monitor": Plan((CronSchedule(cron="*/30 * * * *", timezone="UTC"),)),
        "retrain": Plan(
            (IntervalSchedule(interval=every["retrain"]),),
            {"families": list(MODEL_FAMILIES), "reason": "schedule"},
            on_drift=True,
        ),
        "report": Plan((_daily("30 0"),)),
        "retention": Plan((_daily("50 0"),)),
        "portfolio": Plan(),
        "rollback": Plan(),
        "verify": Plan((_daily("20 0"),)),
        "lifecycle": Plan(),
    }
    return {name: replace(one, every=every.get(name)) for name, one in planned.items()}


def market_intervals(params: Params) -> dict[str, timedelta]:
    """Return deployment → its interval in market time, of those that follow the market."""
    retrain = timedelta(days=params.retrain.interval_days)
    return {"ingest": DAY, "monitor": timedelta(minutes=30), "retrain": retrain, "report": DAY, "retention": DAY}


def _daily(minute_and_hour: str) -> CronSchedule:
    """Return the schedule of once a day, UTC."""
    return CronSchedule(cron=f"{minute_and_hour} * * *", timezone="UTC")


class RegisterOnceDeployment(RunnerDeployment):
    """Register a deployment completely once; later registrations update only what ties it to this code."""

    async def aapply(self, *args: Any, **kwargs: Any) -> UUID:
        """Register with the server and return the deployment's id."""
        async with get_client() as client:
            try:
                found = await client.read_deployment_by_name(self.full_name)
            except ObjectNotFound:
                return UUID(str(await super().aapply(*args, **kwargs)))
            code = DeploymentUpdate(
                version=self.version,
                entrypoint=self.entrypoint,
                path=self._path,
                pull_steps=None,  # a command that was added on the server is not run
                parameter_openapi_schema=self._parameter_openapi_schema.model_dump(exclude_unset=True),
                enforce_parameter_schema=self.enforce_parameter_schema,
                work_pool_name=self.work_pool_name,  # None: the home serves it, also where a pool did before
            )
            await client.update_deployment(found.id, code)
            if self.triggers:
                await _take_over(client, found)
            return UUID(str(found.id))

    def apply(self, *args: Any, **kwargs: Any) -> UUID:
        """Register from synchronous code; Prefect's own method would send everything again."""
        return asyncio.run(self.aapply(*args, **kwargs))


async def _take_over(client: Any, deployment: Any) -> None:
    """Bring what an earlier release left of the retrain deployment to this one's names.

    An error is logged, for the deployments have to be served.
    """
    try:
        await rename_old_automations(client)
        await name_families(client, deployment)
    except (httpx.HTTPError, PrefectException, ValueError) as error:
        log.error(
            "retrain keeps names of an earlier release: %s. In the Prefect UI the automation is to be called %s, and "
            "`family` to become the list `families`; `bellwether schedules reset` does both.", error, TRIGGER,
        )  # fmt: skip


async def rename_old_automations(client: Any) -> None:
    """Give the drift automation of an earlier release its new name and event; all else of it stays as it is.

    In particular it stays paused if a person paused it.
    """
    for automation in await client.read_automations_by_name(OLD_TRIGGER):
        renamed = AutomationCore.model_validate(automation.model_dump(exclude={"id", "owner_resource"}))
        renamed.name = TRIGGER
        if expected := getattr(renamed.trigger, "expect", None):  # a person may have put another kind of trigger there
            renamed.trigger.expect = {DRIFT_EVENT if event == OLD_EVENT else event for event in expected}
        await client.update_automation(automation.id, renamed)


def _drift_automations(client: Any) -> list[Any]:
    """Return the drift automations on the server, also one under its old name."""
    return [found for name in (TRIGGER, OLD_TRIGGER) for found in client.read_automations_by_name(name)]


@dataclass(frozen=True)
class DeploymentStatus:
    """Describe one deployment on the server, and what differs from the plan.

    held  its schedules are inactive while the market runs at another speed: its runs start in market time
    """

    deployment: str
    schedules: tuple[str, ...]
    paused: bool
    differences: tuple[str, ...]
    held: bool = False


def deployment_statuses(params: Params, held: Held = NONE_HELD) -> list[DeploymentStatus]:
    """Return the status of every planned deployment, in the order of the plan. Needs the Prefect server.

    held  as of `flows.support.pacing.Pacing`
    """
    with get_client(sync_client=True) as client:
        return [_status(client, name, planned, held) for name, planned in plan(params).items()]


def reset(params: Params, held: Held = NONE_HELD) -> list[DeploymentStatus]:
    """Reset schedules, default parameters and the drift trigger to the plan; return the deployments that differed.

    The new is created before the old is deleted: an interrupted reset leaves one too many, which the next one removes.
    Where schedules are held, the reconciler holds the new ones within a minute.
    """
    changed = []
    with get_client(sync_client=True) as client:
        for name, planned in plan(params).items():
            before = _status(client, name, planned, held)
            found = _deployment(client, name)
            if found is None or not before.differences:
                continue
            client.create_deployment_schedules(found.id, [(schedule, True) for schedule in planned.schedules])
            for old in found.schedules:
                client.delete_deployment_schedule(found.id, old.id)
            client.update_deployment(found.id, DeploymentUpdate(parameters=planned.parameters, paused=False))
            if planned.on_drift:
                old_triggers = _drift_automations(client)
                client.create_automation(_automation(found.id))
                for automation in old_triggers:
                    client.delete_automation(automation.id)
            changed.append(before)
    return changed


def _status(client: Any, name: str, planned: Plan, held: Held) -> DeploymentStatus:
    """Return the status of one deployment, compared with its plan."""
    found = _deployment(client, name)
    if found is None:
        return DeploymentStatus(name, (), False, ("it is not on the server yet; `bellwether up` registers it",))
    ours = held.get(name, ())
    has = tuple(describe_schedule(s.schedule, s.active or str(s.id) in ours, s.parameters) for s in found.schedules)
    differences = list_differences("schedule", has, [describe_schedule(schedule) for schedule in planned.schedules])
    if found.paused:
        differences.append("paused as a whole")
    given = {key: value for key, value in found.parameters.items() if value is not None}
    differences += list_differences("parameter", _assignments(given), _assignments(planned.parameters))
    if planned.on_drift:
        triggers = [_describe_trigger(automation) for automation in _drift_automations(client)]
        differences += list_differences("trigger", triggers, [_describe_trigger(_automation(found.id))])
        has = (*has, *triggers)
    return DeploymentStatus(name, has, bool(found.paused), tuple(differences), bool(ours))


def list_differences(what: str, has: Iterable[str], planned: Sequence[str]) -> list[str]:
    """Return what is there and not planned, then what is planned and not there; a duplicate is not planned."""
    missing, unplanned = list(planned), []
    for one in has:
        if one in missing:
            missing.remove(one)
        else:
            unplanned.append(one)
    return [f"{what} not planned: {one}" for one in unplanned] + [f"{what} missing: {one}" for one in missing]


def _deployment(client: Any, name: str) -> Any:
    """Return a deployment as the server has it; None if it is not registered."""
    try:
        return client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        return None


def _automation(deployment_id: UUID) -> Any:
    """Return the automation of the drift trigger for a deployment, as this release plans it."""
    trigger = drift_trigger()
    trigger.set_deployment_id(deployment_id)
    return trigger.as_automation()


def _assignments(parameters: Mapping[str, Any]) -> list[str]:
    """Return "name = value" of each parameter, by name."""
    return [f"{key} = {words(value)}" for key, value in sorted(parameters.items())]


def describe_schedule(schedule: Any, active: bool = True, parameters: Mapping[str, Any] | None = None) -> str:
    """Describe one schedule. The anchor of an interval is left out: it is the moment of its creation."""
    if isinstance(schedule, IntervalSchedule):
        text = f"every {_duration(schedule.interval)}"
    elif isinstance(schedule, CronSchedule):
        text = f"cron {schedule.cron} {schedule.timezone or 'UTC'}"
    else:
        text = f"rrule {schedule.rrule} {schedule.timezone or 'UTC'}"
    text += f" with {', '.join(_assignments(parameters))}" if parameters else ""
    return text if active else f"{text} (paused)"


def _duration(interval: timedelta) -> str:
    """Return a duration in its largest whole unit, as "36 h"."""
    seconds = interval.total_seconds()
    for unit, name in ((int(DAY_S), "d"), (3600, "h"), (60, "min")):
        if seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"


def _describe_trigger(automation: Any) -> str:
    """Describe what event starts what, with which parameters."""
    trigger, action = automation.trigger, automation.actions[0] if automation.actions else None
    expect = ", ".join(sorted(getattr(trigger, "expect", ())))
    about = getattr(getattr(trigger, "match", None), "root", getattr(trigger, "match", None))
    given = _assignments(getattr(action, "parameters", None) or {})
    text = f"on {expect or trigger.type} of {about}: {action.type if action else 'nothing'} with {', '.join(given)}"
    return text if automation.enabled else f"{text} (paused)"
