"""The time of this machine: now, a clock that cannot be set, and whether now can be trusted."""

import logging
import time
from datetime import UTC, datetime

from pipelines.clock import ClockWatch
from pipelines.contracts import OPEN_TIME, Floats
from pipelines.errors import ClockJumped
from serving.service.alarm_queue import AlarmQueue
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.decision")
SUBJECT = "clock: "  # first words of every alarm about the clock


def utc_now() -> datetime:
    """Return the time of day, UTC. The service reads it here and nowhere else."""
    return datetime.now(UTC)


def steady_s() -> float:
    """Return seconds on the clock that cannot be set; it counts through sleep where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ClockMonitor:
    """Compare the time of day with the steady clock, and raise an alarm when the time of day was set."""

    def __init__(self, alarms: AlarmQueue) -> None:
        """Start from the two clocks as they stand now."""
        self._watch = ClockWatch(steady_s(), time.time())
        self._alarms = alarms
        self.fault: str | None = None  # why the clock cannot be trusted, at the last check

    def check(self, now: datetime) -> str | None:
        """Return why the clock cannot be trusted now, None if it can; an alarm begins and ends with the fault."""
        fault = self._watch.check(steady_s(), now.timestamp())
        if fault is not None and fault != self.fault:
            log.error("%s", fault)
            self._alarms.raise_alarm("clock_jumped", "critical", f"{SUBJECT}{fault}", SUBJECT)
        elif fault is None and self.fault is not None:
            log.warning("the clock is trusted again")
            self._alarms.close_alarm("clock_jumped", f"{SUBJECT}it is trusted again", SUBJECT)
        self.fault = fault
        return fault

    def check_bars(self, symbol: Symbol, rows: Floats, now: datetime) -> None:
        """Raise ClockJumped while bars (n, 9) cannot be dated; on a `wall` clock they are evidence of the true time."""
        if (fault := self.check(now)) is not None:
            if symbol.clock.mode == "wall" and len(rows):
                self._watch.observe_bar(symbol.base_grid.next_close(float(rows[-1, OPEN_TIME])), steady_s())
            raise ClockJumped(fault)
