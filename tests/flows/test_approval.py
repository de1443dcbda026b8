"""What a person sees and must enter before a promotion by hand; tests/integration has the real Prefect."""

import pytest
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

from flows.promote import Approval, describe_gain


@pytest.mark.parametrize("entered", [
    {}, {"approve": True}, {"approve": True, "name": "ann"}, {"approve": True, "name": "", "reason": "seen"},
    {"approve": True, "name": "ann", "reason": " \n"}, {"approve": False, "name": "\t", "reason": "no"},
    {"approve": True, "name": None, "reason": "seen"},
])  # fmt: skip
def test_an_approval_without_name_or_reason_is_refused_by_the_server_and_by_the_flow(entered):
    schema = Approval.with_initial_data(description="?").model_json_schema()
    assert validate(entered, schema, raise_on_error=False)  # with which Prefect checks before it resumes
    with pytest.raises(ValidationError):
        Approval(**entered)


def test_a_name_and_a_reason_are_valid_and_do_not_approve_by_themselves():
    entered = {"name": "ann", "reason": "read the evidence"}
    assert not validate(entered, Approval.with_initial_data(description="?").model_json_schema(), raise_on_error=False)
    assert Approval(**entered).approve is False


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (None, "there was none"),
        ({"value": None, "detail": "12 rows, needs 50", "n": 12}, "unknown (12 rows, needs 50), n = 12"),
        (
            {"value": 0.0123, "low": 0.004, "high": 0.02, "n": 1234, "detail": "in log loss", "threshold": "low > 0"},
            "+0.0123 in log loss, 95 % interval +0.0040 to +0.0200, n = 1,234",
        ),
    ],
)
def test_the_gain_is_described_with_its_interval_and_n(check, expected):
    assert expected in describe_gain(check)
