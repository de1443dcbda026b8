"""What goes over the wire: typed requests, JSON answers, errors that name the field and the remedy, and the guard.

Unknown, missing, NaN, naive and out-of-range fields are a 400; our own refusals are 400 (bad input), 404 (unknown
name) or 409 (not now). Every error body is {"error", "kind", "fields": [{"field", "problem", "remedy"}]}.
"""

import functools
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, ParamSpec, get_type_hints

import numpy as np
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.contracts import (
    BAR_WIDTH,
    BOOK_LEVELS,
    CONTEXT_FIELDS,
    CONTEXT_INDEX,
    TAPE_FIELDS,
    Books,
    ContextFeed,
    Decision,
    Floats,
)
from pipelines.data.alignment import book_fault
from pipelines.errors import BadValues, BellwetherError, InputError, UnknownName
from pipelines.settings import Settings, settings
from serving.page import page

MAX_BARS = 2000
MAX_SYMBOLS = 256
MAX_ROWS = 4096
MAX_WINDOWS = 256  # a window is many rows
MAX_ALONG = 1 << 16  # rows, steps or columns of an array that is sent packed
MAX_BODY = 1 << 20  # bytes; 2,000 bars take about 400 kB
P = ParamSpec("P")

# ---- what a field may hold ------------------------------------------------------------------------------------------

# Every clock, store and calendar we use can hold these instants; years 1 and 9999 leave them with a zone's offset.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
LARGEST = 1e18  # the volume of a coin worth next to nothing; beyond it products of such numbers leave float64
SMALLEST_ABOVE_0 = 1e-15
MAX_NAME = 64  # characters
_PLAIN = r"[^\x00-\x1f\x7f-\x9f]"  # no control character: PostgreSQL refuses NUL, a terminal obeys the others


def _not_a_number_of_seconds(value: Any) -> Any:
    """A number would be taken as seconds or milliseconds, whichever it looks like, and its zone guessed."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not re.match(r"\d{4}-", value):
        raise PydanticCustomError("no_time", "this is no time")
    return value


def _in_range(at: datetime) -> datetime:
    try:
        inside = EARLIEST <= at <= LATEST
    except OverflowError:  # an offset beyond year 1 or 9999
        inside = False
    if not inside:
        raise PydanticCustomError("no_time_of_ours", f"a time lies between {EARLIEST:%F} and {LATEST:%F}, both UTC")
    return at


def _not_too_near_0(value: float) -> float:
    if 0 < abs(value) < SMALLEST_ABOVE_0:
        raise PydanticCustomError("too_near_0", f"a price or a size is 0 or at least {SMALLEST_ABOVE_0:g}")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_not_a_number_of_seconds), AfterValidator(_in_range)]
Number = Annotated[FiniteFloat, Field(strict=True, ge=-LARGEST, le=LARGEST)]  # strict: no text, no true, no false
Amount = Annotated[Number, AfterValidator(_not_too_near_0)]  # a price or a size that may be 0, or is judged later
Price = Annotated[Number, Field(gt=0), AfterValidator(_not_too_near_0)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=f"^{_PLAIN}+$")]
Text = Annotated[str, Field(max_length=300, pattern=f"^{_PLAIN}*$")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(_Request):
    """No fields: send {} or an empty body."""


class Bar(_Request):
    """One closed base bar. Prices in quote currency, volumes in base asset; null or left out = the source has none."""

    open_time: Moment
    open: Amount
    high: Amount
    low: Amount
    close: Amount
    volume: Amount | None = None
    trades: Amount | None = None
    taker_buy_volume: Amount | None = None


Level = Annotated[list[Amount | None], Field(min_length=2, max_length=3)]  # price, size, orders where known
Side = Annotated[list[Level], Field(min_length=1, max_length=BOOK_LEVELS)]


class BookRecord(_Request):
    """An order book as it became known: best level first, each [price, size] or [price, size, orders], orders null
    where the venue does not count them. The tape tells of the events since the book before, or as of this one; null or
    left out = not recorded. Its two flows may also be given beside it."""

    known_at: Moment
    bids: Side
    asks: Side
    tape: dict[Literal[TAPE_FIELDS], Number | None] = {}  # type: ignore[valid-type]  # the names are in one place
    order_flow: Number | None = None
    order_flow_fast: Number | None = None


class ContextRecord(_Request):
    """A value of the market's surroundings as it became known."""

    field: Literal[CONTEXT_FIELDS]  # type: ignore[valid-type]  # the names are in one place
    known_at: Moment
    value: Number


