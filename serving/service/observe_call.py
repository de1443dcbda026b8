"""What `/observe` takes: one observation, or a batch of them; a batch of bars alone is read without a Bar for each.

Pydantic takes 5 µs a bar, most of it for the Bar. msgspec reads a body of which nothing is wrong; where anything is,
pydantic reads it again and says what.
"""

from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipelines.contracts import BAR_WIDTH
from pipelines.data.admission import LARGEST, SMALLEST_ABOVE_0
from serving.service.schemas import (
    MAX_BARS,
    MAX_BATCH_RECORDS,
    MAX_SYMBOLS,
    VALUES,
    Moment,
    ObserveBatchRequest,
    ObserveRequest,
    OneOrMany,
    Symbol,
)


class _SentBar(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A Bar as JSON has it."""

    open_time: str
    open: float
    high: float
    low: float
    close: float
    volume: float | None = None
    trades: float | None = None
    taker_buy_volume: float | None = None
    half_spread: float | None = None


_None = Annotated[list[None], msgspec.Meta(max_length=0)]


class _SentBars(msgspec.Struct, forbid_unknown_fields=True):
    """An ObserveRequest of bars alone as JSON has it."""

    symbol: str
    bars: list[_SentBar]
    books: _None = []
    context: _None = []


class _SentBatch(msgspec.Struct, forbid_unknown_fields=True):
    """An ObserveBatchRequest of bars alone as JSON has it."""

    observations: list[_SentBars]


_SENT_BATCH = msgspec.json.Decoder(_SentBatch)
_AS_MOMENT, _AS_SYMBOL = TypeAdapter[datetime](Moment), TypeAdapter[str](Symbol)


@lru_cache(4096)  # the bars of all symbols open at the same times
def _seconds(moment: str) -> float:
    """Return a Moment as epoch seconds. Raises ValidationError."""
    return _AS_MOMENT.validate_python(moment).timestamp()


@lru_cache(4096)
def _symbol(name: str) -> str:
    """Return a Symbol. Raises ValidationError."""
    return _AS_SYMBOL.validate_python(name)


def batch_of_bars(body: bytes) -> ObserveBatchRequest | None:
    """Return a batch of bars alone, of which nothing is wrong, in a quarter of the time that a Bar for each takes.

    None for every other body: an ObserveCall says what it is, or which field is wrong.
    """
    try:
        sent = _SENT_BATCH.decode(body).observations
        names = [_symbol(one.symbol) for one in sent]
        rows = np.array(
            [(_seconds(bar.open_time), *VALUES(bar)) for one in sent for bar in one.bars], dtype=np.float64
        ).reshape(-1, BAR_WIDTH)
    except (msgspec.DecodeError, UnicodeDecodeError, ValidationError):
        return None
    counts, sizes = [len(one.bars) for one in sent], np.abs(rows[:, 1:])
    outside = (sizes > LARGEST) | ((sizes > 0.0) & (sizes < SMALLEST_ABOVE_0))  # NaN, what was left out, is neither
    if not 0 < len(sent) <= MAX_SYMBOLS or len(rows) > MAX_BATCH_RECORDS or outside.any():
        return None
    if not all(0 < n <= MAX_BARS for n in counts):
        return None
    parts = np.split(rows, np.cumsum(counts)[:-1])
    made = [ObserveRequest.of_rows(name, part) for name, part in zip(names, parts, strict=True)]
    return ObserveBatchRequest.model_construct(observations=made)


class ObserveCall(OneOrMany, ObserveRequest):
    """What `/observe` takes: one observation, or a batch of them."""

    one, many, entries = ObserveRequest, ObserveBatchRequest, "observations"

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **how: Any) -> Any:
        """Return what a body holds: an ObserveBatchRequest, or the observation. Raises ValidationError."""
        if isinstance(json_data, bytes) and (batch := batch_of_bars(json_data)) is not None:
            return batch
        return super().model_validate_json(json_data, **how)
