"""Alarms on their way to the store: no request waits for the store, and a store that is down loses none."""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.store import Store
from serving.service import metrics


@dataclass(frozen=True, slots=True)
class QueuedAlarm:
    """Hold an alarm that is not in the store yet.

    subject   first words of `detail`; it replaces the open alarms of its kind whose detail starts with the same words
    is_over   the fault is gone: the alarm is recorded and cleared at once
    """

    kind: str
    severity: str
    detail: str
    subject: str
    is_over: bool = False


class AlarmQueue:
    """Hold alarms until `flush` writes them to the store, oldest first. Any thread may add one."""

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: deque[QueuedAlarm] = deque()
        self._lock = threading.Lock()

    def raise_alarm(self, kind: str, severity: str, detail: str, subject: str | None = None) -> None:
        """Queue an alarm. `subject` None: the whole detail, so that only the same alarm is replaced."""
        self._add(QueuedAlarm(kind, severity, detail, detail if subject is None else subject))

    def close_alarm(self, kind: str, detail: str, subject: str) -> None:
        """Queue the end of a fault: its open alarms about `subject` are cleared, and `detail` is recorded."""
        self._add(QueuedAlarm(kind, "info", detail, subject, is_over=True))

    @property
    def waiting(self) -> int:
        """Return how many alarms are not in the store yet."""
        return len(self._waiting)

    def flush(self, store: Store) -> None:
        """Write what waits, oldest first. An alarm that the store refuses stays in the queue; the error is raised."""
        while self._waiting:
            _write(store, self._waiting[0])
            with self._lock:
                self._waiting.popleft()

    def _add(self, alarm: QueuedAlarm) -> None:
        """Append the alarm unless the same one waits already."""
        with self._lock:
            if alarm not in self._waiting:
                self._waiting.append(alarm)
                if not alarm.is_over:
                    metrics.count(metrics.ALARMS, alarm.kind, alarm.severity)


def _write(store: Store, alarm: QueuedAlarm) -> None:
    """Write one alarm, after clearing the open ones it replaces."""
    at = datetime.now(UTC)
    for open_alarm in store.alarms():
        is_same = open_alarm.detail == alarm.detail
        if open_alarm.kind == alarm.kind and open_alarm.detail.startswith(alarm.subject) and not is_same:
            store.clear_alarm(open_alarm.id, at)
    alarm_id = store.raise_alarm(alarm.kind, alarm.severity, alarm.detail, at)
    if alarm.is_over:
        store.clear_alarm(alarm_id, at)


def report_poll(alarms: AlarmQueue, service: str, fault: str | None) -> None:
    """Queue the alarm that a service's poll failed with `fault`, or its end where `fault` is None."""
    subject = f"{service}: "
    if fault is None:
        alarms.close_alarm("poll_failed", f"{subject}polls succeed again", subject)
    else:
        alarms.raise_alarm("poll_failed", "high", f"{subject}{fault}", subject)
