"""Typed requests of both services: what each field may hold.

Unknown, missing, NaN, naive and out-of-range fields are a 400 that names the field and the remedy (field_errors).
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX, TAPE_FIELDS
from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, BOOK_LEVELS, Books, ContextFeed, Floats, JsonObject
from pipelines.data.admission import LARGEST, SMALLEST_ABOVE_0
from pipelines.data.alignment import book_fault
from pipelines.data.symbols import parse_symbol
from pipelines.errors import BadValues, UnknownName
from serving.service.field_errors import field_errors, sentence

if TYPE_CHECKING:
    TapeField: TypeAlias = str
    ContextField: TypeAlias = str
else:  # mypy cannot read a Literal made of a tuple
    TapeField, ContextField = Literal[TAPE_FIELDS], Literal[CONTEXT_FIELDS]

MAX_BARS = 2000
MAX_SYMBOLS = 256
MAX_OUTCOMES = 256
MAX_FAULTS = 50  # fields of an unreadable entry that are named
MAX_ROWS = 4096
MAX_WINDOWS = 256  # a window is many rows
MAX_ALONG = 1 << 16  # rows, steps or columns of an array that is sent packed
MAX_BODY = 1 << 20  # bytes; 2,000 bars take about 400 kB
BATCH_RECORDS = 32  # bars, books and context values of a symbol in a batch of MAX_SYMBOLS; fewer symbols may send more
RECORD_BYTES = 512  # of JSON, on average: a bar takes about 200, a book of five levels a side 1,700, a value 100
MAX_BATCH_RECORDS = MAX_SYMBOLS * BATCH_RECORDS  # of all symbols
MAX_OBSERVE_BODY = MAX_BATCH_RECORDS * RECORD_BYTES  # bytes: 4 MiB

# ---- what a field may hold ------------------------------------------------------------------------------------------

# Every clock, store and calendar we use can hold these instants; years 1 and 9999 leave them with a zone's offset.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
MAX_NAME = 64  # characters
_PLAIN = r"[^\x00-\x1f\x7f-\x9f]"  # no control character: PostgreSQL refuses NUL, a terminal obeys the others


@dataclass(frozen=True, eq=False)  # eq: typing hashes it
class _ReadBy:
    """Name the schema that reads a value. pydantic runs it without Python, so a number costs 50 ns and no call."""

    schema: CoreSchema

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema, whatever other annotations the value has; a copy, for pydantic writes into it."""
        return copy.copy(self.schema)


def _or_refused(code: str, problem: str, *schemas: CoreSchema) -> CoreSchema:
    """Return a schema of values that pass one of these, the most frequent one first; `problem` of all others."""
    passed = schemas[0] if len(schemas) == 1 else core_schema.union_schema(list(schemas), mode="left_to_right")
    return core_schema.custom_error_schema(passed, code, custom_error_message=problem)


_NUMBER = core_schema.float_schema(allow_inf_nan=False, strict=True, ge=-LARGEST, le=LARGEST)  # no text, no true
_NOT_TOO_NEAR_0 = _or_refused(
    "too_near_0",
    f"a price or a size is 0 or at least {SMALLEST_ABOVE_0:g}",
    core_schema.float_schema(ge=SMALLEST_ABOVE_0),
    core_schema.float_schema(ge=0.0, le=0.0),
    core_schema.float_schema(le=-SMALLEST_ABOVE_0),
)
_MOMENT = core_schema.chain_schema(
    [
        _or_refused(  # a datetime, or text that starts like one: a number's unit and zone would have to be guessed
            "no_time",
            "this is not a time",
            core_schema.str_schema(pattern=r"^\d{4}-", strict=True),
            core_schema.is_instance_schema(datetime),
        ),
        core_schema.datetime_schema(tz_constraint="aware"),
        _or_refused(
            "time_out_of_range",
            f"a time lies between {EARLIEST:%F} and {LATEST:%F}, both UTC",
            core_schema.datetime_schema(ge=EARLIEST, le=LATEST),
        ),
    ]
)


def _canonical(symbol: str) -> str:
    """Return the canonical name of a symbol; see `pipelines.data.symbols`."""
    try:
        return parse_symbol(symbol)
    except UnknownName as error:
        raise PydanticCustomError("no_symbol", "{problem}", {"problem": str(error)}) from error


