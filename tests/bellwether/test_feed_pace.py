"""The pace of market time, and what the feed says of itself: it stands while it waits, and a feed that hangs does not
hide it."""

import os
from datetime import UTC, datetime

import pytest

from bellwether.operations.feed_pace import Pace
from bellwether.operations.feed_report import BEAT_S, RATE_S, SOURCE, FeedReport
from serving.state.feed_state import read_feed_state

T, STEP = 1_704_067_200.0, 900.0


class Clock:
    """Tell monotonic seconds that the test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(900.0, STEP, clock)


def test_a_bar_of_a_quarter_hour_takes_a_second_at_the_default_speed_and_the_first_none(pace, clock):
    assert pace.wait_s(T) == 0.0
    pace.delivered(T)
    assert pace.wait_s(T + STEP) == 1.0
    clock.now += 0.4
    assert pace.wait_s(T + STEP) == pytest.approx(0.6)
    clock.now += 0.6
    pace.delivered(T + STEP)
    assert (pace.wait_s(T + 2 * STEP), pace.lag_bars()) == (1.0, 0.0)


def test_a_delay_is_caught_up_and_a_service_that_is_slower_sets_the_pace(pace, clock):
    pace.delivered(T)
    clock.now += 1.5  # half a bar late
    pace.delivered(T + STEP)
    assert pace.wait_s(T + 2 * STEP) == pytest.approx(0.5)
    for i in range(2, 30):  # two seconds a bar, where one is wanted
        clock.now += 2.0
        pace.delivered(T + i * STEP)
    assert pace.lag_bars() == pytest.approx(Pace.MOST_BEHIND - 1.0)
    clock.now += 0.1
    assert pace.wait_s(T + 30 * STEP) == 0.0


def test_a_closed_market_takes_no_time_and_one_that_stood_catches_nothing_up(pace, clock):
    pace.delivered(T)
    assert pace.wait_s(T + 48 * 3600.0) == 1.0
    clock.now += 600.0
    pace.stand()
    assert (pace.wait_s(T + STEP), pace.lag_bars()) == (0.0, 0.0)
    pace.delivered(T + STEP)
    assert pace.wait_s(T + 2 * STEP) == 1.0


@pytest.fixture
def report(tmp_path, clock):
    return FeedReport(tmp_path, clock)


def test_a_home_in_which_no_feed_ever_ran_has_no_speed(report, tmp_path):
    report.write()
    state = read_feed_state(tmp_path)
    assert (state.speed, state.stopped, state.pid, state.market_time) == (0.0, True, os.getpid(), None)


def test_market_time_stands_until_the_first_close_and_a_later_process_knows_the_speed(report, tmp_path, clock):
    report.begin("simulator", 900.0, paced=True, longest_call_s=1.0)
    assert report.state().stands(datetime.now(UTC))
    report.delivered(T, 60)
    state = report.state()
    assert (state.held, state.stopped, state.market_time.timestamp()) == (None, False, T)
    assert state.bars_s == pytest.approx(60 / RATE_S)
    report.hold("a retrain runs")
    assert report.state().held == "a retrain runs"
    report.idle("a person stopped it")
    report.write()
    assert not read_feed_state(tmp_path).is_alive(datetime.now(UTC))
    after = FeedReport(tmp_path, clock)
    assert (after.speed, after.source, after.market_time.timestamp()) == (900.0, "simulator", T)


def test_market_time_of_a_paced_feed_stands_while_a_call_lasts_longer_than_a_bar(report, clock):
    report.begin("simulator", 900.0, paced=True, longest_call_s=1.0)
    report.delivered(T, 15)
    with report.calling():
        clock.now += 0.9
        assert report.state().held is None
        clock.now += 60.0
        assert report.state().held == "it waits for the decision service"
    assert report.state().held is None


def test_market_time_stands_while_a_long_history_is_read_before_the_first_close(report, clock):
    report.begin("simulator", 900.0, paced=True, longest_call_s=1.0)
    with report.calling(SOURCE):
        clock.now += 60.0
        assert report.state().held == "it begins"


def test_a_market_that_trades_now_never_stands(report, clock):
    report.begin("exchange", 1.0, paced=False, longest_call_s=900.0)
    report.hold("the decision service does not answer")
    assert report.state().held is None


def test_a_loop_that_hangs_holds_nothing(report, clock):
    report.begin("files", 900.0, paced=True, longest_call_s=1.0)
    report.hold("a retrain runs")
    clock.now += BEAT_S + 1.0
    assert report.state().held is None


def test_the_state_is_written_by_itself_and_says_that_the_process_ended(report, tmp_path):
    with report.written():
        report.begin("simulator", 900.0, paced=True, longest_call_s=1.0)
    state = read_feed_state(tmp_path)
    assert (state.stopped, state.held) == (True, "the feed process ended")
