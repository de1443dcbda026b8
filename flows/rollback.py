"""Rollback: the previous champion back in its slot, in one step."""

from prefect import flow

from flows.support import promotion
from flows.support.installation import open_installation
from flows.support.progress import report_progress


@flow(name="rollback", log_prints=True)
def rollback(family: str, actor: str = "operator", reason: str = "requested") -> str:
    """Load the previous champion, smoke-test it and move the pointer. Return the version that is champion now."""
    line = promotion.rollback(open_installation(), family, actor, reason)
    report_progress(f"{family}: back to version {line.to_version} from {line.from_version}")
    return str(line.to_version)
