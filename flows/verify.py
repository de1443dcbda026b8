"""Verify: the ledger against its chain, every day; what is verified is anchored."""

from prefect import flow

from flows.support import ledger_chain
from flows.support.installation import open_installation
from flows.support.progress import report_progress
from flows.support.promotion import promotion_lease
from flows.support.run_names import run_name


@flow(name="verify", flow_run_name=run_name("verify"), log_prints=True)
def verify(everything: bool = False) -> int:
    """Verify the chain from the newest anchor on, or from its first line, and anchor it. Return the number of faults.

    Faults raise the alarm `chain_broken` and stop promotions, not serving.

    Args:
        everything: Verify from the first line on, not from the newest anchor.
    """
    installation = open_installation()
    with promotion_lease(installation):  # no champion moves meanwhile
        found = ledger_chain.verify(installation, everything)
        if found.faults:
            report_progress(f"the ledger is not as it was written: {ledger_chain.describe(found)}")
        else:
            made = ledger_chain.anchor(installation)
            counted = f"{found.lines:,} lines, {found.rows:,} rows, {found.decisions:,} decisions verified"
            report_progress(counted if made is None else f"{counted}, anchored at line {made.seq}")
    return len(found.faults)
