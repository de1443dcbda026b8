"""Retrains as releases up to 0.11 left them on the Prefect server: `family`, a text with commas, becomes `families`.

The defaults of the deployment, its schedules, automations that start it, and runs that wait, also those that a person
made: a retrain that was requested before an upgrade is done after it.
"""

import re
from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore

TEMPLATE = "{{ event.payload.families }}"  # Prefect hands a list over as a list
OLD_TEMPLATE = re.compile(r"\s*\{\{\s*event\.payload\.family\s*\}\}\s*")


def with_families(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a retrain with the list `families` in place of the text `family`, if they have one."""
    changed = dict(parameters)
    text = changed.pop("family", None)
    if isinstance(text, str):
        names = [name.strip() for name in text.split(",") if name.strip()]
        changed.setdefault("families", TEMPLATE if OLD_TEMPLATE.fullmatch(text) else names)
    return changed


async def name_families(client: Any, deployment: Any) -> None:
    """Change what the server holds of the retrain deployment to `with_families`; all else of it stays as it is.

    deployment  as the server had it before this release
    """
    if "family" in deployment.parameters:
        changed = DeploymentUpdate(parameters=with_families(deployment.parameters))
        await client.update_deployment(deployment.id, changed)
    for schedule in deployment.schedules:
        if "family" in (schedule.parameters or {}):
            parameters = with_families(schedule.parameters)
            await client.update_deployment_schedule(deployment.id, schedule.id, parameters=parameters)
    await _name_in_automations(client, deployment)
    await _name_in_runs(client, deployment)


async def _name_in_automations(client: Any, deployment: Any) -> None:
    """Change the automations that start this deployment, also those that a person made."""
    for automation in await client.read_automations():
        changed = AutomationCore.model_validate(automation.model_dump(exclude={"id", "owner_resource"}))
        ours = [action for action in changed.actions if getattr(action, "deployment_id", None) == deployment.id]
        old = [action for action in ours if "family" in (getattr(action, "parameters", None) or {})]
        for action in old:
            action.parameters = with_families(action.parameters)
        if old:
            await client.update_automation(automation.id, changed)


async def _name_in_runs(client: Any, deployment: Any) -> None:
    """Change the runs of this deployment that have not started yet."""
    waiting = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING]))
        ),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        limit=200,
    )
    for run in waiting:
        if "family" in run.parameters:
            await client.update_flow_run(run.id, parameters=with_families(run.parameters))
