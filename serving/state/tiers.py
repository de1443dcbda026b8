"""Choose the tier of each symbol in a pure state machine, and keep its state in a file (V3).

    1  full AI            the validator, regime and one of the pattern and predictor champions predict
    2  simple AI          the validator champion predicts
    3  traditional only   it does not, or the model service is out and nobody answers for it; the consensus decides
    4  emergency          data too old, store not writable, tripped by a person, or no decider left: nothing opens

The *installed* models set the best tier at once, up or down: a promotion rests on its own evidence. A *fault* lowers
the tier at once and sets a floor; each `good_bars` decision bars in a row without such a fault raise it by one tier.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.families import DECISION_FAMILY
from pipelines.params import TierParams
from pipelines.renamed_keys import current_names
from serving.inference.generation import write_atomically

REGIME, SUPPORTING = "regime", ("pattern", "predictor")
FULL, SIMPLE, TRADITIONAL, EMERGENCY = 1, 2, 3, 4
NAMES = {FULL: "full AI", SIMPLE: "simple AI", TRADITIONAL: "traditional only", EMERGENCY: "emergency"}
ARRIVAL_S = 60.0  # how far the saved time of an arrival may lag behind
EMERGENCY_BREAKER = "emergency"  # puts every symbol into tier 4 until a person resets it


@dataclass(frozen=True, slots=True)
class Tier:
    """Hold the tier of one decision; `reason` starts with TIER_<number>."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class TierInputs:
    """Hold the facts of one symbol at one decision or one poll.

    bar        close of the decision bar decided on, epoch s; None at a poll, which lowers a tier and never raises one
    champions  family → digest of the champion that serves and fits this market
    absent     family → why no champion predicts, of the families without one
    failed     family → fault of its champion, of those called now
    answered   families whose champion was called now and answered; a reasoned abstention is an answer
    service    why nobody answers for a model service that is out; None = there are answers
    emergency  why nothing may be opened; None = no such reason
    fallback   whether the traditional consensus has a measured hit rate, so that it can decide
    """

    bar: float | None
    champions: Mapping[str, str]
    absent: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    answered: Collection[str] = ()
    service: str | None = None
    emergency: str | None = None
    fallback: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """Hold the tier of one symbol and what it depends on.

    tier_floor         the best tier allowed for now after a fault; 1 = no floor
    tier_floor_reason  the fault; empty without a floor
    good_bars          bars in a row without a fault so far
    bar                close of the bar counted last, epoch s; a bar counts once, however often it is decided on
    faults             champion's digest → its faults in a row
    """

    tier: int
    reason: str
    tier_floor: int = FULL
    tier_floor_reason: str = ""
    good_bars: int = 0
    bar: float = 0.0
    faults: Mapping[str, int] = field(default_factory=dict)

    def current_tier(self) -> Tier:
        """Return the tier with its reason."""
        return Tier(self.tier, f"TIER_{self.tier}: {self.reason}")


# Of a state file that cannot be read: nothing is known of earlier faults, so the symbol starts in tier 4 (L7).
UNKNOWN = State(EMERGENCY, "its own state could not be read", EMERGENCY, "its own state could not be read")


def best_tier(seen: TierInputs, failing: Collection[str] = ()) -> tuple[int, str]:
    """Return the tier that the champions allow, the failing ones left out, and its reason."""
    available = {family for family in seen.champions if family not in failing}
    why = {**seen.absent, **{family: f"{family} champion keeps failing" for family in failing}}
    if DECISION_FAMILY not in available:
        missing = why.get(DECISION_FAMILY, f"no {DECISION_FAMILY} champion serves")
        if seen.fallback:
            return TRADITIONAL, f"{missing}; the traditional consensus decides"
        return EMERGENCY, f"{missing}, and the traditional consensus has no track record; nobody decides"
    supporting = [family for family in SUPPORTING if family in available]
    if REGIME in available and supporting:
        return FULL, f"{DECISION_FAMILY} champion decides; {', '.join((REGIME, *supporting))} answer"
    reasons = [why.get(f, f"no {f} champion serves") for f in (REGIME, *SUPPORTING) if f not in available]
    return SIMPLE, f"{DECISION_FAMILY} champion decides; {'; '.join(reasons)}"


def step(before: State | None, seen: TierInputs, rules: TierParams) -> State:
    """Return the state after one decision or poll; `before` None = a new symbol. Pure.

    The tier is never better than the installed models or the current faults allow; it rises one tier at a time.
    """
    best, best_reason = best_tier(seen)
    faults = _counted(before.faults if before else {}, seen)
    failing = [family for family, digest in seen.champions.items() if faults.get(digest, 0) >= rules.faults_in_row]
    level, why = _fault(seen, failing, best)
    floor, floor_reason, good_bars, bar = (
        (before.tier_floor, before.tier_floor_reason, before.good_bars, before.bar) if before else (FULL, "", 0, 0.0)
    )
    if level > FULL and level >= floor:
        floor, floor_reason, good_bars, bar = level, why, 0, seen.bar if seen.bar is not None else bar
    elif floor > FULL and seen.bar is not None and seen.bar > bar:
        good_bars, bar = good_bars + 1, seen.bar
        if good_bars >= rules.good_bars:
            floor, good_bars = floor - 1, 0
    if floor <= best and level == FULL:
        floor = FULL
    if floor == FULL:
        floor_reason, good_bars, bar = "", 0, 0.0
    if floor <= best:
        return State(best, best_reason, floor, floor_reason, good_bars, bar, faults)
    back = f"; back to tier {floor - 1} after {rules.good_bars - good_bars} good bar(s)"
    return State(floor, floor_reason + back, floor, floor_reason, good_bars, bar, faults)


