"""The Python client of our services: JSON over HTTP, a bearer key for writes, errors in one sentence.

One connection to the decision service; `predict` alone asks the model service.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import compress
from types import TracebackType
from typing import Literal

import httpx
import msgspec
import numpy as np

from pipelines.context_layout import CONTEXT_FIELDS, TAPE_FIELDS
from pipelines.contracts import BAR_FIELDS, Books, ContextFeed, Floats, JsonObject, Outcome, utc
from pipelines.errors import BellwetherError, InputError, ServiceDown
from pipelines.settings import Settings
from pipelines.settings import settings as process_settings
from serving.service.keys import write_key
from serving.service.schemas import MAX_BARS, MAX_BATCH_RECORDS, MAX_OBSERVE_BODY, MAX_OUTCOMES, MAX_SYMBOLS
from serving.stream_client import StreamedDecision, read_stream

TIMEOUT_SECONDS = 30.0
READY_SECONDS = 3.0
AGAIN = ("ServiceDown", "StoreFault", "ClockJumped")  # kinds of a refusal that the same request may not meet again
Observed = tuple[str, Floats, Books | None, ContextFeed | None]  # symbol, bars (n, 9), books, context
_BAR_VALUES = BAR_FIELDS[1:]  # all that follows the time of a bar
_JSON = {"Content-Type": "application/json"}
_MAX_BATCH_BYTES = MAX_OBSERVE_BODY - 1024  # without the braces around the observations
BATCH_SIZE = 300  # records of a kind in one request: 300 books of five levels a side and a whole tape take about 500 kB


class Client:
    """Hold a connection to one decision service; use it as a context manager.

    >>> from bellwether import Client
    >>> with Client() as client:                    # the installation of this folder, or of BELLWETHER_HOME
    ...     decision = client.decide("SIM/USDT")    # on the newest closed bar
    ...     print(decision["action"], decision["size"], decision["reasons"][0])
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connect to the service these settings name; None: the settings of this process. Reads the key."""
        settings = settings or process_settings()
        self.url, self._model_url = settings.decision_url, settings.model_url
        headers = {"Authorization": f"Bearer {write_key(settings)}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> "Client":
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._http.close()

    def observe(
        self, symbol: str, bars: Floats, books: Books | None = None, feed: ContextFeed | None = None
    ) -> JsonObject:
        """Send base bars (n, 9) of a symbol and the records known by their close; NaN is left out.

        More than BATCH_SIZE records of a kind go ahead of the bars in requests of their own: a body has a limit.
        Returns the answer of `/observe`. Raises InputError for bars that are refused, ServiceDown if none can be taken.
        """
        *ahead, body = observations(symbol, bars, books, feed)
        for part in ahead:
            self._post("observe", part)
        return self._post("observe", body)

    def observe_all(self, observed: Sequence[Observed]) -> JsonObject:
        """Send base bars and records of several symbols, in as few requests as their limits allow.

        observed  (symbol, bars (n, 9), books, feed), one a symbol, as `observe` takes them
        Returns   {"observations": [...]} in the same order: the answer of each symbol, summed where it took several
                  requests, or {"symbol", "error", "kind", "fields"} of one that is refused; nothing of it is sent then
        Raises    ServiceDown if none can be taken; sending everything again is safe
        """
        waiting = [deque(observations(*one, most_bars=MAX_BARS)) for one in observed]
        answers: list[JsonObject] = [{} for _ in observed]
        while places := [i for i, parts in enumerate(waiting) if parts]:
            for batch in _batches([(i, waiting[i].popleft()) for i in places]):
                sent = b'{"observations":[' + b",".join(body for _, body in batch) + b"]}"
                found = self._post("observe", sent)["observations"]
                for (i, _), answer in zip(batch, found, strict=True):
                    answers[i] = _summed(answers[i], answer)
                    if "error" in answer:
                        waiting[i].clear()
        return {"observations": answers}

    def decide(self, symbol: str) -> JsonObject:
        """Return the decision on the symbol's newest closed bar, for now by the clock of its market."""
        return self._post("decide", {"symbol": symbol})

    def decide_all(self, symbols: Sequence[str], view: Literal["brief", "full"] = "full") -> JsonObject:
        """Return {"decisions": [...]} on the newest closed bars of several symbols, in their order.

        One that is refused is {"symbol", "error", "kind", "fields"}. Raises ServiceDown if none can be decided.
        """
        decisions: list[JsonObject] = []
        for first in range(0, len(symbols), MAX_SYMBOLS):
            body = {"symbols": list(symbols[first : first + MAX_SYMBOLS]), "view": view}
            decisions += self._post("decide", body)["decisions"]
        return {"decisions": decisions}

    def stream(self, after: int | None = None) -> Iterator[StreamedDecision]:
        """Yield (seq, decision) of each decision as it becomes durable, for ever; `seq` is its place in the ledger.

        after   the sequence number to resume behind; None: from now on
        Goes on without gap or repetition when the service restarts. Raises as `stream_client.read_stream`.
        """
        return read_stream(self._http, after)

    def features(self, symbol: str, family: str | None = None) -> JsonObject:
        """Return what the models of every family, or of one, see at the symbol's newest close, by column name.

        None = missing. `families` → family → `values`: column → number, or the newest `steps` numbers, oldest first.
        """
        body = {"symbol": symbol} if family is None else {"symbol": symbol, "family": family}
        return self._post("features", body)

    def predict(self, symbol: str, family: str = "validator", arm: str = "champion") -> JsonObject:
        """Return what a model predicts at the symbol's newest close: raw, before any rule of risk.

        Asks the model service. None, with its reason, where the model abstains or is not asked.
        """
        body = {"symbol": symbol, "family": family, "arm": arm}
        return self._post("predict", body, self._model_url, "the model service")

    def outcome(self, outcome: Outcome) -> JsonObject:
        """Report what became of a decision; return whether it was new."""
        return self._post("outcome", outcome_json(outcome))

    def outcome_all(self, outcomes: Sequence[Outcome]) -> JsonObject:
        """Report what became of several decisions, booked in this order, in as few requests as their limit allows.

        Returns  {"outcomes": [...]} in the same order: {"decision_id", "new"}, or {"decision_id", "error", "kind",
                 "fields"} of one that is refused
        Raises   ServiceDown if none can be taken; sending everything again is safe
        """
        answers: list[JsonObject] = []
        for first in range(0, len(outcomes), MAX_OUTCOMES):
            body = {"outcomes": [outcome_json(one) for one in outcomes[first : first + MAX_OUTCOMES]]}
            answers += self._post("outcome", body)["outcomes"]
        return {"outcomes": answers}

    def status(self) -> JsonObject:
        """Return health, tier, models, symbols, breakers and account."""
        return self._post("status", {})

    def ready(self) -> JsonObject:
        """Return the answer of `/ready`, ready or not. Raises ServiceDown without an answer within READY_SECONDS."""
        try:
            response = self._http.get("/ready", timeout=READY_SECONDS)
            content = response.json() if response.status_code in (200, 503) else None
        except (httpx.HTTPError, ValueError) as error:
            raise _no_answer("the decision service", self.url, error) from error
        if not isinstance(content, dict) or "health" not in content:
            raise ServiceDown(f"{self.url}/ready answered {response.status_code}: {response.text[:200]}")
        return content

    def risk(self) -> JsonObject:
        """Return every limit with what is used of it."""
        return self._post("risk", {})

    def account(self) -> JsonObject:
        """Return equity, profit, drawdown and open positions, and what they rest on."""
        return self._post("account", {})

    def wait_for_generation(self, generation: int, timeout_s: float = 60.0) -> JsonObject:
        """Wait until the service serves this generation; return its status. Raises ServiceDown with its last answer."""
        deadline, last = time.monotonic() + timeout_s, "no answer yet"
        while time.monotonic() < deadline:
            try:
                status = self.status()
                if int(status["generation"]) >= generation:
                    return status
                last = f"generation {status['generation']}, refused: {status.get('refused')}"
            except ServiceDown as error:
                last = str(error)
            time.sleep(0.25)
        raise ServiceDown(f"{self.url} did not take generation {generation} in {timeout_s:.0f} s: {last}")

    def _post(
        self, name: str, body: JsonObject | bytes, url: str | None = None, service: str = "the decision service"
    ) -> JsonObject:
        """Return the JSON object that a call of the decision service, or of another `service` at `url`, answers.

        body  a JSON object, or its bytes. Raises InputError for 4xx, ServiceDown for 5xx or no answer.
        """
        url, content = url or self.url, body if isinstance(body, bytes) else msgspec.json.encode(body)
        try:
            response = self._http.post(f"{url}/{name}", content=content, headers=_JSON)
        except httpx.HTTPError as error:
            raise _no_answer(service, url, error) from error
        if response.status_code >= 500:
            raise ServiceDown(f"{url}/{name} answered {response.status_code}: {response.text[:400]}")
        if response.status_code >= 400:
            raise InputError(f"{name} was refused ({response.status_code}): {response.text[:600]}")
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError as error:
            raise BellwetherError(f"{url}/{name} answered no JSON ({error}): {response.text[:200]}") from error
        if not isinstance(answer, dict):
            raise BellwetherError(f"{url}/{name} answered {type(answer).__name__}, expected an object")
        return answer


