"""What is wrong with the fields of a request, in our words: the field, the problem, and what to do about it."""

from collections.abc import Sequence
from typing import TypedDict

from pydantic_core import ErrorDetails

from pipelines.renamed_keys import renamed_key

_TIME = "send an ISO 8601 time with its zone, such as 2024-01-01T00:00:00Z"
_REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it; the API page at / lists the known fields",
    "finite_number": "send a finite number, or null where the field may be missing",
    "timezone_aware": "add the zone, such as 2024-01-01T00:00:00Z",
    "float_type": "send a number",
    "float_parsing": "send a number",
    "datetime_from_date_parsing": _TIME,
    "datetime_parsing": _TIME,
    "json_invalid": "send one valid JSON object",
    "no_time": _TIME,
    "time_out_of_range": "send a time within the range",
    "too_near_0": "send 0 or a number within the range",
    "no_symbol": "send the canonical name, such as BTC/USDT",
    "too_long": "send less at a time",
    "string_too_long": "send a shorter one",
    "string_pattern_mismatch": "leave control characters out",
    "greater_than_equal": "send a number within the range",
    "less_than_equal": "send a number within the range",
}


class FoundError(TypedDict):
    """Hold one error as pydantic reports it."""

    loc: Sequence[str | int]
    msg: str
    type: str


def field_errors(detail: Sequence[FoundError | ErrorDetails]) -> list[dict[str, str]]:
    """Return one entry an error: field, problem, remedy."""
    return [
        {
            "field": ".".join(str(part) for part in found["loc"]) or "body",
            "problem": found["msg"],
            "remedy": _remedy(found),
        }
        for found in detail
    ]


def sentence(fields: Sequence[dict[str, str]]) -> str:
    """Return the first three faults of `field_errors` in one sentence, and how many more there are."""
    error = "; ".join(f"{f['field']}: {f['problem']} ({f['remedy']})" for f in fields[:3])
    return error + (f"; and {len(fields) - 3} more" if len(fields) > 3 else "")


def _remedy(found: FoundError | ErrorDetails) -> str:
    """Return what to do about one error; a key of an earlier release is answered with its new name."""
    if found["type"] == "extra_forbidden" and found["loc"]:
        key = str(found["loc"][-1])
        if (new := renamed_key(key)) is not None:
            return f"`{key}` is called `{new}` since release 0.7: rename it"
    return _REMEDIES.get(found["type"], "see the API page at / for what this field takes")
