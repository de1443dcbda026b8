"""The service-level figure: the share of (symbol, close) with a durable decision within LIMIT_S, per day and 30 days.

A close is due when the bar that completes it first reaches the service, by its own clock, also in a call that is
refused because nothing can be stored. On a `wall` clock it is due one base bar after the close at the latest: a venue
has so long to deliver. It is

met     the decision was durable LIMIT_S after that, or sooner
late    it was durable later
missed  the next close came first; or it came behind a newer one in the same call, so that none could be made; or no
        service ran when it fell: on a `wall` clock, where markets go on, and after a crash that left it undecided

A symbol counts from the close after its first decision. On a `market` clock the market stands while no service runs, so
that none falls then. The counts live in one file that survives restarts; a crash may lose the last quarter of a second.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.contracts import JsonObject, utc
from serving.inference.generation import write_atomically

SERVICE_LEVEL_FILE = "service_level.json"
LIMIT_S = 2.0  # s of wall time from when a close is due until its decision is durable
TARGET = 0.999  # share of closes that is wanted; the rest is the budget
WINDOWS = {"day": 1, "30d": 30}  # name → days (UTC), today with them
Result = Literal["met", "late", "missed"]
RESULTS: tuple[Result, ...] = get_args(Result)


@dataclass(frozen=True, slots=True)
class Level:
    """Hold how many closes were met, late and missed."""

    met: int = 0
    late: int = 0
    missed: int = 0

    @property
    def due(self) -> int:
        """Return how many closes were due."""
        return self.met + self.late + self.missed

    @property
    def share(self) -> float | None:
        """Return the share that was met; None where none was due."""
        return self.met / self.due if self.due else None

    @property
    def budget_used(self) -> float | None:
        """Return how much of the budget is used, above 1 where more than it; None where none was due."""
        return (self.late + self.missed) / ((1.0 - TARGET) * self.due) if self.due else None

    def to_dict(self) -> JsonObject:
        """Return the counts and their shares as plain JSON."""
        counts = {name: getattr(self, name) for name in ("due", *RESULTS)}
        return counts | {"share": self.share, "budget_used": self.budget_used}


def level_over(days: Mapping[str, Mapping[str, int]], now: datetime, n: int) -> Level:
    """Return the sum of the newest `n` days (UTC), the day of `now` with them."""
    names = [f"{now - timedelta(days=back):%F}" for back in range(n)]
    return Level(**{result: sum(days.get(name, {}).get(result, 0) for name in names) for result in RESULTS})


def report(days: Mapping[str, Mapping[str, int]], now: datetime) -> JsonObject:
    """Return what `status` shows: limit, target and the windows."""
    windows = {name: level_over(days, now, n).to_dict() for name, n in WINDOWS.items()}
    return {"limit_s": LIMIT_S, "target": TARGET, "windows": windows}


def stored_report(serving_dir: Path, now: datetime) -> JsonObject:
    """Return the same from the file, of any process; without a file, or with a damaged one, nothing was due."""
    return report(_read(serving_dir / SERVICE_LEVEL_FILE)["days"], now)


def _read(file: Path) -> Any:
    """Return the content of the file; that of a first start where it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
        days = {str(day): {r: int(counts[r]) for r in RESULTS} for day, counts in content["days"].items()}
        newest = {str(name): float(close) for name, close in content["newest"].items()}
        waiting = {str(name): (float(close), float(due)) for name, (close, due) in content["waiting"].items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
        return {"days": {}, "newest": {}, "waiting": {}}
    return {"days": days, "newest": newest, "waiting": waiting}


class ServiceLevel:
    """Count what became of each close. One event loop owns it; all times are epoch seconds of wall time, but closes."""

    def __init__(self, file: Path, counted: Callable[[Result, int], object]) -> None:
        """Go on from the file; `counted` receives every count too."""
        content = _read(file)
        self._file, self._counted = file, counted
        self._days: dict[str, dict[str, int]] = content["days"]
        self._newest: dict[str, float] = content["newest"]  # symbol → close that was due last
        self._waiting: dict[str, tuple[float, float]] = content["waiting"]  # symbol → (close, when it was due)
        self._offered: dict[str, tuple[float, float]] = {}  # symbol → (open of the newest bar sent, when first)
        self.unsaved = False

    def offered(self, symbol: str, opened: float, at: float) -> None:
        """Note that a call carries this symbol's bars up to the one that opens then, whatever becomes of the call."""
        if self._offered.get(symbol, (None,))[0] != opened:
            self._offered[symbol] = opened, at

    def closed(self, symbol: str, closes: Sequence[float], at: float, latest: float = inf) -> None:
        """Take the closes that a call brought, oldest first: the newest waits for its decision.

        latest  when it is due even if its bars come later
        """
        _, came = self._offered.pop(symbol, (0.0, at))
        self._take(symbol, closes, at, min(came, latest))

    def fell(self, symbol: str, closes: Sequence[float], at: float) -> None:
        """Count the closes that fell, or were left undecided, while no service ran; none that was counted before."""
        if self._take(symbol, closes, at, at):
            del self._waiting[symbol]
            self._add("missed", 1, at)

    def _take(self, symbol: str, closes: Sequence[float], at: float, due: float) -> bool:
        """Let the newest close wait and count those before it as missed; return whether one is new."""
        newest = self._newest.get(symbol)
        fresh = [] if newest is None else [close for close in closes if close > newest]
        if not fresh:
            return False
        self._add("missed", len(fresh) - 1 + (symbol in self._waiting), at)
        self._newest[symbol] = fresh[-1]
        self._waiting[symbol] = fresh[-1], due
        self.unsaved = True
        return True

    def decided(self, closes: Iterable[tuple[str, float]], at: float) -> list[float]:
        """Take decisions on (symbol, close) that became durable at `at`; return the seconds since each close was due.

        Without those of closes that do not wait for one: decided before, or the symbol counts from the next one on.
        """
        waited = [s for symbol, close in closes if (s := self._waited(symbol, close, at)) is not None]
        late = sum(s > LIMIT_S for s in waited)
        self._add("met", len(waited) - late, at)
        self._add("late", late, at)
        return waited

    def _waited(self, symbol: str, close: float, at: float) -> float | None:
        """Return the seconds since a close was due; None for one that does not wait."""
        if symbol not in self._newest:
            self._newest[symbol] = close
            self.unsaved = True
        if self._waiting.get(symbol, (None,))[0] != close:
            return None
        _, due = self._waiting.pop(symbol)
        return max(at - due, 0.0)

    def _add(self, result: Result, n: int, at: float) -> None:
        """Add to the counts of the day; days out of every window go."""
        if not n:
            return
        day = f"{utc(at):%F}"
        if day not in self._days:
            oldest = f"{utc(at) - timedelta(days=max(WINDOWS.values())):%F}"
            kept = {name: counts for name, counts in self._days.items() if name > oldest}
            self._days = kept | {day: dict.fromkeys(RESULTS, 0)}
        self._days[day][result] += n
        self._counted(result, n)
        self.unsaved = True

    def report(self, now: datetime) -> JsonObject:
        """Return what `status` shows."""
        return report(self._days, now)

    def over(self, window: str, now: datetime) -> Level:
        """Return the level of one of WINDOWS."""
        return level_over(self._days, now, WINDOWS[window])

    def save(self) -> None:
        """Write the file, durable on return. Raises OSError where it cannot be written."""
        self.unsaved = False
        content = {
            "days": {day: dict(counts) for day, counts in list(self._days.items())},
            "newest": dict(self._newest),
            "waiting": dict(self._waiting),
        }
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, content)
        except OSError:
            self.unsaved = True
            raise
