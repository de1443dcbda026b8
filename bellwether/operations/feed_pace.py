"""The pace of a feed whose market time is its own to set: so many market seconds a second of wall time."""

import time
from collections.abc import Callable


class Pace:
    """Say when a close is due, and how far the feed is behind.

    A closed market takes no time: from one close to the next at most one decision bar passes. Where the service is
    slower than the speed, the feed follows it: a schedule that is more than MOST_BEHIND bars ahead is not caught up.
    """

    MOST_BEHIND = 4.0  # decision bars

    def __init__(self, speed: float, step_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the speed in market seconds a second and the length of a decision bar in seconds."""
        self._speed, self._step_s, self._clock = speed, step_s, clock
        self._due: float | None = None  # when the last close was due, by the clock
        self._close = 0.0  # that close, epoch seconds

    @property
    def bar_s(self) -> float:
        """Return the wall seconds of a decision bar at this speed."""
        return self._step_s / self._speed

    def stand(self) -> None:
        """Forget the schedule: market time stood, and the next close is due when it is requested."""
        self._due = None

    def wait_s(self, close: float) -> float:
        """Return the wall seconds until this close (epoch seconds) is due; 0 where it is."""
        return 0.0 if self._due is None else max(0.0, self._due_at(close) - self._clock())

    def delivered(self, close: float) -> None:
        """Note that this close was delivered; the next one is due after it."""
        now = self._clock()
        due = now if self._due is None else self._due_at(close)
        self._due, self._close = max(due, now - self.MOST_BEHIND * self.bar_s), close

    def lag_bars(self) -> float:
        """Return by how many decision bars the last delivery was behind; 0 where it was in time."""
        return 0.0 if self._due is None else max(0.0, self._clock() - self._due - self.bar_s) / self.bar_s

    def _due_at(self, close: float) -> float:
        """Return when a close is due, by the clock; there is one before it."""
        assert self._due is not None
        return self._due + min(close - self._close, self._step_s) / self._speed
