"""What the feed says of itself in a file, and the market seconds that passed since each symbol's newest bar arrived.

The feed replaces the file at least once a second. On a `market` clock a second of wall time is `speed` seconds of the
market; while the feed holds market time, none pass. Without any feed ever, market time moves with observed bars alone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.clock import data_age_s
from serving.inference.generation import write_atomically

FEED_FILE = "feed.json"
ALIVE_S = 5.0  # s of wall time: a feed that has not written for so long is dead
LONGEST_STEP_S = (
    1.0  # s: a process that did not look for longer was busy itself; more than this is no silence of a feed
)


@dataclass(frozen=True, slots=True)
class FeedState:
    """Hold what the feed wrote last.

    at           when it wrote, wall time, aware UTC
    speed        market seconds a second of wall time, as it goes now; 1 for a market that trades now
    held         why market time stands; None while it moves
    market_time  newest close it sent, aware UTC; None before the first
    bars_s       base bars a second of wall time; None where not measured
    lag_bars     decision bars it is behind its own speed; None where not measured
    stopped      a person stopped it, or it ended by itself
    fault        why the file could not be read; None where it could. Then `speed` is NaN and the feed is not alive
    """

    pid: int
    at: datetime
    source: str
    speed: float
    held: str | None = None
    market_time: datetime | None = None
    bars_s: float | None = None
    lag_bars: float | None = None
    stopped: bool = False
    fault: str | None = None

    def is_alive(self, now: datetime) -> bool:
        """Return whether the feed wrote less than ALIVE_S ago and was not stopped."""
        return self.fault is None and not self.stopped and abs((now - self.at).total_seconds()) < ALIVE_S

    def stands(self, now: datetime) -> bool:
        """Return whether market time stands: the feed is alive and holds it."""
        return self.held is not None and self.is_alive(now)

    def condition(self, now: datetime) -> str:
        """Return how the feed is, in words."""
        if self.fault is not None:
            return self.fault
        if self.stopped:
            return f"no feed runs: {self.held}" if self.held else "no feed runs; `bellwether feed start` starts one"
        if not self.is_alive(now):
            return f"the feed wrote last at {self.at:%F %T} UTC, so it is dead; its log says why"
        return f"the feed holds market time: {self.held}" if self.held else f"the feed runs at speed {self.speed:g}"


def write_feed_state(serving_dir: Path, state: FeedState) -> None:
    """Replace the file with this state; a reader finds the one before or this one, whole.

    Raises ValueError or TypeError for a state whose fields are not valid, OSError where it cannot be written.
    """
    _checked(state)
    record = asdict(state)
    del record["fault"]
    record |= {"at": state.at.isoformat(), "market_time": state.market_time and state.market_time.isoformat()}
    serving_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(serving_dir / FEED_FILE, record)


def read_feed_state(serving_dir: Path) -> FeedState | None:
    """Return what the feed wrote last; None where no feed ever ran here.

    A file that cannot be read is a feed that is not alive: `fault` says why, nothing of it is believed.
    """
    file = serving_dir / FEED_FILE
    try:
        return _state(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{file} cannot be read ({type(error).__name__}: {error}); a feed that runs replaces it within a second"
        return FeedState(0, datetime.fromtimestamp(0.0, UTC), "unknown", math.nan, fault=why)


def _state(record: Mapping[str, Any]) -> FeedState:
    """Return a record of the file as a state; raise ValueError, TypeError or KeyError for anything else."""
    if set(record) != set(FeedState.__slots__) - {"fault"}:
        raise ValueError(f"its fields are {', '.join(sorted(record))}")
    times = {name: None if record[name] is None else datetime.fromisoformat(record[name]) for name in _TIMES}
    state = FeedState(**{**record, **times})
    _checked(state)
    return state


_TIMES = ("at", "market_time")


def _checked(state: FeedState) -> None:
    """Raise ValueError or TypeError for a state whose fields are not valid."""
    numbers = {"speed": state.speed, "bars_s": state.bars_s, "lag_bars": state.lag_bars}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value < 0.0):
            raise ValueError(f"{name} is {value!r}; it is a finite number that is not negative")
    for name, at in (("at", state.at), ("market_time", state.market_time)):
        if at is not None and at.tzinfo is None:
            raise ValueError(f"{name} {at} has no time zone")
    words = (state.source, state.held or "")
    if state.at is None or state.speed is None or not all(isinstance(word, str) for word in words):
        raise ValueError("at, speed and source must be given")
    if not isinstance(state.pid, int) or not isinstance(state.stopped, bool):
        raise TypeError(f"pid is {state.pid!r}, stopped {state.stopped!r}")


class FeedWatch:
    """Count the market seconds since the newest bar of each symbol arrived. One event loop owns it.

    `look` reads the file; between two looks the state of the last one holds. A step counts only where the feed did not
    hold market time at either end of it.
    """

    def __init__(self, serving_dir: Path | None, speed: float) -> None:
        """Start with nothing read. `speed` stands in for that of a file that cannot be read.

        `serving_dir` None: no feed, ever.
        """
        self._folder, self._speed = serving_dir, speed
        self.state: FeedState | None = None
        self._looked: datetime | None = None
        self._passed = 0.0  # market seconds since the first look
        self._arrived: dict[str, float] = {}  # symbol → `_passed` at the arrival of its newest bar
        self._started = 0.0  # `_passed` at which a symbol counts as fresh whose bars came before this process

    def look(self, now: datetime) -> None:
        """Read the file, and count what passed since the last look. `now` is wall time, aware UTC."""
        found = None if self._folder is None else read_feed_state(self._folder)
        if self._looked is None and found is not None and not found.is_alive(now) and found.fault is None:
            self._started = -data_age_s(0.0, (now - found.at).total_seconds(), found.speed)
        if found is None or not found.stands(now):
            self._passed += self._since_look(now)
        self.state, self._looked = found, now

    def record_arrival(self, symbol: str, now: datetime) -> None:
        """Note that a bar of this symbol arrived now."""
        self._arrived[symbol] = self._passed + self._since_look(now)

    def passed_s(self, symbol: str, now: datetime) -> float:
        """Return the market seconds since the symbol's newest bar arrived; 0 where no feed ever ran."""
        passed = self._passed + self._since_look(now) - self._arrived.get(symbol, self._started)
        return 0.0 if self.state is None else max(passed, 0.0)

    def _since_look(self, now: datetime) -> float:
        """Return the market seconds that passed since the last look."""
        if self._looked is None or self.state is None or self.state.stands(self._looked):
            return 0.0
        speed = self._speed if math.isnan(self.state.speed) else self.state.speed
        return data_age_s(0.0, min((now - self._looked).total_seconds(), LONGEST_STEP_S), speed)
