"""Circuit breakers as a person sees them: which are latched and why, tripped and reset by a name for a reason."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pipelines.errors import BadValues, UnknownName
from pipelines.store import Store
from serving.risk.breakers import BREAKER_NAMES

ALARM = "breaker_tripped"


def breakers(store: Store) -> list[dict[str, Any]]:
    """Every breaker there is, latched or not, and any other name that is latched."""
    latched = {latch.name: latch for latch in store.breaker_trips()}
    return [
        {
            "name": name,
            "latched": name in latched,
            "since": latched[name].tripped_at.isoformat() if name in latched else None,
            "reason": latched[name].reason if name in latched else None,
        }
        for name in dict.fromkeys((*BREAKER_NAMES, *latched))
    ]


def history(store: Store) -> list[dict[str, Any]]:
    """Every latch there ever was, oldest first: why it tripped, who reset it and why."""
    times = ("tripped_at", "reset_at", "reset_as_of")
    return [
        asdict(latch) | {name: moment and moment.isoformat() for name in times for moment in [getattr(latch, name)]}
        for latch in store.breaker_trips(tripped_only=False)
    ]


def trip(store: Store, name: str, at: datetime, by: str, reason: str) -> bool:
    """Latch by hand; False if it is latched already. Raises UnknownName, and BadValues without a reason."""
    refuse_unknown(name, BREAKER_NAMES)
    if not reason.strip():
        raise BadValues(f"breaker {name} is latched for a reason: give --reason")
    return store.trip(name, at, f"{by}: {reason}")


def reset(store: Store, name: str, at: datetime, by: str, reason: str) -> None:
    """Reset by hand, and clear its alarm.

    Raises  UnknownName if it is not latched, BadValues without a name and a reason
    """
    refuse_unknown(name, tuple(found["name"] for found in breakers(store)))
    if not reason.strip():
        raise BadValues(f"breaker {name} is reset for a reason: give --reason")
    store.reset(name, at, by, reason)
    for alarm in store.alarms():
        if alarm.kind == ALARM and alarm.detail.startswith(f"{name}: "):
            store.clear_alarm(alarm.id, at)


def refuse_unknown(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnknownName(f"no breaker {name!r}; known: {', '.join(known)}")
