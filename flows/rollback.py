"""Rollback: the previous champion back in its slot, in one step."""

from prefect import flow

from flows.support import promotion
from flows.support.installation import open_installation
from flows.support.progress import report_progress
from flows.support.run_names import run_name
from pipelines.families import Family


@flow(name="rollback", flow_run_name=run_name("rollback {family}"), log_prints=True)
def rollback(family: Family, actor: str = "operator", reason: str = "requested") -> str:
    """Load the previous champion, smoke-test it and move the pointer. Return the version that is champion now.

    Args:
        family: The model family whose champion goes back.
        actor: Who rolls back, for the ledger.
        reason: Why, for the ledger.
    """
    line = promotion.rollback(open_installation(), family, actor, reason)
    report_progress(f"{family}: back to version {line.to_version} from {line.from_version}")
    return str(line.to_version)