class ObserveRequest(_Request):
    """Closed base bars of one symbol, in order, and the books and context known since, or one of the three. Sending the
    same again changes nothing. What became known before a decision bar closed must come with or before the bar that
    closes it."""

    symbol: Name
    bars: Annotated[list[Bar], Field(max_length=MAX_BARS)] = []
    books: Annotated[list[BookRecord], Field(max_length=MAX_BARS)] = []
    context: Annotated[list[ContextRecord], Field(max_length=MAX_BARS)] = []

    @model_validator(mode="after")
    def _something(self) -> "ObserveRequest":
        if not (self.bars or self.books or self.context):
            raise ValueError("give at least one of bars, books and context")
        return self

    def records(self) -> tuple[Books | None, ContextFeed | None]:
        """Books and context in the order they became known; None = none sent. Raises BadValues naming the book."""
        return _books(self.books), _feed(self.context)

    def matrix(self) -> Floats:
        """(n, 8) in contracts.BAR_FIELDS order."""
        missing = float("nan")
        return np.array(
            [
                (
                    bar.open_time.timestamp(),
                    bar.open,
                    bar.high,
                    bar.low,
                    bar.close,
                    missing if bar.volume is None else bar.volume,
                    missing if bar.trades is None else bar.trades,
                    missing if bar.taker_buy_volume is None else bar.taker_buy_volume,
                )
                for bar in self.bars
            ],
            dtype=np.float64,
        ).reshape(-1, BAR_WIDTH)


def _books(sent: list[BookRecord]) -> Books | None:
    if not sent:
        return None
    levels = np.full((len(sent), 2, BOOK_LEVELS, 3), np.nan)
    for i, book in enumerate(sent):
        for s, (name, side) in enumerate((("bids", book.bids), ("asks", book.asks))):
            for j, level in enumerate(side):
                price, size, orders = (*level, None)[:3]
                if price is None or size is None or min(price, size) <= 0 or (orders or 0) < 0:
                    raise BadValues(
                        f"books.{i}.{name}.{j}: {level} is no level: send a price and a size above 0, then the number "
                        "of orders or null. Nothing of this request was stored."
                    )
                levels[i, s, j] = price, size, np.nan if orders is None else orders
        if (wrong := book_fault(levels[i : i + 1])) is not None:
            raise BadValues(f"books.{i}: {wrong}. Nothing of this request was stored.")
    said = [{"order_flow": b.order_flow, "order_flow_fast": b.order_flow_fast} | b.tape for b in sent]
    tape = np.array([[each.get(name) for name in TAPE_FIELDS] for each in said], dtype=np.float64)
    known = np.array([book.known_at.timestamp() for book in sent])
    order = np.argsort(known, kind="stable")
    return Books(known[order], levels[order], tape[order])


def _feed(sent: list[ContextRecord]) -> ContextFeed | None:
    if not sent:
        return None
    ordered = sorted(sent, key=lambda record: record.known_at)
    return ContextFeed(
        np.array([record.known_at.timestamp() for record in ordered]),
        np.array([CONTEXT_INDEX[record.field] for record in ordered], dtype=np.int64),
        np.array([record.value for record in ordered], dtype=np.float64),
    )


class ObserveAnswer(BaseModel):
    """received, new: bars sent, and stored now; records: books and context values stored now; closed: open times of the
    decision bars they closed; reason: why decisions must wait."""

    symbol: str
    received: int
    new: int
    records: int
    closed: list[AwareDatetime]
    reason: str | None


class DecideRequest(_Request):
    """One `symbol` or many `symbols`; `as_of` is the instant decided for, now if left out."""

    symbol: Name | None = None
    symbols: Annotated[list[Name], Field(min_length=1, max_length=MAX_SYMBOLS)] | None = None
    as_of: Moment | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "DecideRequest":
        if (self.symbol is None) == (self.symbols is None):
            raise ValueError("give exactly one of symbol and symbols")
        return self


# Every field of a Decision for `symbol`; `decisions` alone for `symbols`. Flat, as BentoML's API page needs it.
DecideAnswer: type[BaseModel] = create_model(
    "DecideAnswer",
    decisions=(list[Decision] | None, None),
    **{name: (hint, ...) for name, hint in get_type_hints(Decision).items()},  # type: ignore[call-overload]
)