def worst(states: Iterable[State]) -> State | None:
    """Return the worst state, which an operator should see first; None = no symbol yet."""
    return max(states, key=lambda state: (state.tier, state.tier_floor), default=None)


def _counted(before: Mapping[str, int], seen: TierInputs) -> dict[str, int]:
    """Return the faults in a row of the current champions: +1 for a fault, 0 for an answer, else unchanged."""
    counts = {}
    for family, digest in seen.champions.items():
        count = before.get(digest, 0)
        count = count + 1 if family in seen.failed else 0 if family in seen.answered else count
        if count:
            counts[digest] = count
    return counts


def _fault(seen: TierInputs, failing: Collection[str], best: int) -> tuple[int, str]:
    """Return the tier that the current faults allow and its reason; FULL = no fault that matters."""
    if seen.emergency is not None:
        return EMERGENCY, seen.emergency
    if seen.service is not None and best < TRADITIONAL:
        if seen.fallback:
            return TRADITIONAL, f"{seen.service}; the traditional consensus decides"
        return EMERGENCY, f"{seen.service}, and the traditional consensus has no track record; nobody decides"
    if not failing:
        return FULL, ""
    level, why = best_tier(seen, failing)
    return (level, why) if level > best else (FULL, "")


class Freshness:
    """Record which symbols were fed live and when their newest bar arrived, in one file that survives restarts.

    On a `wall` clock a symbol counts as fed live from the first poll at which its last close is within the limit; from
    then on older data are stale, after a restart too. Before that it is catching up, which is no fault. How old data
    are on a `market` clock is known by its feed: `serving.state.feed_state`.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Read the file if there is one; None keeps everything in memory."""
        self._file = file
        self._live: set[str] = set()
        self._arrived: dict[str, float] = {}  # epoch s, by our own clock
        self._saved: tuple[set[str], dict[str, float]] = set(), {}
        self._read()

    def record_arrival(self, symbol: str, at: float) -> None:
        """Record the arrival of a new bar of this symbol, epoch seconds."""
        self._arrived[symbol] = at

    def last_arrival(self, symbol: str) -> float | None:
        """Return when the newest bar arrived, epoch seconds; None if none did."""
        return self._arrived.get(symbol)

    def stale_reason(self, symbol: str, age_bars: float, limit_bars: float) -> str | None:
        """Return why the data of a symbol on a `wall` clock are stale; None while fresh, or if they never were."""
        if age_bars <= limit_bars:
            self._live.add(symbol)
            return None
        if symbol not in self._live:
            return None
        return f"data stale: last closed bar is {int(age_bars)} bars old, limit {limit_bars:g}"

    @property
    def unsaved(self) -> bool:
        """Return whether the file lacks something a restart needs; an arrival may lag by ARRIVAL_S."""
        live, arrived = self._saved
        return live != self._live or any(at - arrived.get(name, 0.0) >= ARRIVAL_S for name, at in self._arrived.items())

    def save(self) -> None:
        """Write the file, durable on return."""
        live, arrived = set(self._live), dict(self._arrived)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, {"live": sorted(live), "arrived": arrived})
        self._saved = live, arrived

    def _read(self) -> None:
        """Load the file; start empty where it is missing or unreadable."""
        if self._file is None:
            return
        try:
            record = json.loads(self._file.read_text())
            self._live = {str(name) for name in record["live"]}
            self._arrived = {str(name): float(at) for name, at in record["arrived"].items()}
        except FileNotFoundError:
            return
        except (ValueError, TypeError, AttributeError, KeyError):  # the first fresh symbol writes a new file
            self._live, self._arrived = set(), {}
        self._saved = set(self._live), dict(self._arrived)


class TierStore:
    """Hold the state of every symbol in one file, replaced by rename, which survives kill -9 and a store outage."""

    def __init__(self, file: Path, rules: TierParams) -> None:
        """Read the stored states, which start in tier 4 if they cannot be read."""
        self._file, self._rules = file, rules
        self._unreadable = False
        self._states = self._read()
        self._saved = dict(self._states)

    def __getitem__(self, symbol: str) -> State | None:
        """Return the state of a symbol; None for a new one, UNKNOWN where the file could not be read."""
        return self._states.get(symbol, UNKNOWN if self._unreadable else None)

    def update(self, symbol: str, seen: TierInputs) -> tuple[State | None, State]:
        """Return (state before, state now); call `save` before an answer that rests on it leaves."""
        before = self[symbol]
        self._states[symbol] = after = step(before, seen, self._rules)
        return before, after

    @property
    def unsaved(self) -> bool:
        """Return whether the file lacks a change."""
        return self._states != self._saved

    def save(self) -> None:
        """Write the file, durable on return."""
        states = dict(self._states)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, {name: asdict(state) for name, state in states.items()})
        self._saved = states

    def _read(self) -> dict[str, State]:
        """Return the stored states; none where the file is missing or unreadable."""
        try:
            return {name: _state(record) for name, record in json.loads(self._file.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError, KeyError):
            self._unreadable = True  # every symbol starts from UNKNOWN; the first change writes a new file
            return {}


def _state(record: Mapping[str, Any]) -> State:
    """Return a stored state, also of an earlier release; raise ValueError or TypeError for anything else."""
    state = State(**current_names("tier state", record))
    if state.tier not in NAMES or state.tier_floor not in NAMES or not isinstance(state.good_bars, int):
        raise ValueError(f"tier {state.tier!r}, floor {state.tier_floor!r}, good bars {state.good_bars!r}")
    return replace(state, faults={str(digest): int(count) for digest, count in dict(state.faults).items()})
