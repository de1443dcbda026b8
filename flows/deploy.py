"""Every deployment and its schedule, in one table; `python -m flows.deploy` serves them all."""

from datetime import timedelta
from typing import Any

from prefect import serve
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentEventTrigger

from flows import supervisor
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.lifecycle import lifecycle
from flows.monitor import DRIFT_EVENT, monitor
from flows.promote import promote, reconcile
from flows.retrain import retrain
from flows.rollback import rollback
from flows.train import train
from flows.watch import watching
from pipelines.models.catalog import RECIPES
from pipelines.settings import load_params, settings

# flow, schedule, what it is for
TABLE: list[tuple[Any, Any, str]] = [
    (ingest, None, "Market data into a checked, versioned snapshot"),
    (train, None, "Fit and register candidates from the newest snapshot"),
    (evaluate, None, "Put a registered version through the gate"),
    (promote, None, "Make a version champion; `manual` waits for a person here"),
    (
        reconcile,
        IntervalSchedule(interval=timedelta(minutes=15)),
        "Aliases and ledger once more; flows.watch saw them first",
    ),
    (monitor, CronSchedule(cron="*/30 * * * *", timezone="UTC"), "Resolve outcomes, watch drift and loss, report"),
    (retrain, "retrain", "A new challenger; started by drift, loss, age, the schedule, or a person"),
    (rollback, None, "The previous champion back, in one step"),
    (lifecycle, None, "One whole turn of the loop"),
]


def drift_trigger() -> DeploymentEventTrigger:
    """A drift event starts the retrain deployment with the families it names and its reason."""
    return DeploymentEventTrigger(
        name="bellwether-drift-asks-for-retrain",
        match={"prefect.resource.id": "bellwether.families"},
        expect={DRIFT_EVENT},
        parameters={"family": "{{ event.payload.family }}", "reason": "{{ event.payload.reason }}"},
    )


def deployments() -> list[Any]:
    params = load_params(settings().params_file)
    found = []
    for flow, schedule, description in TABLE:
        if schedule == "retrain":
            every = IntervalSchedule(interval=timedelta(days=params.retrain.interval_days))
            found.append(
                flow.to_deployment(
                    flow.name,
                    schedule=every,
                    parameters={"family": ",".join(RECIPES), "reason": "schedule"},
                    triggers=[drift_trigger()],
                    description=description,
                    concurrency_limit=1,
                    tags=["bellwether"],
                )
            )
        else:
            found.append(
                flow.to_deployment(
                    flow.name, schedule=schedule, description=description, concurrency_limit=1, tags=["bellwether"]
                )
            )
    return found


if __name__ == "__main__":
    supervisor.await_healthy(settings(), ["prefect"])  # registering needs the server
    # schedules stay as a person left them: stopping this process does not pause them
    # a promotion that waits for a person keeps its place, so there are more places than processors
    with watching():
        serve(*deployments(), limit=8, print_starting_message=False, pause_on_shutdown=False)
