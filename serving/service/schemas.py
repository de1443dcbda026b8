"""What goes over the wire: typed requests, JSON answers, errors that name the field and the remedy.

Unknown, missing, NaN, naive and out-of-range fields are a 400; our own refusals are 400 (bad input), 404 (unknown
name) or 409 (not now). Every error body is {"error", "kind", "fields": [{"field", "problem", "remedy"}]}.
"""

import functools
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
from serving.service.http_guard import error_response as error_response
from serving.service.http_guard import json_response as json_response

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


class EmptyRequest(_Request):
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


class ObserveResponse(BaseModel):
    """received, new: bars sent, and stored now; records: books and context values stored now; closed: open times of the
    decision bars they closed; reason: why decisions must wait."""

    symbol: str
    received: int
    new: int
    records: int
    closed: list[AwareDatetime]
    reason: str | None


class DecideRequest(_Request):
    """One `symbol` or many `symbols`, decided for now: the clock of a market is not the caller's to set."""

    symbol: Name | None = None
    symbols: Annotated[list[Name], Field(min_length=1, max_length=MAX_SYMBOLS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _now(cls, told: Any) -> Any:
        if isinstance(told, dict) and "as_of" in told:
            raise ValueError(
                "as_of is not taken: a decision is made for now, by the clock of its market. `bellwether replay` makes "
                "a stored one again, as it was"
            )
        return told

    @model_validator(mode="after")
    def _one_of(self) -> "DecideRequest":
        if (self.symbol is None) == (self.symbols is None):
            raise ValueError("give exactly one of symbol and symbols")
        return self


# Every field of a Decision for `symbol`; `decisions` alone for `symbols`. Flat, as BentoML's API page needs it.
DecideResponse: type[BaseModel] = create_model(
    "DecideResponse",
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


class OutcomeResponse(BaseModel):
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


class FillResponse(BaseModel):
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


class PackedInferenceRequest(_Request):
    """One row for a family: (1, columns), or (1, steps, columns) where it looks back; arm → digest that must answer."""

    family: Name
    digests: dict[Literal["champion", "challenger"], Name]
    columns: Annotated[list[Name], Field(min_length=1, max_length=MAX_ALONG)]
    rows: Packed


class PredictBatchRequest(_Request):
    """All that one request of the decision service asks; an empty list asks whether we are there."""

    asks: Annotated[list[PackedInferenceRequest], Field(max_length=MAX_ROWS)]


class PredictBatchResponse(BaseModel):
    """One entry an ask, in order: arm → predictions with their arrays packed, or {"fault": why}."""

    generation: int
    answers: list[dict[str, Any]]


class PredictResponse(BaseModel):
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
    label: Any  # list[str | None] | None: BentoML's client cannot read a list that its schema knows and that is null
    members: dict[str, list[Any]] | None


# ---- answers ------------------------------------------------------------------------------------------------------


def json_endpoint(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Response]]:
    """Give an endpoint's plain content as JSON, and our own errors as 4xx with their message."""

    @functools.wraps(endpoint)
    async def answered(*args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            content = await endpoint(*args, **kwargs)
        except BellwetherError as error:
            status = 404 if isinstance(error, UnknownName) else 400 if isinstance(error, InputError) else 409
            return error_response(status, type(error).__name__, str(error))
        return content if isinstance(content, Response) else json_response(content)

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


def field_errors(detail: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "field": ".".join(str(part) for part in found["loc"]) or "body",
            "problem": found["msg"],
            "remedy": _REMEDIES.get(found["type"], "see the API page at / for what this field takes"),
        }
        for found in detail
    ]
