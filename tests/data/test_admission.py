"""One rule for bars of a file and bars observed, and the collar around the newest range."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import BAR_FIELDS, CLOSE, HALF_SPREAD, HIGH, LOW, OPEN, OPEN_TIME, TAKER_BUY, VOLUME
from pipelines.data import admission, collar
from pipelines.data.calendars import CALENDARS
from pipelines.data.quality import REASONS, assess
from pipelines.data.schemas import to_frame
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape, BadTimes, BadValues
from pipelines.market_params import QualityParams
from serving.service.schemas import Bar

MINUTES = Grid("1m")
START = 1_704_067_200.0
NOW = datetime(2024, 1, 3, tzinfo=UTC)
RULES = QualityParams()


def market(n=400, seed=0, step=60.0, sigma=1e-3):
    """Return (n, 9) bars of a seeded random walk around 100."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, sigma, n)))
    opened = np.r_[100.0, close[:-1]]
    high, low = np.maximum(opened, close) * 1.0002, np.minimum(opened, close) * 0.9998
    volume = 1.0 + rng.random(n)
    times = START + step * np.arange(n)
    return np.column_stack([times, opened, high, low, close, volume, np.full(n, 9.0), volume / 2, np.full(n, 0.01)])


def verdict_of_file(rows, grid=MINUTES):
    """Return row number → reason of the rows that a check of a file would quarantine."""
    report = assess(to_frame(rows, grid, None), grid, NOW)
    return report.quarantined["reason"].to_dict()


def verdict_of_observe(rows, grid=MINUTES):
    """Return what observe raises of a request with these bars; None where it takes them."""
    try:
        admission.require(rows, grid, NOW - admission.CLOCK_SKEW, "SIM/USDT")
    except (BadTimes, BadValues) as error:
        return error
    return None


DAMAGE = {  # kind → (field, value or factor of it)
    "nan": st.sampled_from([OPEN, HIGH, LOW, CLOSE]).map(lambda f: (f, lambda v: np.nan)),
    "infinite": st.sampled_from(range(1, 9)).map(lambda f: (f, lambda v: np.inf)),
    "zero price": st.sampled_from([OPEN, HIGH, LOW, CLOSE]).map(lambda f: (f, lambda v: 0.0)),
    "sign": st.sampled_from(range(1, 9)).map(lambda f: (f, lambda v: -v)),
    "high": st.just((HIGH, lambda v: v * 0.9)),
    "low": st.just((LOW, lambda v: v * 1.1)),
    "taker": st.just((TAKER_BUY, lambda v: v * 1e3)),
    "spread": st.just((HALF_SPREAD, lambda v: 1e4)),
    "too large": st.sampled_from([HIGH, VOLUME]).map(lambda f: (f, lambda v: 1e19)),
    "too small": st.sampled_from([LOW, VOLUME, HALF_SPREAD]).map(lambda f: (f, lambda v: 1e-18)),
    "between bars": st.floats(0.5, 59.5).map(lambda s: (OPEN_TIME, lambda v: v + s)),
    "future": st.just((OPEN_TIME, lambda v: v + 10 * 86_400.0)),
    "long ago": st.just((OPEN_TIME, lambda v: -v)),
    "spike": st.floats(1.6, 1e7).map(lambda k: (HIGH, lambda v: v * k)),
    "cent": st.floats(1.6, 1e7).map(lambda k: (LOW, lambda v: v / k)),
    "harmless": st.sampled_from([VOLUME, HIGH]).map(lambda f: (f, lambda v: v * 1.0001)),
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_observe_refuses_or_holds_back_a_check_quarantines_and_the_other_way_round(data):
    rows = market()
    kind = data.draw(st.sampled_from(sorted(DAMAGE)))
    field, spoil = data.draw(DAMAGE[kind])
    at = data.draw(st.integers(300, 399))
    rows[at, field] = spoil(rows[at, field])
    observed = verdict_of_observe(rows[at : at + 1])
    held = False
    if observed is None:
        before = collar.Recent(rows[at - 240 : at], 240, np.nan)
        held = bool(collar.outside(rows[at : at + 1], before, RULES).found[0])
    in_file = verdict_of_file(rows)
    assert set(in_file) == ({at} if observed or held else set())
    if observed is not None:
        raised = {"time": BadTimes, "value": BadValues}
        assert type(observed) in {raised[rule.of] for rule in admission.RULES if rule.code == in_file[at]}
        assert str(observed).startswith("bars.0.")
        assert str(observed).endswith("Nothing of this request was stored.")
    elif held:
        assert in_file == {at: "COLLAR"}


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(BAR_FIELDS[1:]))
def test_what_the_request_itself_refuses_no_file_brings_in(value, field):
    bar = {"open": 100.0, "high": 101.0, "low": 99.0, "close": 100.0, "volume": 5.0, "open_time": "2024-01-01T00:00Z"}
    try:
        Bar(**(bar | {field: value}))
    except ValueError:
        rows = market(3)
        rows[1, BAR_FIELDS.index(field)] = value
        assert admission.reasons(rows, MINUTES, NOW)[1] != ""


def test_every_code_is_a_reason_of_the_quality_report():
    assert set(admission.CODES) < set(REASONS)
    assert len(set(REASONS)) == len(REASONS)


def test_a_refusal_names_the_first_bad_row_and_its_symbol():
    rows = market(6)
    rows[4, HIGH], rows[2, OPEN_TIME] = 1.0, rows[2, OPEN_TIME] + 1.0
    with pytest.raises(
        BadTimes, match=r"bars\.2\.open_time: .* opens no bar of 1m bars.*, which SIM/USDT has\. Nothing"
    ):
        admission.require(rows, MINUTES, NOW, "SIM/USDT")


