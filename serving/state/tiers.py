"""How much of the product may act now: the four tiers as a pure state machine, and the file that remembers it (V3).

    1  full AI            the validator, regime and one of pattern and predictor champions answer
    2  simple AI          the validator champion answers
    3  traditional only   it does not, or the model service is out; the consensus acts on its measured hit rate
    4  emergency          data too old, store not writable, latched by a person, or nobody left to act: nothing opens

What is *installed* sets the best tier at once, either way: a promotion rests on its own evidence. A *fault* lowers it
at once and holds it there; each `good_bars` decision bars in a row without a fault of that weight give one tier back.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipelines.params import TierParams
from serving.inference.generation import write_atomically

DECISION_FAMILY, REGIME, BESIDE = "validator", "regime", ("pattern", "predictor")
FULL, SIMPLE, TRADITIONAL, EMERGENCY = 1, 2, 3, 4
NAMES = {FULL: "full AI", SIMPLE: "simple AI", TRADITIONAL: "traditional only", EMERGENCY: "emergency"}
ARRIVAL_S = 60.0  # how far the kept moment of an arrival may lag behind
EMERGENCY_BREAKER = "emergency"  # the breaker that puts every symbol into tier 4 until a person resets it


@dataclass(frozen=True, slots=True)
class Tier:
    """What a decision is made under; `reason` starts with TIER_<number>."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class TierInputs:
    """One symbol as it is at one decision or one look.

    bar        close of the decision bar decided on, epoch s; None at a look: it lowers a tier, it never earns one back
    champions  family → champion that serves and may speak of this market: its digest
    absent     family → why no champion speaks, of the families without one
    failed     family → fault of its champion, of those that were asked now
    answered   families whose champion was asked now and answered; a reasoned abstention is an answer
    service    why the model service is out; None = it answers, or models answer in this process
    emergency  why nothing may be opened; None = nothing stands against it
    fallback   the traditional consensus has a measured hit rate, so that it can act
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
    """Where a symbol stands. `held`: no tier better than this for now (1 = no hold), `calm` good bars in a row so far.

    bar     close of the bar counted last, epoch s, while held: a bar counts once, however often it is decided on
    faults  champion's digest → its faults in a row
    """

    tier: int
    reason: str
    held: int = FULL
    held_reason: str = ""
    calm: int = 0
    bar: float = 0.0
    faults: Mapping[str, int] = field(default_factory=dict)

    def current_tier(self) -> Tier:
        return Tier(self.tier, f"TIER_{self.tier}: {self.reason}")


# A state file that cannot be read: nothing is known of what happened before, so trust is earned from the bottom (L7).
UNKNOWN = State(EMERGENCY, "its own state could not be read", EMERGENCY, "its own state could not be read")


def best_tier(seen: TierInputs, failing: Collection[str] = ()) -> tuple[int, str]:
    """(tier, why) that the champions allow, those that fail left out."""
    speak = {family for family in seen.champions if family not in failing}
    why = {**seen.absent, **{family: f"{family} champion keeps failing" for family in failing}}
    if DECISION_FAMILY not in speak:
        told = why.get(DECISION_FAMILY, f"no {DECISION_FAMILY} champion serves")
        if seen.fallback:
            return TRADITIONAL, f"{told}; the traditional consensus decides"
        return EMERGENCY, f"{told}, and the traditional consensus has no track record; nobody decides"
    beside = [family for family in BESIDE if family in speak]
    if REGIME in speak and beside:
        return FULL, f"{DECISION_FAMILY} champion decides; {', '.join((REGIME, *beside))} answer"
    missing = [why.get(f, f"no {f} champion serves") for f in (REGIME, *BESIDE) if f not in speak]
    return SIMPLE, f"{DECISION_FAMILY} champion decides; {'; '.join(missing)}"


def step(before: State | None, seen: TierInputs, rules: TierParams) -> State:
    """The state after one decision or look; `before` None = this symbol was never seen. Pure.

    The tier is never better than what is installed, nor than any fault seen now; it comes back one tier at a time.
    """
    best, best_reason = best_tier(seen)
    faults = _counted(before.faults if before else {}, seen)
    failing = [family for family, digest in seen.champions.items() if faults.get(digest, 0) >= rules.faults_in_row]
    level, why = _fault(seen, failing, best)
    held, held_reason, calm, bar = (
        (before.held, before.held_reason, before.calm, before.bar) if before else (FULL, "", 0, 0.0)
    )
    if level > FULL and level >= held:
        held, held_reason, calm, bar = level, why, 0, seen.bar if seen.bar is not None else bar
    elif held > FULL and seen.bar is not None and seen.bar > bar:
        calm, bar = calm + 1, seen.bar
        if calm >= rules.good_bars:
            held, calm = held - 1, 0
    if held <= best and level == FULL:
        held = FULL
    if held == FULL:
        held_reason, calm, bar = "", 0, 0.0
    if held <= best:
        return State(best, best_reason, held, held_reason, calm, bar, faults)
    back = f"; back to tier {held - 1} after {rules.good_bars - calm} good bar(s)"
    return State(held, held_reason + back, held, held_reason, calm, bar, faults)


def worst(states: Iterable[State]) -> State | None:
    """What an operator looks at first; None = no symbol yet."""
    return max(states, key=lambda state: (state.tier, state.held), default=None)


def _counted(before: Mapping[str, int], seen: TierInputs) -> dict[str, int]:
    """Faults in a row of the champions of now: one more for who failed, none for who answered, as before for others."""
    counts = {}
    for family, digest in seen.champions.items():
        count = before.get(digest, 0)
        count = count + 1 if family in seen.failed else 0 if family in seen.answered else count
        if count:
            counts[digest] = count
    return counts


def _fault(seen: TierInputs, failing: Collection[str], best: int) -> tuple[int, str]:
    """(tier a fault allows, why); FULL = no fault that matters here."""
    if seen.emergency is not None:
        return EMERGENCY, seen.emergency
    if seen.service is not None and best < TRADITIONAL:
        if seen.fallback:
            return TRADITIONAL, f"{seen.service}; the traditional consensus decides"
        return EMERGENCY, f"{seen.service}, and the traditional consensus has no track record; nobody decides"
    level, why = best_tier(seen, failing)
    return (level, why) if level > best else (FULL, "")


class Freshness:
    """Which symbols were fed live, and when their newest bar arrived, kept in one file over restarts.

    On a `wall` clock a symbol is fed live from the first look at which its last close is no older than the limit; from
    then on older data are stale, after a restart too. Before that it is catching up, which is no fault. On a `market`
    clock data are never old: how fast such a market is replayed nobody says, and a file that ended is no dead feed;
    when its newest bar arrived is shown, and judged by whoever knows how fast it should come.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._live: set[str] = set()
        self._arrived: dict[str, float] = {}  # epoch s, by our own clock
        self._saved: tuple[set[str], dict[str, float]] = set(), {}
        self._read()

    def record_arrival(self, symbol: str, at: float) -> None:
        """A new bar of this symbol arrived, epoch seconds."""
        self._arrived[symbol] = at

    def last_arrival(self, symbol: str) -> float | None:
        return self._arrived.get(symbol)

    def stale_reason(self, symbol: str, age_bars: float, limit_bars: float) -> str | None:
        """Why the data of a symbol on a `wall` clock are stale now; None if they are fresh, or never were."""
        if age_bars <= limit_bars:
            self._live.add(symbol)
            return None
        if symbol not in self._live:
            return None
        return f"data stale: last closed bar is {int(age_bars)} bars old, limit {limit_bars:g}"

    @property
    def unsaved(self) -> bool:
        """Whether a restart would have to know what the file does not say; an arrival may be ARRIVAL_S behind."""
        live, arrived = self._saved
        return live != self._live or any(at - arrived.get(name, 0.0) >= ARRIVAL_S for name, at in self._arrived.items())

    def save(self) -> None:
        """Durable on return."""
        live, arrived = set(self._live), dict(self._arrived)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, {"live": sorted(live), "arrived": arrived})
        self._saved = live, arrived

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            told = json.loads(self._file.read_text())
            self._live = {str(name) for name in told["live"]}
            self._arrived = {str(name): float(at) for name, at in told["arrived"].items()}
        except FileNotFoundError:
            return
        except (ValueError, TypeError, AttributeError, KeyError):  # it is written anew with the first symbol seen fresh
            self._live, self._arrived = set(), {}
        self._saved = set(self._live), dict(self._arrived)


