"""Alarms of conditions that are looked at again and again: one alarm while a condition lasts, whatever its numbers."""

from collections.abc import Collection
from datetime import datetime

from pipelines.store import Alarm, Store


def open_alarms(store: Store, kind: str, subject: str) -> list[Alarm]:
    """Return the open alarms of this kind about this subject, oldest first.

    More than one: two watches ran at the same time, and each raised it with numbers of its own.
    """
    return [a for a in store.alarms() if a.kind == kind and a.detail.startswith(f"{subject}: ")]


def keep_alarm(store: Store, kind: str, severity: str, subject: str, detail: str, at: datetime) -> datetime:
    """Raise the alarm of a condition that holds, or bring the open one up to date; return when it was raised.

    Of several open ones the newest stays and the others are cleared: an old one that was left over must not make a
    condition that began since look as if a retrain had answered it.
    """
    text = f"{subject}: {detail}"
    known = open_alarms(store, kind, subject)
    if not known:
        store.raise_alarm(kind, severity, text, at)
        return at
    *older, newest = known
    for alarm in older:
        store.clear_alarm(alarm.id, at)
    if newest.detail != text:
        store.revise_alarm(newest.id, text)
    return newest.at


def end_others(store: Store, kind: str, subject: str, kept: Collection[str], at: datetime) -> None:
    """Clear the open alarms of this kind about `subject`, or about a market of it that is not among `kept`.

    kept  subjects `<subject> <market>`: such alarms stay
    """
    for alarm in store.alarms():
        mine = alarm.kind == kind and alarm.detail.startswith((f"{subject}: ", f"{subject} "))
        if mine and not alarm.detail.startswith(tuple(f"{each}: " for each in kept)):
            store.clear_alarm(alarm.id, at)


def end_alarm(store: Store, kind: str, subject: str, at: datetime) -> None:
    """Clear every open alarm of a condition that is over."""
    for alarm in open_alarms(store, kind, subject):
        store.clear_alarm(alarm.id, at)
