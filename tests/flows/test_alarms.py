"""One alarm while a condition lasts, also where two watches raised it at the same time."""

from datetime import UTC, datetime, timedelta

import pytest

from flows.support.alarms import end_alarm, keep_alarm, open_alarms
from pipelines.store import Store

START, HOUR = datetime(2024, 6, 1, tzinfo=UTC), timedelta(hours=1)


@pytest.fixture
def store(tmp_path):
    """Return a store with three open alarms of drift of the validator, and one of each other kind and family."""
    opened = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    for hour in range(3):
        opened.raise_alarm("drift", "warning", f"validator: score {hour}", START + hour * HOUR)
    opened.raise_alarm("loss", "warning", "validator: edge gone", START)
    opened.raise_alarm("drift", "warning", "pattern: score 9", START)
    yield opened
    opened.close()


def details(store):
    return [alarm.detail for alarm in store.alarms()]


def test_of_several_open_alarms_the_newest_is_kept_and_the_others_are_cleared(store):
    assert keep_alarm(store, "drift", "warning", "validator", "score 7", START + 5 * HOUR) == START + 2 * HOUR
    (kept,) = open_alarms(store, "drift", "validator")
    assert (kept.at, kept.detail) == (START + 2 * HOUR, "validator: score 7")
    assert details(store) == ["validator: score 7", "validator: edge gone", "pattern: score 9"]
    assert keep_alarm(store, "drift", "warning", "validator", "score 8", START + 6 * HOUR) == START + 2 * HOUR
    assert len(store.alarms(open_only=False)) == 5


def test_a_condition_that_is_over_leaves_no_alarm_of_its_kind(store):
    end_alarm(store, "drift", "validator", START + 5 * HOUR)
    assert details(store) == ["validator: edge gone", "pattern: score 9"]
    assert keep_alarm(store, "drift", "warning", "validator", "score 3", START + 6 * HOUR) == START + 6 * HOUR
