"""The service level: what is met, late and missed, what survives a restart, what a day and a month add up to."""

from datetime import UTC, datetime, timedelta

import pytest

from serving.state.service_level import SERVICE_LEVEL_FILE, Level, ServiceLevel, stored_report

NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)
AT, BAR = NOON.timestamp(), 900.0
SYMBOL = "SIM/USDT"


@pytest.fixture
def counted():
    return []


@pytest.fixture
def level(tmp_path, counted):
    """A service level whose symbol has its first decision, at the close 0."""
    made = ServiceLevel(tmp_path / SERVICE_LEVEL_FILE, lambda result, n: counted.append((result, n)))
    assert made.decided([(SYMBOL, 0.0)], AT) == []
    return made


def today(level):
    return level.over("day", NOON)


def test_nothing_counts_before_the_first_decision_of_a_symbol(tmp_path):
    level = ServiceLevel(tmp_path / "none.json", lambda *_: None)
    level.closed("NEW/USDT", [BAR, 2 * BAR], AT)
    assert (today(level), today(level).share, today(level).budget_used) == (Level(), None, None)


def test_a_decision_within_two_seconds_of_the_first_call_is_met_and_one_after_it_is_late(level, counted):
    level.offered(SYMBOL, 840.0, AT)
    level.closed(SYMBOL, [BAR], AT)
    assert level.decided([(SYMBOL, BAR)], AT + 2.0) == [2.0]
    level.offered(SYMBOL, 1740.0, AT + 10.0)  # refused: the store was out
    level.offered(SYMBOL, 1740.0, AT + 13.0)
    level.closed(SYMBOL, [2 * BAR], AT + 13.0)
    assert level.decided([(SYMBOL, 2 * BAR)], AT + 13.5) == [3.5]
    assert level.decided([(SYMBOL, 2 * BAR)], AT + 14.0) == []  # a second decision on it, in another tier
    assert today(level) == Level(met=1, late=1)
    assert counted == [("met", 1), ("late", 1)]
    assert today(level).budget_used == pytest.approx(500.0)


def test_a_close_without_a_decision_is_missed_when_the_next_one_comes_and_so_are_those_behind_a_newer_one(level):
    level.closed(SYMBOL, [BAR], AT)
    level.closed(SYMBOL, [2 * BAR, 3 * BAR, 4 * BAR], AT + 5.0)
    assert today(level) == Level(missed=3)
    assert level.decided([(SYMBOL, BAR)], AT + 6.0) == []
    assert level.decided([(SYMBOL, 4 * BAR)], AT + 6.0) == [1.0]


def test_bars_that_a_venue_delivers_late_are_due_a_base_bar_after_their_close(level):
    level.offered(SYMBOL, 840.0, AT)
    level.closed(SYMBOL, [BAR], AT, latest=AT - 30.0)
    assert level.decided([(SYMBOL, BAR)], AT + 0.5) == [30.5]
    assert today(level) == Level(late=1)


def test_counts_and_what_waits_survive_a_restart_and_closes_that_fell_meanwhile_are_missed(level, tmp_path):
    level.closed(SYMBOL, [BAR], AT)
    level.decided([(SYMBOL, BAR)], AT + 0.1)
    level.closed(SYMBOL, [2 * BAR], AT + 1.0)
    assert level.unsaved
    level.save()
    assert not level.unsaved
    again = ServiceLevel(tmp_path / SERVICE_LEVEL_FILE, lambda *_: None)
    again.fell(SYMBOL, [0.0, BAR, 2 * BAR], AT + 2.0)  # what was counted, or waits, did not fall meanwhile
    assert today(again) == Level(met=1)
    assert again.decided([(SYMBOL, 2 * BAR)], AT + 4.0) == [3.0]
    again.fell(SYMBOL, [2 * BAR, 3 * BAR, 4 * BAR], AT + 9.0)
    assert today(again) == Level(met=1, late=1, missed=2)
    again.save()
    report = stored_report(tmp_path, NOON)
    assert report["windows"]["day"] == again.over("day", NOON).to_dict()
    assert report["windows"]["day"]["due"] == 4
    (tmp_path / SERVICE_LEVEL_FILE).write_text('{"days": ')
    assert stored_report(tmp_path, NOON)["windows"]["day"]["share"] is None


def test_a_month_has_thirty_days_and_older_ones_are_forgotten(level):
    for back in (31, 30, 29, 1, 0):
        at = AT - back * 86_400.0
        level.closed(SYMBOL, [BAR * (40 - back)], at)
        level.decided([(SYMBOL, BAR * (40 - back))], at + 1.0)
    assert level.over("day", NOON) == Level(met=1)
    assert level.over("30d", NOON) == Level(met=3)
    assert level.over("30d", NOON + timedelta(days=30)) == Level()
