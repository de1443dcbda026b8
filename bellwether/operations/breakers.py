"""Circuit breakers for people: list them, trip and reset them, with a name and a reason."""

from dataclasses import asdict
from datetime import datetime
from typing import TypedDict

from pipelines.errors import BadValues, UnknownName
from pipelines.store import Store
from serving.risk.breakers import BREAKER_NAMES

ALARM = "breaker_tripped"


class BreakerState(TypedDict):
    """Report one breaker; `since` (ISO 8601, UTC) and `reason` are None unless it is tripped."""

    name: str
    tripped: bool
    since: str | None
    reason: str | None


def breakers(store: Store) -> list[BreakerState]:
    """Return every known breaker, and any other name that is tripped."""
    tripped = {trip.name: trip for trip in store.breaker_trips()}
    return [
        BreakerState(
            name=name,
            tripped=name in tripped,
            since=tripped[name].tripped_at.isoformat() if name in tripped else None,
            reason=tripped[name].reason if name in tripped else None,
        )
        for name in dict.fromkeys((*BREAKER_NAMES, *tripped))
    ]


def history(store: Store) -> list[dict[str, str | None]]:
    """Return every trip ever, oldest first: why it tripped, who reset it and why; moments in ISO 8601."""
    times = ("tripped_at", "reset_at", "reset_as_of")
    return [
        asdict(trip) | {name: moment and moment.isoformat() for name in times for moment in [getattr(trip, name)]}
        for trip in store.breaker_trips(tripped_only=False)
    ]


def trip(store: Store, name: str, at: datetime, by: str, reason: str) -> bool:
    """Trip a breaker by hand; return False if it is tripped already. Raises UnknownName; BadValues without a reason."""
    check_name(name, BREAKER_NAMES)
    if not reason.strip():
        raise BadValues(f"breaker {name}: a trip needs a reason. Add --reason TEXT")
    return store.trip(name, at, f"{by}: {reason}")


def reset(store: Store, name: str, at: datetime, by: str, reason: str) -> None:
    """Reset a breaker by hand, and clear its alarms.

    Raises  UnknownName if it is not tripped, BadValues without a name and a reason
    """
    check_name(name, tuple(found["name"] for found in breakers(store)))
    if not reason.strip():
        raise BadValues(f"breaker {name}: a reset needs a reason. Add --reason TEXT")
    store.reset(name, at, by, reason)
    for alarm in store.alarms():
        if (alarm.kind == ALARM and alarm.detail.startswith(f"{name}: ")) or alarm.kind == name:
            store.clear_alarm(alarm.id, at)


def check_name(name: str, known: tuple[str, ...]) -> None:
    """Raise UnknownName, with the known names, if there is no such breaker."""
    if name not in known:
        raise UnknownName(f"no breaker {name!r}; known: {', '.join(known)}")