class OutcomeRequest(_Request):
    """What happened to a decision's event; contracts.Outcome."""

    decision_id: Name
    resolved_at: Moment
    label: Literal[0, 1]
    barrier: Literal["target", "stop", "time"]
    gross_bps: Number
    net_bps: Number
    cost_bps: Number


class OutcomeAnswer(BaseModel):
    decision_id: str
    new: bool


class FillRequest(_Request):
    """What a venue made of the order of an emitted decision: `filled` at a price, or `rejected` for a reason. `id` is
    the venue's own name of the report, `at` its clock."""

    id: Name
    decision_id: Name
    at: Moment
    status: Literal["filled", "rejected"]
    price: Price | None = None
    reason: Text = ""

    @model_validator(mode="after")
    def _priced(self) -> "FillRequest":
        if (self.status == "filled") != (self.price is not None):
            raise ValueError("a filled order has a price, a rejected one has none")
        return self


class FillAnswer(BaseModel):
    """slippage_bps: how much worse than the decision's entry the price was; null where nothing was filled."""

    id: str
    new: bool
    slippage_bps: float | None
    breakers: list[str]


class PredictRequest(_Request):
    """One of three: `rows` in the order of the model's columns (see /models), `features` by name, or, for a model that
    looks back, `windows` of its `steps` rows each, oldest first. null = missing."""

    family: Name
    rows: Annotated[list[list[Number | None]], Field(min_length=1, max_length=MAX_ROWS)] | None = None
    features: Annotated[list[dict[Name, Number | None]], Field(min_length=1, max_length=MAX_ROWS)] | None = None
    windows: Annotated[list[list[list[Number | None]]], Field(min_length=1, max_length=MAX_WINDOWS)] | None = None
    arm: Literal["champion", "challenger"] = "champion"

    @model_validator(mode="after")
    def _one_of(self) -> "PredictRequest":
        if sum(given is not None for given in (self.rows, self.features, self.windows)) != 1:
            raise ValueError("give exactly one of rows, features and windows")
        return self


class Packed(_Request):
    """An array bit for bit: its shape and the base64 of its little-endian float64 bytes in C order; NaN = missing."""

    shape: Annotated[list[Annotated[int, Field(strict=True, ge=1, le=MAX_ALONG)]], Field(min_length=1, max_length=3)]
    f8: str


class AskedRow(_Request):
    """One row for a family: (1, columns), or (1, steps, columns) where it looks back; arm → digest that must answer."""

    family: Name
    digests: dict[Literal["champion", "challenger"], Name]
    columns: Annotated[list[Name], Field(min_length=1, max_length=MAX_ALONG)]
    rows: Packed


class AskRequest(_Request):
    """All that one request of the decision service asks; an empty list asks whether we are there."""

    asks: Annotated[list[AskedRow], Field(max_length=MAX_ROWS)]


class AskAnswer(BaseModel):
    """One entry an ask, in order: arm → predictions with their arrays packed, or {"fault": why}."""

    generation: int
    answers: list[dict[str, Any]]


class PredictAnswer(BaseModel):
    """One entry a row. p and p_low are numbers of a model with one class, class → number of one with several; null
    where the model abstains, and `reason` says why. `label` is its one word; `members` are its voters."""

    family: str
    arm: str
    version: str
    digest: str
    device: str
    generation: int
    classes: list[str]
    p: list[float | dict[str, float | None] | None]
    p_low: list[float | dict[str, float | None] | None]
    status: list[str]
    reason: list[str | None]
    novelty: list[float | None]
    label: list[str | None] | None
    members: dict[str, list[Any]] | None


# ---- answers ------------------------------------------------------------------------------------------------------


def json_answer(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), status, media_type="application/json")


def error_answer(status: int, kind: str, error: str, fields: list[dict[str, str]] | None = None) -> Response:
    return json_answer({"error": error, "kind": kind, "fields": fields or []}, status)