def test_rows_out_of_order_and_shapes_are_refused():
    with pytest.raises(BadTimes, match=r"bars\.1\.open_time: .* is not after the bar before; sort them"):
        admission.require(market(4)[::-1], MINUTES, NOW)
    with pytest.raises(BadShape, match="expected"):
        admission.require(market(4)[:, :5], MINUTES, NOW)


def test_a_bar_may_close_a_little_ahead_of_our_clock_in_a_request_and_not_in_a_file():
    rows = market(2)
    at = datetime.fromtimestamp(rows[1, OPEN_TIME] + 57.0, UTC)
    admission.require(rows, MINUTES, at)
    assert admission.reasons(rows, MINUTES, at).tolist() == ["", "FUTURE"]
    with pytest.raises(BadTimes, match="has not closed yet"):
        admission.require(rows, MINUTES, at - timedelta(seconds=3))


@pytest.mark.parametrize(("step", "name"), [(3600.0, "1h"), (900.0, "15m"), (86_400.0, "1d")])
def test_bars_of_another_timeframe_are_refused_by_name(step, name):
    with pytest.raises(BadTimes, match=rf"the bars are {name} apart, SIM/USDT holds bars of 1m\. .*`bellwether run`"):
        admission.require(market(5, step=step), MINUTES, datetime(2025, 1, 1, tzinfo=UTC), "SIM/USDT")


def test_finer_bars_are_refused_by_name_and_single_ones_by_those_before_them():
    with pytest.raises(BadTimes, match="the bars are 1m apart, SIM/USDT holds bars of 15m"):
        admission.require(market(5), Grid("15m"), NOW, "SIM/USDT")
    hours = market(6, step=3600.0)
    admission.require(hours[:3], MINUTES, NOW)  # a quiet market may have left two equal gaps
    with pytest.raises(BadTimes, match="the bars are 1h apart"):
        admission.require(hours[5:], MINUTES, NOW, opens_before=tuple(hours[:5, OPEN_TIME]))


def test_gaps_nights_and_short_last_bars_are_no_other_timeframe():
    rows = market(400)
    admission.require(rows[[0, 3, 7, 8, 20, 21, 30, 36]], MINUTES, NOW)
    shares = Grid("1h", CALENDARS["us-equity"])
    opens = shares.opens(np.arange(shares.slot(1_704_205_800.0), shares.slot(1_704_205_800.0) + 20))
    hourly = market(20)
    hourly[:, OPEN_TIME] = opens
    admission.require(hourly, shares, datetime(2024, 6, 1, tzinfo=UTC))


# ---- the collar


@pytest.mark.parametrize("at", [2, 35, 300, 399])
@pytest.mark.parametrize(("field", "factor"), [(HIGH, 1e6), (HIGH, 1.7), (LOW, 1e-3), (LOW, 0.6)])
def test_an_isolated_spike_of_a_file_is_quarantined_wherever_it_stands(at, field, factor):
    rows = market()
    rows[at, field] *= factor
    assert verdict_of_file(rows) == {at: "COLLAR"}


def test_a_spike_does_not_hide_the_next_one():
    rows = market()
    for at, factor in ((100, 1e6), (101, 1e5), (150, 3.0), (200, 2.0)):
        rows[at, HIGH] *= factor
    assert list(verdict_of_file(rows)) == [100, 101, 150, 200]


def test_a_lasting_shift_of_level_stays_in_a_file_and_a_run_that_ends_does_not():
    rows = market()
    rows[200:, OPEN : CLOSE + 1] *= 0.1  # ten for one
    assert verdict_of_file(rows) == {}
    rows = market()
    rows[200 : 200 + RULES.collar_run, OPEN : CLOSE + 1] *= 10.0
    assert list(verdict_of_file(rows)) == list(range(200, 200 + RULES.collar_run))


def test_a_wild_market_may_move_far():
    rows = market(400, sigma=0.06, step=60.0)
    rows[300, HIGH] = rows[60:300, HIGH].max() * 1.6  # ten of its deviations
    assert verdict_of_file(rows) == {}
    calm = market(400)
    calm[300, HIGH] = calm[60:300, HIGH].max() * 1.6
    assert verdict_of_file(calm) == {300: "COLLAR"}


def test_too_few_bars_have_no_range():
    rows = market(20)
    rows[19, HIGH] *= 1e6
    assert verdict_of_file(rows) == {}


def test_live_every_bar_at_that_distance_is_outside_and_those_back_inside_are_not():
    rows = market()
    rows[300:350, OPEN : CLOSE + 1] *= 1e6
    found = collar.outside(rows[300:], collar.Recent(rows[60:300], 240, 1e-3), RULES)
    assert found.found.tolist() == [True] * 50 + [False] * 50
    assert found.highest[0] == rows[60:300, HIGH].max()
    assert np.isnan(found.highest[60])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([HIGH, LOW]), st.integers(0, 9), st.floats(0.4, 2.5)), max_size=4))
def test_live_bars_that_are_near_the_one_before_are_inside_whatever_was_seen(spoiled):
    rows = market(260, sigma=0.1)
    for field, at, factor in spoiled:
        rows[250 + at, field] *= factor
    outside = collar.outside(rows[250:], collar.Recent(rows[10:250], 240, 0.0), RULES).found
    assert not (collar.is_near(rows[249], rows[250:], RULES) and outside.any())
    assert collar.is_near(rows[249], rows[250:250], RULES)


def test_a_year_of_minutes_is_judged_in_a_moment():
    rows = market(200_000)
    admission.reasons(rows[:300], MINUTES, NOW)
    assert admission.reasons(rows, MINUTES, datetime(2026, 1, 1, tzinfo=UTC)).tolist().count("") == len(rows)
    assert not collar.spikes(rows, RULES).found.any()
