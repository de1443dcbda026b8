"""A batch of bars alone is read without a Bar for each: to the bit as with one, and nothing else is read that way."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.contracts import BAR_FIELDS
from serving.service.observe_call import ObserveCall, batch_of_bars
from serving.service.schemas import MAX_BARS, MAX_BATCH_RECORDS, MAX_SYMBOLS, ObserveBatchRequest, ObserveRequest

BAR = {"open_time": "2025-01-01T00:00:00Z", "open": 1.5, "high": 2, "low": 1, "close": 1.25, "volume": 0.0}
TIMES = (
    "2025-01-01T00:00:00Z", "2025-01-01T00:00:00+00:00", "2025-01-01 01:00:00+01:00", "2025-01-01T00:00Z",
    "2025-01-01T00:00:00.1234567Z", "2025-01-01T00:00:00.9999999Z", "2025-01-01T00:00:00", "2025-01-01",
    "1969-12-31T23:59:59Z", "2200-01-02T00:00:00Z", "2025-W01-1T00:00:00Z", "1735689600", "", 1735689600, None,
)  # fmt: skip
NUMBERS = (0, -0.0, 1, 0.1, 5e-324, 1e-30, 1e-300, -1e-30, 1e18, 1e300, 1e400, 2**70, -1, True, "1", None, [1], {})


def batch(*bars, symbol="A/USDT", **more):
    return {"observations": [{"symbol": symbol, "bars": list(bars), **more}]}


def bytes_of(body):
    return json.dumps(body).replace("Infinity", "1e400").encode()


def by_pydantic(body):
    """What pydantic alone makes of a body: the batch, or None where it or one of its entries is refused."""
    try:
        request = super(ObserveCall, ObserveCall).model_validate_json(body)
    except ValidationError:
        return None
    is_batch = isinstance(request, ObserveBatchRequest)
    return request if is_batch and all(isinstance(one, ObserveRequest) for one in request.observations) else None


def as_read(request):
    return [(one.symbol, one.matrix().tobytes(), one.records()) for one in request.observations]


def check(body):
    """What is read without a Bar is what pydantic reads; return whether it was."""
    fast, slow = batch_of_bars(body), by_pydantic(body)
    if fast is not None:
        assert slow is not None, body
        assert as_read(fast) == as_read(slow)
    return fast is not None


FIELDS = {name: st.sampled_from(NUMBERS) | st.floats(allow_nan=False, allow_infinity=False) for name in BAR_FIELDS[1:]}


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"open_time": st.sampled_from(TIMES), **FIELDS, "colour": st.just(1)}
        ).map(lambda sent: BAR | sent),
        min_size=1, max_size=3,
    ),
    st.sampled_from(["A/USDT", "a-usdt", "", "A", "A\u0000/USDT", "Ä/USDT", 7, None]),
)  # fmt: skip
def test_whatever_a_batch_holds_both_ways_read_the_same(bars, symbol):
    check(bytes_of(batch(*bars, symbol=symbol)))


@pytest.mark.parametrize("moment", TIMES)
def test_times_are_those_of_pydantic(moment):
    check(bytes_of(batch({**BAR, "open_time": moment})))


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_those_of_pydantic(number):
    check(bytes_of(batch({**BAR, "low": number})))
    check(bytes_of(batch({**BAR, "trades": number})))


def test_bars_alone_are_read_without_a_bar_for_each():
    assert check(bytes_of(batch(BAR)))
    assert check(bytes_of(batch(BAR, {**BAR, "trades": None}, books=[], context=[])))
    read = ObserveCall.model_validate_json(bytes_of(batch(BAR)))
    assert isinstance(read, ObserveBatchRequest)
    assert read.observations[0].bars == []
    assert np.isnan(read.observations[0].matrix()[0, -1])


@pytest.mark.parametrize(
    "body",
    [
        {"symbol": "A/USDT", "bars": [BAR]},
        {"observations": []},
        batch(),
        batch(BAR, context=[{"field": "funding_rate", "known_at": BAR["open_time"], "value": 0.0}]),
        batch(BAR, extra=1),
        {**batch(BAR), "extra": 1},
        batch(*[BAR] * (MAX_BARS + 1)),
        {"observations": [{"symbol": f"A{i}/USDT", "bars": [BAR]} for i in range(MAX_SYMBOLS + 1)]},
        {"observations": [{"symbol": f"A{i}/USDT", "bars": [BAR] * (MAX_BATCH_RECORDS // 8)} for i in range(9)]},
    ],
    ids=["one", "none", "no bars", "context", "an unknown field", "an unknown field of the batch", "too many bars",
         "too many symbols", "too many of all"],
)  # fmt: skip
def test_everything_else_is_left_to_pydantic(body):
    assert batch_of_bars(bytes_of(body)) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"observations":[{"symbol":"\xff"}]}',
        b'{"observations":[{"symbol":"\\ud800"}]}',
    ],
)
def test_what_is_no_json_is_left_to_pydantic(body):
    assert batch_of_bars(body) is None