def answers(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Response]]:
    """Give an endpoint's plain content as JSON, and our own errors as 4xx with their message."""

    @functools.wraps(endpoint)
    async def answered(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            content = await endpoint(*args, **kwargs)
        except BellwetherError as error:
            status = 404 if isinstance(error, UnknownName) else 400 if isinstance(error, InputError) else 409
            return error_answer(status, type(error).__name__, str(error))
        return content if isinstance(content, Response) else json_answer(content)

    return answered


_REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it; the API page at / lists the known fields",
    "finite_number": "send a finite number, or null where the field may be missing",
    "timezone_aware": "add the zone, such as 2024-01-01T00:00:00Z",
    "float_type": "send a number",
    "float_parsing": "send a number",
    "datetime_from_date_parsing": "send an ISO 8601 time with its zone, such as 2024-01-01T00:00:00Z",
    "datetime_parsing": "send an ISO 8601 time with its zone, such as 2024-01-01T00:00:00Z",
    "json_invalid": "send one valid JSON object",
    "no_time": "send an ISO 8601 time with its zone, such as 2024-01-01T00:00:00Z",
    "no_time_of_ours": "send a time within the range",
    "too_near_0": "send 0 or a number within the range",
    "too_long": "send less at a time",
    "string_too_long": "send a shorter one",
    "string_pattern_mismatch": "leave control characters out",
    "greater_than_equal": "send a number within the range",
    "less_than_equal": "send a number within the range",
}


def _explained(detail: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "field": ".".join(str(part) for part in found["loc"]) or "body",
            "problem": found["msg"],
            "remedy": _REMEDIES.get(found["type"], "see the API page at / for what this field takes"),
        }
        for found in detail
    ]


class WholeJson:
    """ASGI middleware: a body is whole before anybody waits or works for it, and JSON to BentoML whatever its content
    type says: the forms, files and pickles of BentoML are never reached, by a call or by the header of a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:  # the caller went away: nobody is there to answer
            return
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return pending.pop() if pending else await receive()

        await self._app({**scope, "headers": [*kept, (b"content-type", b"application/json")]}, received, send)


async def _whole(receive: Receive) -> bytes | None:
    """The body; None if the caller went away before it was whole."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


# ---- the guard ----------------------------------------------------------------------------------------------------


def write_key(where: Settings) -> str:
    """The bearer key of write calls: `BELLWETHER_WRITE_KEY`, else the file `<home>/write_key`, made once, mode 0600."""
    if where.write_key is not None:
        return where.write_key.get_secret_value()
    file = where.home / "write_key"
    where.home.mkdir(parents=True, exist_ok=True)
    draft = where.home / f".write_key.{os.getpid()}"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(os.urandom(24).hex())
    try:
        os.link(draft, file)  # fails if another process was first; its key stands
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text().strip()


class Guard:
    """ASGI middleware: bearer key on `writes`, a body limit, GET for `reads`, our own page, errors in our own words."""

    def __init__(
        self,
        app: ASGIApp,
        title: str,
        text: str,
        writes: tuple[str, ...] = (),
        reads: tuple[str, ...] = (),
        max_body: int = MAX_BODY,
    ) -> None:
        self._app, self._writes, self._reads, self._max_body = app, writes, reads, max_body
        self._page = page(title, text)
        self._key = write_key(settings()).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if scope["method"] == "GET" and scope["path"] == "/":
            await self._page(scope, receive, send)
            return
        if scope["path"] == "/readyz":  # the probe's own path, in our words: tier, reason and every check
            scope = {**scope, "path": "/ready", "raw_path": b"/ready"}
        if scope["method"] == "GET" and scope["path"] in self._reads:
            scope = {**scope, "method": "POST"}  # BentoML routes POST only
        await self._app(scope, receive, _Reworded(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if scope["path"] in self._writes:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._key):
                remedy = "send `Authorization: Bearer <key>`; the key is BELLWETHER_WRITE_KEY or artifacts/write_key"
                return error_answer(401, "Unauthorized", f"{scope['path']} writes: {remedy}")
        if scope["method"] == "POST":
            length = headers.get(b"content-length", b"")
            if b"transfer-encoding" in headers or not (length.isdigit() or length == b""):
                return error_answer(411, "LengthRequired", "send the body with a Content-Length, not in chunks")
            if int(length or 0) > self._max_body:
                return error_answer(
                    413, "BodyTooLarge", f"body of {int(length)} bytes, limit {self._max_body}; send less at a time"
                )
        return None


class _Reworded:
    """Passes a response on; the body of a 400 is read whole and said in our own words."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                body = _reworded(self._body)
                kept = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
                await self._send({**self._start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
                await self._send({"type": "http.response.body", "body": body})


def _reworded(body: bytes) -> bytes:
    content = json.loads(body)
    if not (isinstance(content, dict) and isinstance(content.get("detail"), list)):
        return body
    fields = _explained(content["detail"])
    error = "; ".join(f"{f['field']}: {f['problem']} ({f['remedy']})" for f in fields[:3])
    more = f"; and {len(fields) - 3} more" if len(fields) > 3 else ""
    return bytes(error_answer(400, "BadRequest", error + more, fields[:50]).body)
