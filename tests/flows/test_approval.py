"""What a person is told and must say before a promotion by hand; tests/integration has the real Prefect."""

import pytest
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

from flows.promote import Approval, describe_gain


@pytest.mark.parametrize("said", [
    {}, {"approve": True}, {"approve": True, "name": "ann"}, {"approve": True, "name": "", "reason": "seen"},
    {"approve": True, "name": "ann", "reason": " \n"}, {"approve": False, "name": "\t", "reason": "no"},
    {"approve": True, "name": None, "reason": "seen"},
])  # fmt: skip
def test_nobody_for_no_reason_is_refused_by_the_server_and_by_the_flow(said):
    schema = Approval.with_initial_data(description="?").model_json_schema()
    assert validate(said, schema, raise_on_error=False)  # with which Prefect checks before it resumes
    with pytest.raises(ValidationError):
        Approval(**said)


def test_somebody_for_a_reason_is_heard_and_silence_does_not_approve():
    said = {"name": "ann", "reason": "read the evidence"}
    assert not validate(said, Approval.with_initial_data(description="?").model_json_schema(), raise_on_error=False)
    assert Approval(**said).approve is False


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (None, "there was none"),
        ({"value": None, "detail": "12 rows, needs 50", "n": 12}, "unknown (12 rows, needs 50), n = 12"),
        (
            {"value": 0.0123, "low": 0.004, "high": 0.02, "n": 1234, "detail": "in log loss", "threshold": "low > 0"},
            "+0.0123 in log loss, 95 % interval +0.0040 to +0.0200, n = 1,234",
        ),
    ],
)
def test_the_gain_is_told_with_its_interval_and_n(check, told):
    assert told in describe_gain(check)
