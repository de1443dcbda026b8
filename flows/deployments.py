"""Every deployment, in one table; `python -m flows.deployments` serves them all.

`flows.support.schedules` says when they run.
"""

# before numpy is imported: BLAS reads its number of threads once. Prefect may run a flow in a spawned `__mp_main__`.
if __name__ in ("__main__", "__mp_main__"):
    from pipelines.bootstrap import bootstrap

    bootstrap()

import asyncio
import ssl
from functools import cache
from typing import Any

from prefect import Flow, get_client, serve
from prefect.deployments.runner import EntrypointType

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.lifecycle import lifecycle
from flows.monitor import monitor
from flows.portfolio import portfolio
from flows.promote import promote, reconcile
from flows.reconciler import watch_in_background
from flows.report import report
from flows.retention import retention
from flows.retrain import retrain
from flows.rollback import rollback
from flows.support import market_runs, processes
from flows.support.installation import now, open_installation
from flows.support.schedules import RegisterOnceDeployment, drift_trigger, plan
from flows.support.work_pool import POOL, make_pool
from flows.train import train
from flows.verify import verify
from pipelines.bootstrap import step_back
from pipelines.permissions import restrict
from pipelines.settings import Settings, load_params, settings

# flow, what it is for
DEPLOYMENTS: list[tuple[Flow[..., Any], str]] = [
    (ingest, "Market data into a checked, versioned snapshot"),
    (train, "Fit and register candidates from the newest snapshot"),
    (evaluate, "Put a registered version through the gate"),
    (promote, "Make a version champion; `manual` waits for a person, and holds no process while it does"),
    (reconcile, "Compare aliases with the ledger; the reconciler does so every two seconds"),
    (monitor, "Resolve outcomes, watch drift and loss, report"),
    (retrain, "A new challenger; started by drift, loss, age, the schedule, or a person"),
    (report, "What happened on a market day, as a page"),
    (retention, "Data versions, records and reports that nothing names any more"),
    (portfolio, "Allocate among the symbols of the universe"),
    (rollback, "The previous champion back, in one step"),
    (verify, "The ledger against its chain; anchors what is intact"),
    (lifecycle, "One whole turn of the loop"),
]
# what a worker of the pool runs, where there is one: it needs no file of the home. The others write what is served,
# read files that a person named, or make pages, so the home serves them itself
ON_THE_POOL = (train, evaluate, retrain)


def deployments(where: Settings) -> list[RegisterOnceDeployment]:
    """Return every deployment of the table with its planned schedules, parameters and triggers."""
    planned = plan(load_params(where.params_file))
    return [
        RegisterOnceDeployment.from_flow(
            flow,
            name=flow.name,
            schedules=list(planned[flow.name].schedules),
            parameters=planned[flow.name].parameters,
            triggers=[drift_trigger()] if planned[flow.name].on_drift else [],
            description=description,
            concurrency_limit=1,
            tags=["bellwether"],
            **(ON_A_WORKER if where.runs_workers and flow in ON_THE_POOL else {}),
        )
        for flow, description in DEPLOYMENTS
    ]


# a worker imports the flow from the package that is installed where it runs
ON_A_WORKER: dict[str, Any] = {"work_pool_name": POOL, "entrypoint_type": EntrypointType.MODULE_PATH}


async def register_on_the_pool(found: list[RegisterOnceDeployment]) -> None:
    """Register the deployments that workers run, and their pool, where they are not on the server yet."""
    async with get_client() as client:
        await make_pool(client)
    for deployment in found:
        await deployment.aapply()


if __name__ == "__main__":
    restrict()
    # Prefect makes a client for each step of registering, and each would read 140 certificates; our server has none
    vars(ssl)["create_default_context"] = cache(ssl.create_default_context)
    processes.await_healthy(settings(), ["prefect"])  # registering needs the server
    market_runs.tidy_before_serving(open_installation(), now())
    every = deployments(settings())
    here = [one for one in every if one.work_pool_name is None]
    if len(here) < len(every):
        asyncio.run(register_on_the_pool([one for one in every if one.work_pool_name is not None]))
    # schedules stay as a person left them: stopping this process does not pause them
    with watch_in_background():
        step_back(settings().job_niceness)  # for every run, which this thread starts; the watchers go on as before
        serve(*here, limit=8, print_starting_message=False, pause_on_shutdown=False)
