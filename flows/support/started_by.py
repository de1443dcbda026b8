"""Whether a flow run was started by a person or by itself: by a schedule, an automation, or the reconciler."""

from prefect import get_client
from prefect.runtime import flow_run

BY_ITSELF = "bellwether-by-itself"  # tag of the runs that the reconciler starts
_AUTOMATIC = ("SCHEDULE", "AUTOMATION")  # how the Prefect server names who created a run


def started_by_itself() -> bool:
    """Return whether the present flow run was started by no person; outside of a flow run: no.

    A run that is started on a page of Prefect or by a command is a person's.
    """
    if not flow_run.id:
        return False
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
    if run.auto_scheduled or BY_ITSELF in run.tags:
        return True
    return run.created_by is not None and run.created_by.type in _AUTOMATIC
