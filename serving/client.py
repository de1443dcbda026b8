"""Talk to the decision service over HTTP, as any user would: JSON, a bearer key for writes, errors said plainly."""

import time
from dataclasses import asdict
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from pipelines.contracts import BAR_FIELDS, CONTEXT_FIELDS, TAPE_FIELDS, Books, ContextFeed, Floats, Outcome, utc
from pipelines.errors import BellwetherError, InputError, ServiceDown
from pipelines.settings import Settings
from serving.service.keys import write_key

READY_SECONDS = 3.0
BATCH_SIZE = 300  # records of a kind in one request: 300 books of five levels a side and a whole tape take about 500 kB


class Client:
    """A connection to one decision service; use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.decision_url
        headers = {"Authorization": f"Bearer {write_key(settings)}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=30.0)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def observe(
        self, symbol: str, bars: Floats, books: Books | None = None, feed: ContextFeed | None = None
    ) -> dict[str, Any]:
        """Send base bars (n, 8) of a symbol and the records known by their close; what is NaN is left out.

        More than BATCH_SIZE records of a kind go ahead of the bars in requests of their own: a body has a limit.
        """
        told = [] if books is None else [book_json(books, i) for i in range(len(books.known))]
        values = [] if feed is None else context_json(feed)
        while len(told) > BATCH_SIZE or len(values) > BATCH_SIZE:
            ahead = {"books": told[:BATCH_SIZE], "context": values[:BATCH_SIZE]}
            self._post("observe", {"symbol": symbol, **ahead})
            told, values = told[BATCH_SIZE:], values[BATCH_SIZE:]
        body = {"symbol": symbol, "bars": [bar_json(bar) for bar in bars], "books": told, "context": values}
        return self._post("observe", body)

    def decide(self, symbol: str) -> dict[str, Any]:
        """Decide for now, by the clock of the symbol's market."""
        return self._post("decide", {"symbol": symbol})

    def outcome(self, outcome: Outcome) -> dict[str, Any]:
        return self._post("outcome", {**asdict(outcome), "resolved_at": outcome.resolved_at.isoformat()})

    def status(self) -> dict[str, Any]:
        return self._post("status", {})

    def ready(self) -> dict[str, Any]:
        """What /ready says, ready or not. Raises ServiceDown if nobody answers in READY_SECONDS."""
        try:
            answer = self._http.get("/ready", timeout=READY_SECONDS)
            found = answer.json() if answer.status_code in (200, 503) else None
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceDown(
                f"the decision service does not answer at {self.url}: {error}. Start it with `bellwether up`."
            ) from error
        if not isinstance(found, dict) or "health" not in found:
            raise ServiceDown(f"{self.url}/ready answered {answer.status_code}: {answer.text[:200]}")
        return found

    def risk(self) -> dict[str, Any]:
        return self._post("risk", {})

    def wait_for_generation(self, generation: int, timeout_s: float = 60.0) -> dict[str, Any]:
        """Until the service answers with this generation. Raises ServiceDown with what it said last."""
        deadline, said = time.monotonic() + timeout_s, "no answer yet"
        while time.monotonic() < deadline:
            try:
                answer = self.status()
                if int(answer["generation"]) >= generation:
                    return answer
                said = f"generation {answer['generation']}, refused: {answer.get('refused')}"
            except ServiceDown as error:
                said = str(error)
            time.sleep(0.25)
        raise ServiceDown(f"{self.url} did not take generation {generation} in {timeout_s:.0f} s: {said}")

    def _post(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.post(f"/{name}", json=body)
        except httpx.HTTPError as error:
            raise ServiceDown(
                f"the decision service does not answer at {self.url}: {error}. Start it with `bellwether up`."
            ) from error
        if answer.status_code >= 500:
            raise ServiceDown(f"{self.url}/{name} answered {answer.status_code}: {answer.text[:400]}")
        if answer.status_code >= 400:
            raise InputError(f"{name} was refused ({answer.status_code}): {answer.text[:600]}")
        found = answer.json()
        if not isinstance(found, dict):
            raise BellwetherError(f"{self.url}/{name} answered {type(found).__name__}, expected an object")
        return found


def book_json(books: Books, i: int) -> dict[str, Any]:
    """Book `i` as the service reads it."""

    def side(s: int) -> list[list[float | None]]:
        rows = books.levels[i, s]
        return [[None if v != v else v for v in row] for row in rows[np.isfinite(rows[:, 0])].tolist()]

    tape = {name: v for name, v in zip(TAPE_FIELDS, books.tape[i].tolist(), strict=True) if np.isfinite(v)}
    return {"known_at": utc(books.known[i]).isoformat(), "bids": side(0), "asks": side(1), "tape": tape}


def context_json(feed: ContextFeed) -> list[dict[str, Any]]:
    return [
        {"field": CONTEXT_FIELDS[field], "known_at": utc(at).isoformat(), "value": value}
        for at, field, value in zip(feed.known, feed.field.tolist(), feed.value.tolist(), strict=True)
    ]


def bar_json(bar: Floats) -> dict[str, Any]:
    values = {name: float(v) for name, v in zip(BAR_FIELDS[1:], bar[1:], strict=True) if np.isfinite(v)}
    return {"open_time": utc(bar[0]).isoformat(), **values}
