"""Alarms of conditions that are looked at again and again: one alarm while a condition lasts, whatever its numbers."""

from datetime import datetime

from pipelines.store import Alarm, Store


def open_alarm(store: Store, kind: str, subject: str) -> Alarm | None:
    """Return the open alarm of this kind about this subject, the oldest; None if there is none."""
    about = f"{subject}: "
    return next((a for a in store.alarms() if a.kind == kind and a.detail.startswith(about)), None)


def keep_alarm(store: Store, kind: str, severity: str, subject: str, detail: str, at: datetime) -> datetime:
    """Raise the alarm of a condition that holds, or bring the open one up to date; return when it was raised."""
    known, text = open_alarm(store, kind, subject), f"{subject}: {detail}"
    if known is None:
        store.raise_alarm(kind, severity, text, at)
        return at
    if known.detail != text:
        store.revise_alarm(known.id, text)
    return known.at


def end_alarm(store: Store, kind: str, subject: str, at: datetime) -> None:
    """Clear the alarm of a condition that is over, if one is open."""
    if (known := open_alarm(store, kind, subject)) is not None:
        store.clear_alarm(known.id, at)
