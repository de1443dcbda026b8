"""Poll an installation while something is broken: every endpoint, its alarms and its services.

A `Probe` polls from the outside, as a monitoring system would, and stores each answer that differs from the one before
with its time. `recorder` makes the feeder's client, which logs the answers of its calls.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from bellwether.operations import doctor
from flows.support import processes, service_table
from pipelines.contracts import JsonObject
from pipelines.errors import BellwetherError
from pipelines.settings import Settings
from pipelines.store import Store, StoreFault
from serving.client import Client

PATIENCE_S = 2.0  # an endpoint that takes longer counts as silent
EVERY_S = 0.25
READS = ("/livez", "/readyz", "/ready", "/status")
CALLS = ("/decide", "/observe")


@dataclass
class EndpointLog:
    """Record the answers of one endpoint over time: (monotonic seconds, words), one entry a change."""

    changes: list[tuple[float, str]] = field(default_factory=list)
    took: list[tuple[float, float]] = field(default_factory=list)  # (requested at, seconds until it was answered)

    @property
    def requested_at(self) -> float:
        """Return when the newest answer was requested: one requested before a fault does not describe it."""
        return self.took[-1][0] if self.took else 0.0

    def slowest_s(self, start: float, end: float) -> float:
        """Return the longest wait of the requests sent in a span, in seconds."""
        return max((took for at, took in self.took if start <= at <= end), default=0.0)

    def add(self, at: float, words: str, took_s: float = 0.0) -> None:
        """Add an answer that arrived `at` after `took_s` seconds."""
        self.took.append((at - took_s, took_s))
        if not self.changes or self.changes[-1][1] != words:
            self.changes.append((at, words))

    def now(self) -> str:
        """Return the newest words; empty without an answer."""
        return self.changes[-1][1] if self.changes else ""

    def before(self, at: float) -> str:
        """Return the words at a moment; empty if there was no answer by then."""
        return next((words for moment, words in reversed(self.changes) if moment <= at), "")

    def between(self, start: float, end: float) -> list[str]:
        """Return the different words in a span, in order, those at its start included."""
        first = self.before(start)
        later = [words for moment, words in self.changes if start < moment <= end]
        return list(dict.fromkeys([first, *later] if first else later))


@dataclass
class Log:
    """Record all answers, by endpoint."""

    endpoints: dict[str, EndpointLog] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, endpoint: str, words: str, took_s: float = 0.0) -> None:
        """Add an answer of an endpoint that arrives now."""
        with self._lock:
            self.endpoints.setdefault(endpoint, EndpointLog()).add(time.monotonic(), words, took_s)

    def of(self, endpoint: str) -> EndpointLog:
        """Return the log of one endpoint; an empty one if it never answered."""
        with self._lock:
            return self.endpoints.get(endpoint, EndpointLog())


def recorder(log: Log) -> Callable[[Settings], Client]:
    """Return a client class that logs the answer of each of its calls: a status code and the kind of a refusal."""

    class Recorder(Client):
        """Log the answers of every call."""

        def _post(self, name: str, body: JsonObject, *more: Any, **named: Any) -> JsonObject:
            """Send a request and log its answer."""
            started = time.monotonic()
            words = "200"
            try:
                answer: JsonObject = super()._post(name, body, *more, **named)
                if name == "decide" and answer.get("tier") == 4:
                    words = "200 tier 4"
                return answer
            except BellwetherError as error:
                words = shorten(str(error))
                raise
            finally:
                log.add(f"/{name}", words, time.monotonic() - started)

    return Recorder


def shorten(refusal: str) -> str:
    """Return a client's error as `503 StoreFault` or `refused`: the code and kind in its text."""
    code = re.search(r"answered (\d{3})|refused \((\d{3})\)", refusal)
    if code is None:
        return "silent" if "timed out" in refusal else "refused"
    kind = re.search(r'"kind": ?"(\w+)"', refusal)
    return f"{code[1] or code[2]} {kind[1] if kind else ''}".strip()


def words_of(endpoint: str, answer: httpx.Response) -> str:
    """Return the status code and the part of the answer that distinguishes states."""
    payload: Any = None
    with suppress(ValueError):
        payload = answer.json()
    if not isinstance(payload, dict) or endpoint == "/livez":
        return str(answer.status_code)
    if endpoint == "/status":
        return f"{answer.status_code} {payload.get('health', '')} tier {payload.get('tier', '?')}"
    red = [str(check.get("name")) for check in payload.get("checks", []) if not check.get("ok", True)]
    return f"{answer.status_code} {', '.join(red)}".strip()


