"""What time it is for a market, and whether this machine's clock can be trusted. Pure: every time is an argument.

A data version names the clock its market runs by, set at ingest and never by a caller:

    market  a simulated or recorded market: now is its own position, the close of the newest base bar observed, and
            what has passed since that bar arrived, at the speed of its feed. Where no feed ran it moves with bars alone
    wall    a market that trades now: now is the time of day, and data are as old as their newest close
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

Mode = Literal["market", "wall"]
MODES: tuple[Mode, ...] = ("market", "wall")
RECORDED = ("simulator", "files")  # sources whose time is past or simulated
JUMP_S = 5.0  # a clock that is set moves by more; one that is slewed, or a busy machine, never shows as much
STEADY_S = 120.0  # a clock that was set and runs evenly for so long was set on purpose
SLEW = 1e-3  # s a s: the fastest that a clock is corrected without a jump


def mode_of_source(source: str | None) -> Mode:
    """Return the clock of a source's data; `wall`, the safe one, for an unknown source."""
    return "market" if source in RECORDED else "wall"


def mode_of(manifest: Mapping[str, Any]) -> Mode:
    """Return the clock a data manifest names; for a manifest from before release 0.6.0, the clock of its source."""
    for mode in MODES:
        if manifest.get("clock") == mode:
            return mode
    origin = manifest.get("source")
    return mode_of_source(origin.get("source") if isinstance(origin, Mapping) else None)


@dataclass(frozen=True, slots=True)
class Clock:
    """Tell the time of one market. `why` says where its mode comes from, if not from the data version itself."""

    mode: Mode
    why: str = ""

    def now(self, position: datetime, wall: datetime, passed_s: float = 0.0) -> datetime:
        """Return the present time of the market.

        position  close of the newest base bar observed; it may be slightly ahead of our own clock
        wall      time of day, aware UTC
        passed_s  market seconds since that bar arrived; a `market` clock alone reads them
        """
        return position + timedelta(seconds=passed_s) if self.mode == "market" else max(position, wall)


def data_age_s(age_at_arrival_s: float, since_arrival_s: float, speed: float) -> float:
    """Return how old data are, in seconds of their market.

    age_at_arrival_s  market seconds from what they are of to their arrival
    since_arrival_s   seconds of wall time since they arrived
    speed             market seconds a second of wall time: 1 for a market that trades now
    Times that lie ahead of our clock count as 0.
    """
    return max(age_at_arrival_s, 0.0) + max(since_arrival_s, 0.0) * speed


class ClockWatch:
    """Detect that the wall clock was set: it moved against the monotonic clock, which cannot be set.

    The trusted time follows slow corrections. After a jump it ignores the wall clock until that is back, or has
    run evenly for STEADY_S with no bar that contradicts it. All times in seconds.
    """

    def __init__(self, steady_s: float, wall_s: float) -> None:
        """Trust the wall clock as it is now."""
        self._offset, self._at = wall_s - steady_s, steady_s
        self._jump: tuple[float, float] | None = None  # (offset since the jump, steady time it is counted from)
        self._reason = ""

    def check(self, steady_s: float, wall_s: float) -> str | None:
        """Return why the wall clock cannot be trusted now; None if it can."""
        offset = wall_s - steady_s
        gap = offset - self._offset
        passed, self._at = max(0.0, steady_s - self._at), max(self._at, steady_s)
        if abs(gap) <= JUMP_S:
            self._offset += max(-SLEW * passed, min(SLEW * passed, gap))
            self._jump = None
            return None
        if self._jump is None or abs(offset - self._jump[0]) > JUMP_S:
            self._jump = offset, steady_s
            self._reason = (
                f"clock jumped by {gap:+,.0f} s: it says {_shown(wall_s)}, and by the time that has passed it is "
                f"{_shown(steady_s + self._offset)}. Fix the clock; one that runs evenly for {STEADY_S:.0f} s is "
                "believed again"
            )
        if steady_s - self._jump[1] >= STEADY_S:
            self._offset, self._jump = offset, None
            return None
        return self._reason

    def observe_bar(self, close_s: float, steady_s: float) -> None:
        """Restart the count of even time if a bar of a live market closes nearer to the trusted time than to the wall
        clock: then the wall clock is wrong."""
        if self._jump is not None:
            trusted, shown = steady_s + self._offset, steady_s + self._jump[0]
            if abs(close_s - trusted) < abs(close_s - shown):
                self._jump = self._jump[0], steady_s


def _shown(at_s: float) -> str:
    """Return epoch seconds as date and time in UTC."""
    return f"{datetime.fromtimestamp(at_s, UTC):%F %T} UTC"