class TierStore:
    """State by symbol in one file, replaced by rename, so that it survives kill -9 and a store that is down."""

    def __init__(self, file: Path, rules: TierParams) -> None:
        self._file, self._rules = file, rules
        self._unreadable = False
        self._states = self._read()
        self._saved = dict(self._states)

    def __getitem__(self, symbol: str) -> State | None:
        return self._states.get(symbol, UNKNOWN if self._unreadable else None)

    def update(self, symbol: str, seen: TierInputs) -> tuple[State | None, State]:
        """(state before, state now); call `save` before anything that rests on it leaves."""
        before = self[symbol]
        self._states[symbol] = after = step(before, seen, self._rules)
        return before, after

    @property
    def unsaved(self) -> bool:
        return self._states != self._saved

    def save(self) -> None:
        """Write what changed; durable on return."""
        states = dict(self._states)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, {name: asdict(state) for name, state in states.items()})
        self._saved = states

    def _read(self) -> dict[str, State]:
        try:
            return {name: _state(told) for name, told in json.loads(self._file.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError, KeyError):
            self._unreadable = True  # every symbol starts from UNKNOWN; the first change writes the file anew
            return {}


def _state(told: Mapping[str, object]) -> State:
    state = State(**told)  # type: ignore[arg-type]  # checked below
    if state.tier not in NAMES or state.held not in NAMES or not isinstance(state.calm, int):
        raise ValueError(f"tier {state.tier!r}, held {state.held!r}, calm {state.calm!r}")
    return replace(state, faults={str(digest): int(count) for digest, count in dict(state.faults).items()})
