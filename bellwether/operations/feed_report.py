"""What the feed process writes of itself, in a thread of its own: it goes on while a call waits.

It writes every EVERY_S, and at once when market time begins or ends to stand.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from serving.state.feed_state import FeedState, read_feed_state, write_feed_state

EVERY_S = 0.9  # at least once a second; each write goes to the disk
LOOK_S = 0.1
BEAT_S = 5.0  # the loop that has not beaten for so long hangs: what it held is held no longer
RATE_S = 10.0  # bars a second are counted over so long
SERVICE, SOURCE = "the decision service", "its source"  # what a feed waits for


class FeedReport:
    """Hold the state of the feed and write it; one loop changes it, one thread writes.

    Market time of a paced feed stands while a reason is given (`hold`), and while a call lasts longer than a bar: a
    feed that waits sends nothing, so its market does not go on.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the serving folder; speed and position of a feed before this one hold until this one knows its own."""
        before = read_feed_state(folder)
        known = before is not None and before.fault is None
        self._folder, self._clock = folder, clock
        self.source = before.source if before is not None and known else "none"
        self.speed = before.speed if before is not None and known else 0.0  # 0: no feed ever ran here
        self.market_time = before.market_time if before is not None and known else None
        self.held: str | None = None
        self.stopped, self.paced = True, False
        self.lag_bars: float | None = None
        self.longest_call_s = float("inf")  # a call that lasts longer is waited for
        self._calling: tuple[float, str] | None = None  # since when, and what
        self._beaten = clock()
        self._bars: deque[tuple[float, int]] = deque()
        self._ended = threading.Event()

    # ---- what the loop says ---------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Note that the loop lives."""
        self._beaten = self._clock()

    def idle(self, why: str) -> None:
        """Say that no feed runs, and why."""
        self.stopped, self.held, self.lag_bars = True, why, None
        self._bars.clear()
        self.beat()

    def begin(self, source: str, speed: float, paced: bool, longest_call_s: float) -> None:
        """Say that a feed begins. Market time of a paced one stands until it has delivered its first close."""
        self.source, self.speed, self.paced, self.longest_call_s = source, speed, paced, longest_call_s
        self.stopped, self.held = False, "it begins" if paced else None
        self.beat()

    def hold(self, why: str) -> None:
        """Say that market time stands, until the next close is delivered; a market that trades now never stands."""
        self.held = why if self.paced else None
        self.beat()

    def delivered(self, close: float, bars: int) -> None:
        """Note that a close (epoch seconds) was taken, with so many base bars."""
        self.market_time, self.held = datetime.fromtimestamp(close, UTC), None
        self._bars.append((self._clock(), bars))
        self.beat()

    @contextmanager
    def calling(self, what: str = SERVICE) -> Iterator[None]:
        """Note that a call lasts as long as the block, which cannot beat meanwhile."""
        self._calling = self._clock(), what
        try:
            yield
        finally:
            self._calling = None
            self.beat()

    # ---- what is written ------------------------------------------------------------------------------------------

    def state(self) -> FeedState:
        """Return the state now."""
        held = self.held
        calling, now = self._calling, self._clock()
        if calling is not None:
            since, what = calling
            if held is None and self.paced and now - since > self.longest_call_s:
                held = f"it waits for {what}"
        elif now - self._beaten > BEAT_S and not self.stopped:
            held = None
        return FeedState(
            pid=os.getpid(), at=datetime.now(UTC), source=self.source, speed=self.speed, held=held,
            market_time=self.market_time, bars_s=None if self.stopped else self._bars_s(now),
            lag_bars=self.lag_bars, stopped=self.stopped,
        )  # fmt: skip

    def write(self, state: FeedState | None = None) -> None:
        """Write a state, None: that of now; a full disk is tried again."""
        with suppress(OSError):
            write_feed_state(self._folder, state or self.state())

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the state until the block ends, and once more as stopped."""
        self.write()
        thread = threading.Thread(target=self._run, name="feed state", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(timeout=5.0)
            self.idle("the feed process ended")
            self.write()

    def _run(self) -> None:
        """Write until the process ends."""
        written, due = None, 0.0
        while not self._ended.wait(LOOK_S):
            state = self.state()
            stands = state.held, state.stopped, state.speed, state.source
            if stands != written or time.monotonic() >= due:
                written, due = stands, time.monotonic() + EVERY_S
                self.write(state)

    def _bars_s(self, now: float) -> float:
        """Return the base bars a second over the last RATE_S."""
        samples = [sample for sample in list(self._bars) if now - sample[0] <= RATE_S]
        while self._bars and now - self._bars[0][0] > RATE_S:
            with suppress(IndexError):
                self._bars.popleft()
        return round(sum(n for _, n in samples) / RATE_S, 3)
