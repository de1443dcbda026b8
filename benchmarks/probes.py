"""What an installation says of itself while something is broken: every endpoint, its alarms and its services, in turn.

A `Probe` asks twice a second from the outside, as a monitoring system would, and keeps each answer that differs from
the one before with its time. `Recorder` is the feeder's client and keeps what its calls were answered.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from bellwether.operations import doctor
from flows.support import processes
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
    """What one endpoint said over time: (monotonic seconds, words), one entry a change.

    asked  when the newest answer was asked for: what was asked before a fault says nothing of it
    """

    changes: list[tuple[float, str]] = field(default_factory=list)
    took: list[tuple[float, float]] = field(default_factory=list)  # (asked, seconds until it was answered)

    @property
    def requested_at(self) -> float:
        return self.took[-1][0] if self.took else 0.0

    def slowest_s(self, start: float, end: float) -> float:
        """Of the answers asked for in a span."""
        return max((took for at, took in self.took if start <= at <= end), default=0.0)

    def add(self, at: float, words: str, took_s: float = 0.0) -> None:
        self.took.append((at - took_s, took_s))
        if not self.changes or self.changes[-1][1] != words:
            self.changes.append((at, words))

    def now(self) -> str:
        return self.changes[-1][1] if self.changes else ""

    def before(self, at: float) -> str:
        """The words that held at a moment; empty if nothing was said by then."""
        return next((words for moment, words in reversed(self.changes) if moment <= at), "")

    def between(self, start: float, end: float) -> list[str]:
        """The different words said in a span, in order, what held at its start included."""
        first = self.before(start)
        later = [words for moment, words in self.changes if start < moment <= end]
        return list(dict.fromkeys([first, *later] if first else later))


@dataclass
class Log:
    """All that was said, by endpoint; `started` anew for each fault."""

    endpoints: dict[str, EndpointLog] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, endpoint: str, words: str, took_s: float = 0.0) -> None:
        with self._lock:
            self.endpoints.setdefault(endpoint, EndpointLog()).add(time.monotonic(), words, took_s)

    def of(self, endpoint: str) -> EndpointLog:
        with self._lock:
            return self.endpoints.get(endpoint, EndpointLog())


def recorder(log: Log) -> Callable[[Settings], Client]:
    """A client that tells `log` what each of its calls was answered: a status code and the kind of a refusal."""

    class Recorder(Client):
        def _post(self, name: str, body: dict[str, Any], *more: Any, **named: Any) -> dict[str, Any]:
            started = time.monotonic()
            words = "200"
            try:
                answer: dict[str, Any] = super()._post(name, body, *more, **named)
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
    """A client's error as `503 StoreFault` or `refused`: the code and kind that stand in its text."""
    code = re.search(r"answered (\d{3})|refused \((\d{3})\)", refusal)
    if code is None:
        return "silent" if "timed out" in refusal else "refused"
    kind = re.search(r'"kind": ?"(\w+)"', refusal)
    return f"{code[1] or code[2]} {kind[1] if kind else ''}".strip()


def words_of(endpoint: str, answer: httpx.Response) -> str:
    """Code, and of what an endpoint says of itself the part that tells states apart."""
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
    """Asks until stopped. Use as a context manager."""

    def __init__(self, settings: Settings, names: tuple[str, ...], log: Log) -> None:
        self.settings, self.log = settings, log
        self._known = {name: processes.SERVICES[name] for name in names}
        self._ended = threading.Event()
        self._store = Store.open(settings.store)
        self.alarms: dict[int, tuple[float, str]] = {}  # id → (monotonic seconds it was first seen, kind)
        self._client = Client(settings)  # for its key: some calls need it
        loops: list[tuple[Callable[[], None], float]] = [(self._services, 0.5), (self._alarms, EVERY_S)]
        loops += [(lambda endpoint=endpoint: self._read(endpoint), EVERY_S) for endpoint in READS]  # type: ignore[misc]
        self._threads = [threading.Thread(target=self._loop, args=loop, daemon=True) for loop in loops]

    def __enter__(self) -> "Probe":
        self._alarms()  # those of before are no news
        self._earlier = set(self.alarms)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=60.0)
        self._client.__exit__(None, None, None)
        self._store.close()

    def _loop(self, poll: Callable[[], None], every_s: float) -> None:
        while not self._ended.wait(every_s):
            poll()

    def _read(self, endpoint: str) -> None:
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
        started = time.monotonic()
        try:
            states = processes.services(self.settings, self._known)
            # what answers though its process is gone is an orphan: nobody would restart or stop it
            seen = {n: s["state"] if s["state"] != "up" or s["pid"] else "orphan" for n, s in states.items()}
            bad = [f"{name} {state}" for name, state in seen.items() if state != "up"]
            words = ", ".join(bad) or "up"
        except (BellwetherError, OSError) as error:
            words = type(error).__name__
        self.log.add("services", words, time.monotonic() - started)

    def _alarms(self) -> None:
        with suppress(StoreFault, BellwetherError, OSError):  # a store that is out raises no alarm
            for alarm in self._store.alarms(open_only=False):
                self.alarms.setdefault(alarm.id, (time.monotonic(), alarm.kind))

    def new_alarms(self, since: float) -> list[tuple[float, str]]:
        """(monotonic seconds, kind) of the alarms raised since then, oldest first."""
        found = [alarm for id, alarm in list(self.alarms.items()) if id not in self._earlier and alarm[0] >= since]
        return sorted(found)

    def healthy(self) -> dict[str, str]:
        """What everything says now: the state to come back to."""
        return {endpoint: self.log.of(endpoint).now() for endpoint in (*READS, "services")}


def detected(probe: Probe, healthy: Mapping[str, str], since: float) -> tuple[float | None, str]:
    """(seconds after `since`, who said it): the first sign that anything is wrong; (None, "") if nobody said a word."""
    signs = [(at, f"alarm {kind}") for at, kind in probe.new_alarms(since)]
    for endpoint, well in healthy.items():
        changes = probe.log.of(endpoint).changes
        signs += [(at, endpoint) for at, words in changes if at >= since and words != well][:1]
    if not signs:
        return None, ""
    at, who = min(signs)
    return at - since, who


def doctor_findings(settings: Settings) -> list[str]:
    """What `bellwether doctor` finds wrong, by name."""
    try:
        return sorted(finding.name for finding in doctor.examine(settings) if finding.state != "ok")
    except (BellwetherError, OSError) as error:
        return [f"doctor: {type(error).__name__}"]
