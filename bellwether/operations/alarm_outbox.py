"""Send alarms to the store from a thread of their own, so that a store that is down or locked delays no caller."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pipelines.settings import Settings

MAX_WAITING = 1000  # alarms that wait for a store that is down; beyond it the oldest are dropped
RETRY_S = 5.0


class AlarmOutbox:
    """Raise and clear alarms in the order they were queued, each until the store has taken it."""

    def __init__(self, settings: Settings, log: Callable[[str], None], retry_s: float = RETRY_S) -> None:
        """Start the thread; `log` receives a line for each fault of the store."""
        self._settings, self._log, self._retry_s = settings, log, retry_s
        self._waiting: deque[tuple[str, ...]] = deque(maxlen=MAX_WAITING)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
        self._thread.start()

    def raise_alarm(self, kind: str, severity: str, detail: str) -> None:
        """Queue an alarm, stamped now."""
        self._put(("raise", kind, severity, detail, datetime.now(UTC).isoformat()))

    def clear(self, about: str, *kinds: str) -> None:
        """Queue the clearing of every open alarm of these kinds whose detail begins with `about`."""
        file = self._settings.store.partition("sqlite:///")[2]
        if file and not Path(file).exists():
            return  # nothing was ever raised: no reason to create a store
        self._put(("clear", about, *kinds))

    def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds until all that is queued is stored."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _put(self, entry: tuple[str, ...]) -> None:
        """Queue an entry and wake the thread."""
        self._waiting.append(entry)
        self._wake.set()

    def _run(self) -> None:
        """Send what is queued until `close`; after a fault, try again every `retry_s` seconds."""
        logged = False  # one line a fault, not one an attempt
        while not (self._ended.is_set() and not self._waiting):
            if not self._waiting:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._send()
                logged = False
            except Exception as error:  # noqa: BLE001 - whatever a database raises: the entry waits, the thread lives
                if not logged:
                    first = (str(error).splitlines() or [""])[0]
                    self._log(f"the store takes no alarm ({type(error).__name__}: {first}); trying again")
                logged = True
                if self._ended.wait(self._retry_s):
                    time.sleep(0.2)  # the process is about to end: a few more attempts, then the entry is lost

    def _send(self) -> None:
        """Store everything that is queued. An entry leaves the queue once it is stored."""
        from pipelines.store import Store  # only when there is an alarm: until then the supervisor needs little memory

        store = Store.open(self._settings.store, self._settings.durability)

        def send(kind: str, severity: str, detail: str, at: datetime) -> None:
            """Store one alarm."""
            store.raise_alarm(kind, severity, detail, at)

        try:
            while self._waiting:
                what, *rest = entry = self._waiting[0]
                if what == "raise":
                    kind, severity, detail, at = rest
                    send(kind, severity, detail, datetime.fromisoformat(at))
                else:
                    about, *kinds = rest
                    for alarm in store.alarms():
                        if alarm.kind in kinds and alarm.detail.startswith(about):
                            store.clear_alarm(alarm.id, datetime.now(UTC))
                if self._waiting and self._waiting[0] is entry:  # the oldest may have been dropped meanwhile
                    self._waiting.popleft()
        finally:
            store.close()
