"""Alarms on their way to the store, in a thread of their own: a store that is down or locked holds nobody up."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from pipelines.settings import Settings

KEPT = 1000  # alarms waiting for a store that is down; of more, the oldest are dropped
RETRY_S = 5.0


class AlarmOutbox:
    """Raises and clears alarms in the order they were put; what the store refuses is tried again until it takes it."""

    def __init__(self, settings: Settings, say: Callable[[str], None], retry_s: float = RETRY_S) -> None:
        self._settings, self._say, self._retry_s = settings, say, retry_s
        self._waiting: deque[tuple[str, ...]] = deque(maxlen=KEPT)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
        self._thread.start()

    def raise_alarm(self, kind: str, severity: str, detail: str) -> None:
        self._put(("raise", kind, severity, detail, datetime.now(UTC).isoformat()))

    def clear(self, about: str, *kinds: str) -> None:
        """Clear every open alarm of these kinds whose detail begins with `about`."""
        if not self._settings.store_url and not (self._settings.home / "store.db").exists():
            return  # nothing was ever raised: no reason to make a store
        self._put(("clear", about, *kinds))

    def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for what is left to be stored."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _put(self, entry: tuple[str, ...]) -> None:
        self._waiting.append(entry)
        self._wake.set()

    def _run(self) -> None:
        told = False  # one line a fault, not one a try
        while not (self._ended.is_set() and not self._waiting):
            if not self._waiting:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._send()
                told = False
            except Exception as error:  # noqa: BLE001 - whatever a database raises: the entry waits, the thread lives
                if not told:
                    first = (str(error).splitlines() or [""])[0]
                    self._say(f"the store takes no alarm ({type(error).__name__}: {first}); it is tried again")
                told = True
                if self._ended.wait(self._retry_s):
                    time.sleep(0.2)  # the process is about to end: a few more tries, then it goes without

    def _send(self) -> None:
        """Hand everything waiting to the store. An entry leaves the queue once it is stored."""
        from pipelines.store import Store  # only once there is something to tell: a quiet supervisor stays small

        store = Store.open(self._settings.store, self._settings.durability)

        def send(kind: str, severity: str, detail: str, at: datetime) -> None:
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
