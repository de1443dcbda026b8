"""Reasons to retrain: schedule, age, drift, loss; the overdue alarm."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.contracts import Estimate
from pipelines.errors import BadTimes
from pipelines.monitoring.drift import BlockDrift, DriftResult
from pipelines.monitoring.loss import LossDrift, unwatched
from pipelines.monitoring.triggers import TriggerReason, is_due, last_finished, overdue, retrain_reasons, seen_until
from pipelines.settings import load_params
from pipelines.store import RetrainRequest

PARAMS = load_params().retrain.model_copy(update={"interval_days": 7})
NOW = datetime(2025, 1, 20, tzinfo=UTC)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def drift(alarm: bool | None) -> DriftResult:
    blocks = tuple(
        BlockDrift(
            i * 100, 100, score, 4.0, {"vol": 1.0}, {"vol": 100}, ("vol",), ("vol",) if alarm and score > 4.0 else (),
            (), {"vol": 0.0}, ("flow",) if alarm and score > 6.0 else (), score, 5.0,
        )
        for i, score in enumerate((1.0, 5.5, 6.5))
    )  # fmt: skip
    onsets = (100, 200) if alarm else (None, None)
    return DriftResult(alarm, "drift: of the detector", 300, blocks, alarm, "flow 0% → 100%", *onsets)


def loss(alarm: bool | None) -> LossDrift:
    gain = Estimate(-0.01, -0.02, -0.001, 90)
    return replace(unwatched("edge gone"), alarm=alarm, gain=gain, p=0.01, alpha=0.117, expected=0.018)


def kinds(*args) -> list[str]:
    return [reason.kind for reason in retrain_reasons(NOW, *args, PARAMS)]


@pytest.mark.parametrize(("days", "expected"), [(6.99, []), (7.0, ["schedule"])])
def test_the_schedule_is_a_reason_exactly_when_the_interval_is_over(days: float, expected: list[str]) -> None:
    assert kinds(ago(days), ago(days), None, None) == expected


def test_never_trained_is_a_reason_and_an_unserved_family_has_no_age() -> None:
    assert kinds(None, None, None, None) == ["schedule"]


def test_recent_retrains_on_old_data_are_found_by_age() -> None:
    assert kinds(ago(1), ago(13.9), None, None) == []
    assert kinds(ago(1), ago(14), None, None) == ["age"]


def test_an_alarm_is_a_reason_and_an_unjudged_result_is_not() -> None:
    fresh = (ago(1), ago(1))
    assert kinds(*fresh, drift(True), loss(True)) == ["drift", "missing", "loss"]
    assert kinds(*fresh, drift(False), loss(False)) == []
    assert kinds(*fresh, drift(None), loss(None)) == []


def test_reasons_have_the_numbers_they_were_decided_by() -> None:
    by_kind = {r.kind: r for r in retrain_reasons(NOW, ago(9), ago(15), drift(True), loss(True), PARAMS)}
    assert list(by_kind) == ["schedule", "age", "drift", "missing", "loss"]
    assert by_kind["schedule"].numbers == {"days": 9.0, "interval_days": 7.0}
    assert by_kind["age"].numbers == {"days": 15.0, "limit_days": 14.0}
    assert by_kind["drift"].numbers == {"score": 5.5, "threshold": 4.0, "blocks": 3.0, "blocks_in_alarm": 2.0}
    assert by_kind["missing"].numbers == {"score": 6.5, "threshold": 5.0}
    assert by_kind["loss"].numbers == {"gain": -0.01, "expected": 0.018, "p": 0.01, "blocks": 90.0}
    assert "9.0 days" in by_kind["schedule"].detail


def test_no_retrain_in_n_intervals_alarms_and_counts_from_the_start_when_none_ever_ran() -> None:
    assert overdue(NOW, ago(20.9), ago(100), 3, PARAMS) is None
    late = overdue(NOW, ago(21), ago(100), 3, PARAMS)
    assert late is not None
    assert (late.kind, late.numbers) == ("overdue", {"days": 21.0, "limit_days": 21.0})
    assert overdue(NOW, None, ago(5), 3, PARAMS) is None
    assert overdue(NOW, None, ago(30), 3, PARAMS) is not None


def test_naive_and_future_times_are_refused() -> None:
    with pytest.raises(BadTimes, match="timezone"):
        retrain_reasons(NOW, datetime(2025, 1, 1), None, None, None, PARAMS)  # noqa: DTZ001
    with pytest.raises(BadTimes, match="lies after now"):
        retrain_reasons(NOW, ago(1), ago(-1), None, None, PARAMS)


def test_a_condition_that_lasts_is_answered_by_one_retrain_and_the_schedule_by_each() -> None:
    drifted, due = TriggerReason("drift", "far", {}), TriggerReason("schedule", "7 days", {})
    assert is_due(drifted, ago(1), None)
    assert is_due(drifted, ago(1), ago(2))
    assert not is_due(drifted, ago(2), ago(1))
    assert is_due(due, ago(2), ago(1))


def test_a_champion_that_cannot_be_watched_is_a_reason() -> None:
    (reason,) = retrain_reasons(NOW, ago(1), ago(1), None, None, PARAMS, "INSUFFICIENT_DATA: champion predates 0.8")
    assert (reason.kind, reason.detail) == ("predates", "INSUFFICIENT_DATA: champion predates 0.8")


def request(state: str, finished: datetime | None) -> RetrainRequest:
    return RetrainRequest(1, "validator", "drift", ago(30), state, None, None, finished, "")


def test_the_last_retrain_is_the_newest_that_finished_and_a_failed_one_is_none() -> None:
    assert last_finished([]) is None
    assert last_finished([request("done", ago(9)), request("done", ago(2)), request("failed", ago(1))]) == ago(2)
    assert last_finished([request("running", None)]) is None


def test_conditions_are_answered_up_to_the_request_of_the_newest_finished_retrain() -> None:
    assert seen_until([]) is None
    older = replace(request("done", ago(8)), at=ago(9))
    failed, running = replace(request("failed", ago(3)), at=ago(4)), replace(request("running", None), at=ago(1))
    assert seen_until([running, failed]) is None
    assert seen_until([running, failed, replace(request("done", ago(5)), at=ago(6)), older]) == ago(6)