Moment = Annotated[datetime, _ReadBy(_MOMENT), WithJsonSchema({"type": "string", "format": "date-time"})]
Number = Annotated[float, _ReadBy(_NUMBER)]
# a price or a size that may be 0, or is checked later
Amount = Annotated[float, _ReadBy(core_schema.chain_schema([_NUMBER, _NOT_TOO_NEAR_0]))]
Price = Annotated[float, _ReadBy(core_schema.chain_schema([{**_NUMBER, "gt": 0.0}, _NOT_TOO_NEAR_0]))]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=f"^{_PLAIN}+$")]
Symbol = Annotated[Name, AfterValidator(_canonical)]
Text = Annotated[str, Field(max_length=300, pattern=f"^{_PLAIN}*$")]


class Request(BaseModel):
    """A request: unknown fields are refused, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> "Request":
        """Return the request made of its fields, which are valid already: BentoML hands them over one by one."""
        return cls.model_construct(**fields)


class OneOrMany(Request):
    """What takes one entry, or a batch of them; a subclass is what takes one, too.

    one, many   the requests; entries  the field of a batch
    """

    one: ClassVar[type[Request]]
    many: ClassVar[type[Request]]
    entries: ClassVar[str]

    @model_validator(mode="wrap")
    @classmethod
    def _one_or_many(cls, body: Any, read: ModelWrapValidatorHandler["OneOrMany"]) -> Any:
        """Return the batch for a body with its field, else the one."""
        if isinstance(body, dict) and cls.entries in body:
            return cls.many.model_validate(body)
        return read(body)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Request:
        """Return the batch or the one that these fields are of."""
        return (cls.many if cls.entries in fields else cls.one).model_construct(**fields)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonObject:
        """Return the fields of both, none required: BentoML's client sends no argument that is not among them."""
        single = handler(schema)
        batch: JsonObject = {cls.entries: {"type": "array", "items": {"type": "object"}}}
        return {**single, "properties": single["properties"] | batch, "required": []}


class EmptyRequest(Request):
    """No fields: send {} or an empty body."""


class Bar(Request):
    """One closed base bar. Prices in quote currency, volumes in base asset; null or left out = the source has none.
    Prices are mids where half_spread is sent: (ask - bid) / 2 at the close, in quote currency."""

    open_time: Moment
    open: Amount
    high: Amount
    low: Amount
    close: Amount
    volume: Amount | None = None
    trades: Amount | None = None
    taker_buy_volume: Amount | None = None
    half_spread: Amount | None = None


VALUES = attrgetter(*BAR_FIELDS[1:])  # all that follows the time of a Bar
Level = Annotated[list[Amount | None], Field(min_length=2, max_length=3)]  # price, size, orders where known
Side = Annotated[list[Level], Field(min_length=1, max_length=BOOK_LEVELS)]


class BookRecord(Request):
    """An order book as it became known: best level first, each [price, size] or [price, size, orders], orders null
    where the venue does not count them. The tape describes the events since the previous book, or as of this one; null
    or left out = not recorded. Its two order flows may be given outside of it too."""

    known_at: Moment
    bids: Side
    asks: Side
    tape: dict[TapeField, Number | None] = {}
    order_flow: Number | None = None
    order_flow_fast: Number | None = None


class ContextRecord(Request):
    """A value of context (funding, sentiment, a reference market, …) as it became known. funding_rate is a fraction of
    eight hours: of a venue that settles every four, twice its rate. series_1 to series_4 are the named series of the
    market's data version, in the order of their names."""

    field: ContextField
    known_at: Moment
    value: Number


