"""Read the stream of decisions: server-sent events over HTTP, connected again behind the last one that came."""

import json
import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx

from pipelines.contracts import JsonObject
from pipelines.errors import InputError, ServiceDown

PATH = "/decisions/stream"
QUIET_S = 45.0  # without a line for three heartbeats the connection counts as lost
PAUSE_S = 1.0  # between two attempts to connect
GIVE_UP_S = 60.0


class StreamedDecision(NamedTuple):
    """Hold a decision as `/decide` answers it, and its sequence number in the ledger, behind which to resume."""

    seq: int
    decision: JsonObject


class _Event(NamedTuple):
    """Hold one server-sent event. data is empty in one that only names a place."""

    id: int
    kind: str
    data: str


def read_stream(http: httpx.Client, after: int | None, give_up_s: float = GIVE_UP_S) -> Iterator[StreamedDecision]:
    """Yield decisions behind sequence number `after` (None: from now on), each once, in the order of the ledger.

    Goes on behind the last one when the service restarts, the connection is lost, or reading was too slow.

    Raises  InputError for a refusal, ServiceDown if no connection is made for `give_up_s` seconds
    """
    place, lost_since = after, time.monotonic()
    while True:
        why = "the stream ended"
        try:
            for event in _events(http, place):
                place, lost_since = event.id, time.monotonic()
                if event.kind == "decision":
                    yield StreamedDecision(event.id, json.loads(event.data))
                    lost_since = time.monotonic()  # however long the caller took
        except (httpx.HTTPError, ServiceDown) as error:
            why = str(error) or type(error).__name__
        if time.monotonic() - lost_since > give_up_s:
            raise ServiceDown(
                f"no stream of decisions at {http.base_url} for {give_up_s:.0f} s: {why}. Start the service with "
                f"`bellwether up`; resume after {place}"
            )
        time.sleep(PAUSE_S)


def _events(http: httpx.Client, after: int | None) -> Iterator[_Event]:
    """Yield the events of one connection until it ends. Raises InputError for 4xx, ServiceDown for 429 and 5xx."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with http.stream("GET", PATH, headers=headers, timeout=httpx.Timeout(10.0, read=QUIET_S)) as response:
        if response.status_code != 200:
            response.read()
            answer = f"{PATH} answered {response.status_code}: {response.text[:400]}"
            raise (ServiceDown if response.status_code >= 500 or response.status_code == 429 else InputError)(answer)
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
            elif not line:  # the end of an event
                if "id" in fields:
                    yield _Event(int(fields["id"]), fields.get("event", ""), fields.get("data", ""))
                fields = {}