def _no_answer(service: str, url: str, error: Exception) -> ServiceDown:
    """Return the error of a service that does not answer, with what to do."""
    return ServiceDown(f"{service} does not answer at {url}: {error}. Start it with `bellwether up`.")


def outcome_json(outcome: Outcome) -> JsonObject:
    """Return the body of `/outcome`, as JSON has it."""
    return {**asdict(outcome), "resolved_at": outcome.resolved_at.isoformat()}


def observations(
    symbol: str, bars: Floats, books: Books | None, feed: ContextFeed | None, most_bars: int | None = None
) -> list[JsonObject]:
    """Return the bodies of `/observe`, in order, that carry bars (n, 9) and records of one symbol.

    Of more than BATCH_SIZE records of a kind, the others go ahead of the bars. most_bars: in one body; None = all.
    """
    book_rows = [] if books is None else [book_json(books, i) for i in range(len(books.known))]
    values = [] if feed is None else context_json(feed)
    bodies: list[JsonObject] = []
    while len(book_rows) > BATCH_SIZE or len(values) > BATCH_SIZE:
        bodies.append({"symbol": symbol, "books": book_rows[:BATCH_SIZE], "context": values[:BATCH_SIZE]})
        book_rows, values = book_rows[BATCH_SIZE:], values[BATCH_SIZE:]
    rows = bars_json(bars)
    bodies.append({"symbol": symbol, "bars": rows[:most_bars], "books": book_rows, "context": values})
    if most_bars is not None:
        bodies += [{"symbol": symbol, "bars": rows[i : i + most_bars]} for i in range(most_bars, len(rows), most_bars)]
    return bodies


