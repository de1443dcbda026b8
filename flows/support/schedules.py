"""When the flows run by themselves: the plan of this release, what the Prefect server has, and the way back.

The plan is sent once, when a deployment is not on the server yet. From then on schedules, default parameters and the
drift trigger belong to whoever edits them in the Prefect UI, over every restart and every release.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from flows.monitor import DRIFT_EVENT
from pipelines.models.catalog import MODEL_FAMILIES
from pipelines.params import Params

TRIGGER = "bellwether-drift-requests-retrain"
OLD_TRIGGER, OLD_EVENT = "bellwether-drift-asks-for-retrain", "bellwether.retrain-asked"  # of 0.5.0, 0.6.0
Schedule: TypeAlias = CronSchedule | IntervalSchedule


def drift_trigger() -> DeploymentEventTrigger:
    """A drift event starts the retrain deployment with the families it names and its reason."""
    return DeploymentEventTrigger(
        name=TRIGGER,
        match={"prefect.resource.id": "bellwether.families"},
        expect={DRIFT_EVENT},
        parameters={"family": "{{ event.payload.family }}", "reason": "{{ event.payload.reason }}"},
    )


@dataclass(frozen=True)
class Plan:
    """When one deployment runs by itself: with these default parameters, on schedules, and after a drift event."""

    schedules: tuple[Schedule, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    on_drift: bool = False


def plan(params: Params) -> dict[str, Plan]:
    """deployment → its plan, of all of them."""
    return {
        "ingest": Plan(),
        "train": Plan(),
        "evaluate": Plan(),
        "promote": Plan(),
        "reconcile": Plan((IntervalSchedule(interval=timedelta(minutes=15)),)),
        "monitor": Plan((CronSchedule(cron="*/30 * * * *", timezone="UTC"),)),
        "retrain": Plan(
            (IntervalSchedule(interval=timedelta(days=params.retrain.interval_days)),),
            {"family": ",".join(MODEL_FAMILIES), "reason": "schedule"},
            on_drift=True,
        ),
        "rollback": Plan(),
        "lifecycle": Plan(),
    }


class RegisterOnceDeployment(RunnerDeployment):
    """A deployment that is sent whole once; after that only what ties it to this code follows."""

    async def aapply(self, *args: Any, **kwargs: Any) -> UUID:
        """Register with the server and return the id there."""
        async with get_client() as client:
            try:
                found = await client.read_deployment_by_name(self.full_name)
            except ObjectNotFound:
                return UUID(str(await super().aapply(*args, **kwargs)))
            code = DeploymentUpdate(
                version=self.version,
                entrypoint=self.entrypoint,
                path=self._path,
                pull_steps=None,  # a command that somebody put there is not run
                parameter_openapi_schema=self._parameter_openapi_schema.model_dump(exclude_unset=True),
                enforce_parameter_schema=self.enforce_parameter_schema,
            )
            await client.update_deployment(found.id, code)
            if self.triggers:
                await rename_old_automations(client)
            return UUID(str(found.id))

    def apply(self, *args: Any, **kwargs: Any) -> UUID:
        """Register from code that is not asynchronous; Prefect's own would send everything again."""
        return asyncio.run(self.aapply(*args, **kwargs))


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
    """How one deployment is on the server, each thing in words, and what of it is not as planned."""

    deployment: str
    schedules: tuple[str, ...]
    paused: bool
    differences: tuple[str, ...]


def deployment_statuses(params: Params) -> list[DeploymentStatus]:
    """Every planned deployment, in the order of the plan. Needs the Prefect server."""
    with get_client(sync_client=True) as client:
        return [_standing(client, name, planned) for name, planned in plan(params).items()]


def reset(params: Params) -> list[DeploymentStatus]:
    """Put schedules, default parameters and the drift trigger back to the plan; what was not as planned before.

    The new stands before the old goes: whoever is stopped half-way leaves one too many, which the next reset removes.
    """
    changed = []
    with get_client(sync_client=True) as client:
        for name, planned in plan(params).items():
            before = _standing(client, name, planned)
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


def _standing(client: Any, name: str, planned: Plan) -> DeploymentStatus:
    found = _deployment(client, name)
    if found is None:
        return DeploymentStatus(name, (), False, ("it is not on the server yet; `bellwether up` registers it",))
    has = tuple(_told(s.schedule, s.active, s.parameters) for s in found.schedules)
    differences = list_differences("schedule", has, [_told(schedule) for schedule in planned.schedules])
    if found.paused:
        differences.append("paused as a whole")
    given = {key: value for key, value in found.parameters.items() if value is not None}
    differences += list_differences("parameter", _words(given), _words(planned.parameters))
    if planned.on_drift:
        triggers = [_trigger_told(automation) for automation in _drift_automations(client)]
        differences += list_differences("trigger", triggers, [_trigger_told(_automation(found.id))])
        has = (*has, *triggers)
    return DeploymentStatus(name, has, bool(found.paused), tuple(differences))


def list_differences(what: str, has: Iterable[str], planned: Sequence[str]) -> list[str]:
    """What is there and not planned, and the other way round; one that is there twice is one too many."""
    missing, unplanned = list(planned), []
    for one in has:
        if one in missing:
            missing.remove(one)
        else:
            unplanned.append(one)
    return [f"{what} not planned: {one}" for one in unplanned] + [f"{what} missing: {one}" for one in missing]


def _deployment(client: Any, name: str) -> Any:
    try:
        return client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        return None


def _automation(deployment_id: UUID) -> Any:
    trigger = drift_trigger()
    trigger.set_deployment_id(deployment_id)
    return trigger.as_automation()


def _words(parameters: dict[str, Any]) -> list[str]:
    return [f"{key} = {value}" for key, value in sorted(parameters.items())]


def _told(schedule: Any, active: bool = True, parameters: dict[str, Any] | None = None) -> str:
    """One schedule in words. Where an interval is counted from is left out: it is the moment it was made."""
    if isinstance(schedule, IntervalSchedule):
        told = f"every {_length(schedule.interval)}"
    elif isinstance(schedule, CronSchedule):
        told = f"cron {schedule.cron} {schedule.timezone or 'UTC'}"
    else:
        told = f"rrule {schedule.rrule} {schedule.timezone or 'UTC'}"
    told += f" with {', '.join(_words(parameters))}" if parameters else ""
    return told if active else f"{told} (paused)"


def _length(interval: timedelta) -> str:
    seconds = interval.total_seconds()
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"


def _trigger_told(automation: Any) -> str:
    trigger, action = automation.trigger, automation.actions[0] if automation.actions else None
    expect = ", ".join(sorted(getattr(trigger, "expect", ())))
    about = getattr(getattr(trigger, "match", None), "root", getattr(trigger, "match", None))
    given = _words(getattr(action, "parameters", None) or {})
    told = f"on {expect or trigger.type} of {about}: {action.type if action else 'nothing'} with {', '.join(given)}"
    return told if automation.enabled else f"{told} (paused)"