class Probe:
    """Poll an installation until stopped. Use as a context manager."""

    def __init__(self, settings: Settings, names: tuple[str, ...], log: Log) -> None:
        """Open the store and prepare one thread an endpoint, one for the services and one for the alarms."""
        self.settings, self.log = settings, log
        self._known = {name: service_table.SERVICES[name] for name in names}
        self._ended = threading.Event()
        self._store = Store.open(settings.store)
        self.alarms: dict[int, tuple[float, str]] = {}  # id → (monotonic seconds it was first seen, kind)
        self._client = Client(settings)  # for its key: some calls need it
        loops: list[tuple[Callable[[], None], float]] = [(self._services, 0.5), (self._alarms, EVERY_S)]
        loops += [(partial(self._read, endpoint), EVERY_S) for endpoint in READS]
        self._threads = [threading.Thread(target=self._loop, args=loop, daemon=True) for loop in loops]

    def __enter__(self) -> "Probe":
        """Start the threads; alarms raised before are not counted."""
        self._alarms()  # those raised before do not count
        self._earlier = set(self.alarms)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads and close the store."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=60.0)
        self._client.__exit__(None, None, None)
        self._store.close()

    def _loop(self, poll: Callable[[], None], every_s: float) -> None:
        """Call `poll` every `every_s` seconds until stopped."""
        while not self._ended.wait(every_s):
            poll()

    def _read(self, endpoint: str) -> None:
        """Poll one endpoint and log its answer."""
        started = time.monotonic()
        try:
            answer = httpx.get(
                f"{self.settings.decision_url}{endpoint}", timeout=PATIENCE_S, headers=self._client._http.headers
            )
            words = words_of(endpoint, answer)
        except httpx.TimeoutException:
            words = "silent"
        except httpx.HTTPError:
            words = "refused"
        self.log.add(endpoint, words, time.monotonic() - started)

    def _services(self) -> None:
        """Poll the state of the services and log those that are not up."""
        started = time.monotonic()
        try:
            states = processes.services(self.settings, self._known)
            # a service that answers without a process of ours is an orphan: nothing would restart or stop it
            seen = {n: s["state"] if s["state"] != "up" or s["pid"] else "orphan" for n, s in states.items()}
            bad = [f"{name} {state}" for name, state in seen.items() if state != "up"]
            words = ", ".join(bad) or "up"
        except (BellwetherError, OSError) as error:
            words = type(error).__name__
        self.log.add("services", words, time.monotonic() - started)

    def _alarms(self) -> None:
        """Read the store's alarms and note when each was first seen."""
        with suppress(StoreFault, BellwetherError, OSError):  # a store that is out raises no alarm
            for alarm in self._store.alarms(open_only=False):
                self.alarms.setdefault(alarm.id, (time.monotonic(), alarm.kind))

    def new_alarms(self, since: float) -> list[tuple[float, str]]:
        """Return (monotonic seconds, kind) of the alarms raised since then, oldest first."""
        found = [alarm for id, alarm in list(self.alarms.items()) if id not in self._earlier and alarm[0] >= since]
        return sorted(found)

    def healthy(self) -> dict[str, str]:
        """Return the words of every endpoint now: the state to come back to."""
        return {endpoint: self.log.of(endpoint).now() for endpoint in (*READS, "services")}


def detected(probe: Probe, healthy: Mapping[str, str], since: float) -> tuple[float | None, str]:
    """Return the seconds from `since` to the first sign that anything is wrong, and its source; (None, "") if there was
    no sign.
    """
    signs = [(at, f"alarm {kind}") for at, kind in probe.new_alarms(since)]
    for endpoint, well in healthy.items():
        changes = probe.log.of(endpoint).changes
        signs += [(at, endpoint) for at, words in changes if at >= since and words != well][:1]
    if not signs:
        return None, ""
    at, who = min(signs)
    return at - since, who


def doctor_findings(settings: Settings) -> list[str]:
    """Return the names of what `bellwether doctor` finds wrong."""
    try:
        return sorted(finding.name for finding in doctor.examine(settings) if finding.state != "ok")
    except (BellwetherError, OSError) as error:
        return [f"doctor: {type(error).__name__}"]
