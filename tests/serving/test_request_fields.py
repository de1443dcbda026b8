"""Numbers and times of requests are read by compiled schemas; the same rules in plain Python are the oracle."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from pipelines.data.admission import LARGEST, SMALLEST_ABOVE_0
from serving.service.field_errors import field_errors
from serving.service.schemas import EARLIEST, LATEST, Amount, Moment, Number, Price


def starts_like_a_time(value):
    if not isinstance(value, datetime) and (not isinstance(value, str) or not re.match(r"\d{4}-", value)):
        raise PydanticCustomError("no_time", "this is not a time")
    return value


def in_range(at):
    try:
        inside = EARLIEST <= at <= LATEST
    except OverflowError:  # an offset beyond year 1 or 9999
        inside = False
    if not inside:
        raise PydanticCustomError("time_out_of_range", "a time lies between 1970-01-01 and 2200-01-01, both UTC")
    return at


def not_too_near_0(value):
    if 0 < abs(value) < SMALLEST_ABOVE_0:
        raise PydanticCustomError("too_near_0", "a price or a size is 0 or at least 1e-15")
    return value


PlainNumber = Annotated[FiniteFloat, Field(strict=True, ge=-LARGEST, le=LARGEST)]
PLAIN = {
    Moment: Annotated[AwareDatetime, BeforeValidator(starts_like_a_time), AfterValidator(in_range)],
    Number: PlainNumber,
    Amount: Annotated[PlainNumber, AfterValidator(not_too_near_0)],
    Price: Annotated[PlainNumber, Field(gt=0), AfterValidator(not_too_near_0)],
}
READERS = {compiled: (TypeAdapter(compiled), TypeAdapter(plain)) for compiled, plain in PLAIN.items()}

zones = st.one_of(st.just(UTC), st.integers(-86_340, 86_340).map(lambda s: timezone(timedelta(seconds=s // 60 * 60))))
edges = st.sampled_from([EARLIEST, LATEST]).flatmap(
    lambda at: st.tuples(st.integers(-2, 2), zones).map(
        lambda by: (at + timedelta(microseconds=by[0])).astimezone(by[1])
    )
)
times = st.one_of(edges, st.datetimes(timezones=zones), st.datetimes()).map(datetime.isoformat)
sizes = st.sampled_from([0.0, SMALLEST_ABOVE_0, LARGEST]).flatmap(
    lambda x: st.sampled_from([x, -x, x * (1 + 1e-15), -x * (1 + 1e-15), x * (1 - 1e-15), 5e-324])
)
odd = st.one_of(
    sizes, st.floats(), st.integers(), st.booleans(), st.none(), times, times.map(lambda text: text[1:]),
    st.text(max_size=8).map(lambda text: "2024-" + text), st.text(max_size=5), st.lists(st.none(), max_size=1),
    st.sampled_from(["2024-01-01", "1704067200", "2024-02-30T00:00:00Z"]),
    st.sampled_from(["2024-01-01T24:00:00Z", "٢٠٢٤-01-01T00:00:00Z"]),
)  # fmt: skip


def read(reader, text):
    """The value, or our words of what is wrong with it."""
    try:
        return repr(reader.validate_json(text))
    except ValidationError as error:
        return field_errors(error.errors(include_url=False, include_context=False))


@settings(max_examples=150, deadline=None)
@given(odd)
def test_a_field_is_read_and_refused_as_by_the_same_rules_in_python(value):
    text = json.dumps(value)
    for compiled, plain in READERS.values():
        assert read(compiled, text) == read(plain, text)