def _batches(bodies: Sequence[tuple[int, JsonObject]]) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the observations, as JSON, in batches that the limits of a request allow: symbols, records and bytes."""
    batch: list[tuple[int, bytes]] = []
    records = size = 0
    for place, body in bodies:
        own = sum(len(body.get(kind, ())) for kind in ("bars", "books", "context"))
        content = msgspec.json.encode(body)
        length = len(content) + 1
        is_full = len(batch) == MAX_SYMBOLS or records + own > MAX_BATCH_RECORDS or size + length > _MAX_BATCH_BYTES
        if batch and is_full:
            yield batch
            batch, records, size = [], 0, 0
        batch.append((place, content))
        records, size = records + own, size + length
    yield batch


def _summed(before: JsonObject, answer: JsonObject) -> JsonObject:
    """Return the answer of a symbol after one more request about it."""
    if not before or "error" in answer:
        return answer
    counts = {name: before[name] + answer[name] for name in ("received", "new", "records", "closed", "quarantined")}
    return answer | counts


def book_json(books: Books, i: int) -> JsonObject:
    """Return book `i` as `/observe` reads it."""

    def side(s: int) -> list[list[float | None]]:
        """Return the levels of a side, best first, NaN as null."""
        rows = books.levels[i, s]
        return [[None if v != v else v for v in row] for row in rows[np.isfinite(rows[:, 0])].tolist()]

    tape = {name: v for name, v in zip(TAPE_FIELDS, books.tape[i].tolist(), strict=True) if np.isfinite(v)}
    return {"known_at": utc(books.known[i]).isoformat(), "bids": side(0), "asks": side(1), "tape": tape}


def context_json(feed: ContextFeed) -> list[JsonObject]:
    """Return the values of context as `/observe` reads them."""
    return [
        {"field": CONTEXT_FIELDS[field], "known_at": utc(at).isoformat(), "value": value}
        for at, field, value in zip(feed.known, feed.field.tolist(), feed.value.tolist(), strict=True)
    ]


def bars_json(bars: Floats) -> list[JsonObject]:
    """Return bars (n, 9) as `/observe` reads them; what is not finite is left out."""
    known = np.isfinite(bars[:, 1:]).tolist()
    return [
        {"open_time": utc(opened).isoformat(), **dict(compress(zip(_BAR_VALUES, values, strict=True), kept))}
        for (opened, *values), kept in zip(bars.tolist(), known, strict=True)
    ]
