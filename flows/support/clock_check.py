"""The clock of a worker against that of the database: leases are judged by both, so they have to agree."""

import socket

from flows.support.installation import Installation, now
from pipelines.errors import StateError

CLOCK_OFF = "clock_off"  # kind of the alarm
MAX_OFF_S = 5.0  # leases are of minutes


def require_clock(installation: Installation) -> None:
    """Raise StateError, and an alarm, if this machine's clock is more than MAX_OFF_S from the database's.

    The alarm is cleared by the next run here that finds the clock right.
    """
    before = now()
    stored = installation.store.database_time()
    after = now()
    # the database answered between the two: only what lies outside of them is the clock's
    off = (before - stored).total_seconds() if before > stored else min(0.0, (after - stored).total_seconds())
    who = f"{socket.gethostname()} ({installation.settings.worker or 'home'})"
    known = [one for one in installation.store.alarms() if one.kind == CLOCK_OFF and one.detail.startswith(f"{who}: ")]
    if abs(off) <= MAX_OFF_S:
        for alarm in known:
            installation.store.clear_alarm(alarm.id, stored)
        return
    ahead = "ahead of" if off > 0 else "behind"
    detail = f"{who}: its clock is {abs(off):,.0f} s {ahead} the database's; no run starts there until it is set right"
    if known:
        installation.store.revise_alarm(known[0].id, detail)
    else:
        installation.store.raise_alarm(CLOCK_OFF, "high", detail, stored)
    raise StateError(f"{detail}. `chronyc makestep` or `timedatectl set-ntp true` does it")