class ObserveRequest(Request):
    """Closed base bars of one symbol, in order, and the books and context known since, or one of the three. Sending the
    same again changes nothing. What became known before a decision bar closed must come with or before the bar that
    closes it."""

    symbol: Symbol
    bars: Annotated[list[Bar], Field(max_length=MAX_BARS)] = []
    books: Annotated[list[BookRecord], Field(max_length=MAX_BARS)] = []
    context: Annotated[list[ContextRecord], Field(max_length=MAX_BARS)] = []
    _rows: Floats | None = PrivateAttr(None)  # what `matrix` returns, of bars that were read without a Bar for each

    @model_validator(mode="after")
    def _something(self) -> "ObserveRequest":
        """Refuse a request without bars, books and context."""
        if not (self.bars or self.books or self.context):
            raise ValueError("give at least one of bars, books and context")
        return self

    @classmethod
    def of_rows(cls, symbol: str, rows: Floats) -> "ObserveRequest":
        """Return a request of bars (n, 9) that are valid already, as `matrix` returns them."""
        made = cls.model_construct(symbol=symbol)
        made._rows = rows
        return made

    def records(self) -> tuple[Books | None, ContextFeed | None]:
        """Return books and context in the order they became known; None = none sent. Raises BadValues."""
        return _books(self.books), _feed(self.context)

    def matrix(self) -> Floats:
        """Return the bars, (n, 9) float64 in contracts.BAR_FIELDS order; NaN = the source has none."""
        if self._rows is not None:
            return self._rows
        rows = [(bar.open_time.timestamp(), *VALUES(bar)) for bar in self.bars]
        return np.array(rows, dtype=np.float64).reshape(-1, BAR_WIDTH)  # None becomes NaN


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Hold an entry of a batch that cannot be read: its symbol or the id of its decision as sent, None where that is no
    name, and the faults."""

    name: str | None
    fields: list[dict[str, str]]

    @property
    def error(self) -> str:
        """Return the first three faults in one sentence."""
        return sentence(self.fields)


def _or_unreadable(key: str) -> WrapValidator:
    """Return what reads an entry of a batch, or says why it cannot be read: the other entries are read all the same.

    key  the field that names an entry
    """

    def read_or_say(entry: Any, read: ValidatorFunctionWrapHandler) -> Any:
        """Return the entry, or an Unreadable."""
        try:
            return read(entry)
        except ValidationError as error:
            name = entry.get(key) if isinstance(entry, dict) else None
            is_plain = isinstance(name, str) and re.fullmatch(f"{_PLAIN}{{1,{MAX_NAME}}}", name)
            return Unreadable(
                name if is_plain else None,
                field_errors(error.errors(include_url=False, include_context=False)[:MAX_FAULTS]),
            )

    return WrapValidator(read_or_say)


Observation = Annotated[ObserveRequest, _or_unreadable("symbol")]


class ObserveBatchRequest(Request):
    """Observations of several symbols, one entry a symbol, stored in one transaction; a batch holds at most 8,192 bars,
    books and values of context. A symbol that is refused is refused alone, in its place."""

    observations: Annotated[list[Observation], Field(min_length=1, max_length=MAX_SYMBOLS)]

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, body: Any) -> Any:
        """Refuse a batch of more than MAX_BATCH_RECORDS records before any of them is read."""
        sent = body.get("observations") if isinstance(body, dict) else None
        entries = [one for one in sent if isinstance(one, dict)] if isinstance(sent, list) else []
        parts = [one.get(kind) for one in entries for kind in ("bars", "books", "context")]
        records = sum(len(part) for part in parts if isinstance(part, list))
        if records > MAX_BATCH_RECORDS:
            raise PydanticCustomError(
                "too_long", f"{records:,} bars, books and values of context, at most {MAX_BATCH_RECORDS:,} a batch"
            )
        return body


def _books(sent: list[BookRecord]) -> Books | None:
    """Return the books in the order they became known, None where none were sent. Raises BadValues naming the level."""
    if not sent:
        return None
    levels = np.full((len(sent), 2, BOOK_LEVELS, 3), np.nan)
    for i, book in enumerate(sent):
        for s, (name, side) in enumerate((("bids", book.bids), ("asks", book.asks))):
            for j, level in enumerate(side):
                price, size, orders = (*level, None)[:3]
                if price is None or size is None or min(price, size) <= 0 or (orders or 0) < 0:
                    raise BadValues(
                        f"books.{i}.{name}.{j}: {level} is not a level: send a price and a size above 0, then "
                        "the number of orders or null. Nothing of this request was stored."
                    )
                levels[i, s, j] = price, size, np.nan if orders is None else orders
        if (wrong := book_fault(levels[i : i + 1])) is not None:
            raise BadValues(f"books.{i}: {wrong}. Nothing of this request was stored.")
    tapes = [{"order_flow": b.order_flow, "order_flow_fast": b.order_flow_fast} | b.tape for b in sent]
    tape = np.array([[each.get(name) for name in TAPE_FIELDS] for each in tapes], dtype=np.float64)
    known = np.array([book.known_at.timestamp() for book in sent])
    order = np.argsort(known, kind="stable")
    return Books(known[order], levels[order], tape[order])


def _feed(sent: list[ContextRecord]) -> ContextFeed | None:
    """Return the values of context in the order they became known, None where none were sent."""
    if not sent:
        return None
    ordered = sorted(sent, key=lambda record: record.known_at)
    return ContextFeed(
        np.array([record.known_at.timestamp() for record in ordered]),
        np.array([CONTEXT_INDEX[record.field] for record in ordered], dtype=np.int64),
        np.array([record.value for record in ordered], dtype=np.float64),
    )


class DecideRequest(Request):
    """One `symbol` or many `symbols`, decided for now: the clock of a market is not the caller's to set. Of many, one
    that is refused is refused alone, in its place. `view`: all
    fields of a decision, or the ones a trader needs."""

    symbol: Symbol | None = None
    symbols: Annotated[list[Symbol], Field(min_length=1, max_length=MAX_SYMBOLS)] | None = None
    view: Literal["brief", "full"] = "full"

    @model_validator(mode="before")
    @classmethod
    def _refuse_as_of(cls, body: Any) -> Any:
        """Refuse `as_of`, which no caller may set."""
        if isinstance(body, dict) and "as_of" in body:
            raise ValueError(
                "as_of is not taken: a decision is made for now, by the clock of its market. `bellwether replay` makes "
                "a stored one again, as it was"
            )
        return body

    @model_validator(mode="after")
    def _one_of(self) -> "DecideRequest":
        """Refuse both and neither of symbol and symbols."""
        if (self.symbol is None) == (self.symbols is None):
            raise ValueError("give exactly one of symbol and symbols")
        return self


class OutcomeRequest(Request):
    """What happened to a decision's event. `label` 1: the target came first; 0: the stop did, or time ran out. Results
    in basis points of the entry price."""

    decision_id: Name
    resolved_at: Moment
    label: Literal[0, 1]
    barrier: Literal["target", "stop", "time"]
    gross_bps: Number
    net_bps: Number
    cost_bps: Number


class OutcomeBatchRequest(Request):
    """Outcomes of several decisions, stored in one transaction and booked in this order. One that is refused is refused
    alone, in its place."""

    outcomes: Annotated[
        list[Annotated[OutcomeRequest, _or_unreadable("decision_id")]], Field(min_length=1, max_length=MAX_OUTCOMES)
    ]


class OutcomeCall(OneOrMany, OutcomeRequest):
    """What `/outcome` takes: one outcome, or a batch of them."""

    one, many, entries = OutcomeRequest, OutcomeBatchRequest, "outcomes"


class FillRequest(Request):
    """What a venue reported of the order of an emitted decision: `filled` at a price, or `rejected` for a reason. `id`
    is the venue's own id of the report, `at` the time by its clock. `exit`: it closed the position, or a part of it.
    `quantity` is a fraction of equity (left out: the whole size), `fee_bps` of this side, below 0 a rebate (left out:
    that of params.yaml costs)."""

    id: Name
    decision_id: Name
    at: Moment
    status: Literal["filled", "rejected"]
    price: Price | None = None
    reason: Text = ""
    quantity: Price | None = None
    fee_bps: Number | None = None
    exit: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _priced(self) -> "FillRequest":
        """Refuse a fill without a price and a rejection with one."""
        if (self.status == "filled") != (self.price is not None):
            raise ValueError("a filled order has a price, a rejected one has none")
        return self


class FeaturesRequest(Request):
    """The `symbol` whose newest row is asked for; `family`: of this model family only."""

    symbol: Symbol
    family: Name | None = None


class PredictRequest(Request):
    """One of four: `rows` in the order of the model's columns (see /models), `features` by name, for a model that looks
    back `windows` of its `steps` rows each, oldest first, or a `symbol`: its newest row, as /features answers it.
    null = missing."""

    family: Name
    rows: Annotated[list[list[Number | None]], Field(min_length=1, max_length=MAX_ROWS)] | None = None
    features: Annotated[list[dict[Name, Number | None]], Field(min_length=1, max_length=MAX_ROWS)] | None = None
    windows: Annotated[list[list[list[Number | None]]], Field(min_length=1, max_length=MAX_WINDOWS)] | None = None
    arm: Literal["champion", "challenger"] = "champion"
    symbol: Symbol | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "PredictRequest":
        """Refuse more or less than one of rows, features, windows and symbol."""
        if sum(given is not None for given in (self.rows, self.features, self.windows, self.symbol)) != 1:
            raise ValueError("give exactly one of rows, features and windows, or a symbol")
        return self


class Packed(Request):
    """An array bit for bit: its shape and the base64 of its little-endian float64 bytes in C order; NaN = missing."""

    shape: Annotated[list[Annotated[int, Field(strict=True, ge=1, le=MAX_ALONG)]], Field(min_length=1, max_length=3)]
    f8: str


class PackedInferenceRequest(Request):
    """A row a symbol for a family: (n, columns), or (n, steps, columns) where it looks back; arm → digest of the bundle
    that must predict."""

    family: Name
    digests: dict[Literal["champion", "challenger"], Name]
    columns: Annotated[list[Name], Field(min_length=1, max_length=MAX_ALONG)]
    rows: Packed


class PredictBatchRequest(Request):
    """All rows of one request of the decision service; an empty list tests whether the service is up."""

    inference_requests: Annotated[list[PackedInferenceRequest], Field(max_length=MAX_ROWS)]
