"""R10: ladder, break-even and trailing stop worked by hand, and the plain plan equal to the labels' outcome."""

from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.contracts import BAR_WIDTH, CLOSE, HALF_SPREAD, HIGH, LOW, OPEN, OPEN_TIME
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape
from pipelines.labels.barriers import STOP, TARGET, TIME, UNRESOLVED, triple_barrier
from pipelines.settings import ROOT, load_params
from serving.risk import exits as e

HOURS = Grid("1h")

PARAMS = load_params()
BTC = ROOT.parent / "shared" / "data" / "candles" / "binance_spot_btcusdt_1h_2017_2025h1.parquet"
THREE = [(0.5, 0.3), (1.0, 0.3), (1.5, 0.4)]
FLAT = (100.0, 100.5, 99.5, 100.0)
UP = (100.0, 101.2, 99.9, 101.1)


def rules(plan, **changes):
    return e.flatten(PARAMS.exits.model_copy(update={"plan": plan, **changes}), PARAMS.labels)


def laid_out(plan="ladder", direction=1.0, horizon_s=600.0, **changes):
    """Decided at 100 with an ATR of 1: stop 99 (101 for a short), legs at 101 and 101.5 (99 and 98.5)."""
    position = np.empty(e.POSITION_WIDTH)
    assert e.plan(100.0, direction, 0.01, 0.0, horizon_s, 60.0, rules(plan, **changes), position)
    return position


def bar(minute, candle, direction=1.0):
    """Open, high, low and close of a long's story; a short lives the same one in the mirror at 100."""
    row = np.full(BAR_WIDTH, np.nan)
    first, high, low, close = candle if direction > 0 else (200 - candle[i] for i in (0, 2, 1, 3))
    row[OPEN_TIME], row[OPEN : CLOSE + 1] = 60.0 * minute, (first, high, low, close)
    return row


def lived(position, *candles):
    """(result of each bar, what it did) for all candles."""
    results = []
    for minute, candle in enumerate(candles):
        out = np.empty(e.OUT_WIDTH)
        results.append((e.manage(position, bar(minute, candle, position[e.DIRECTION]), out), out))
    return results


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(
    ("plan", "candles", "barrier", "gross_bps", "legs"),
    [
        ("ladder", [FLAT, UP, (101.1, 101.6, 101.0, 101.5)], TARGET, 0.5 * 100 + 0.5 * 150, 2),
        ("ladder", [FLAT, (100, 102, 99.5, 101)], TARGET, 125.0, 2),  # both legs in one bar
        ("ladder", [FLAT, (100, 102, 98.9, 101)], STOP, -100.0, 0),  # stop and targets in one bar: the stop
        ("ladder", [FLAT, UP, (101.1, 101.2, 99.8, 100.3)], STOP, 50.0, 1),  # the rest at break-even
        ("ladder", [FLAT, UP, (99.4, 99.9, 99.3, 99.8)], STOP, 50.0 - 30.0, 1),  # opened beyond it: at the open
        ("ladder", [FLAT, (101.3, 101.4, 101.2, 101.3), (101.9, 102, 101.8, 101.9)], TARGET, 125.0, 2),  # no better
        ("plain", [FLAT, UP, (101.1, 101.6, 101.0, 101.5)], TARGET, 150.0, 1),
        ("plain", [FLAT, UP, (101.1, 101.2, 98.9, 99.0)], STOP, -100.0, 0),
        ("plain", [FLAT, (98.0, 98.5, 97.5, 98.2)], STOP, -200.0, 0),
        ("trailing", [(100, 100.6, 99.5, 100), (100, 100.4, 99.7, 100), (100, 100, 99.55, 99.8)], STOP, -40.0, 0),
        ("trailing", [FLAT, UP, (101, 101.1, 100.1, 100.2)], STOP, 20.0, 0),
        ("ladder_trailing", [FLAT, UP, (101.1, 101.4, 100.5, 100.6), (100.5, 100.6, 100.3, 100.4)], STOP, 70.0, 1),
    ],
)
def test_a_position_ends_as_worked_by_hand(plan, candles, barrier, gross_bps, legs, direction):
    position = laid_out(plan, direction)
    results = lived(position, *candles)
    assert [code for code, _ in results] == [e.STILL_OPEN] * (len(candles) - 1) + [barrier]
    assert position[e.GROSS_BPS] == pytest.approx(gross_bps)
    assert (position[e.FILLED_LEGS], position[e.REMAINING]) == (legs, 0.0)
    assert position[e.EXIT_TIME] == 60.0 * (len(candles) - 1)


def test_a_bar_returns_the_legs_it_filled_and_the_stop_in_force_from_then_on():
    position = laid_out()
    (_, first), (_, second), (_, third) = lived(position, FLAT, UP, (101.1, 101.2, 99.8, 100.3))
    assert (first[e.STOP_NOW], first[e.REMAINING_NOW]) == (99.0, 1.0)
    assert (second[e.LEG_AT], second[e.STOP_NOW], second[e.REMAINING_NOW]) == (101.0, 100.0, 0.5)
    assert (third[e.REST], third[e.REST_FRACTION], third[e.REMAINING_NOW]) == (100.0, 0.5, 0.0)
    assert np.isnan([first[e.LEG_AT], second[e.REST], third[e.LEG_AT + 1], third[e.STOP_NOW]]).all()


def test_time_runs_out_at_the_last_close_inside_the_horizon_also_where_bars_are_missing():
    whole, holed = laid_out(horizon_s=180.0), laid_out(horizon_s=180.0)
    results = lived(whole, FLAT, FLAT, (100, 100.4, 99.9, 100.3))
    assert results[-1][0] == TIME
    assert (whole[e.EXIT_TIME], whole[e.GROSS_BPS]) == (120.0, pytest.approx(30.0))
    out = np.empty(e.OUT_WIDTH)
    lived(holed, FLAT, (100, 100.4, 99.9, 100.2))
    assert e.manage(holed, bar(9, (98, 98, 98, 98)), out) == TIME
    assert (holed[e.EXIT_TIME], holed[e.GROSS_BPS], out[e.REST]) == (60.0, pytest.approx(20.0), 100.2)
    never = laid_out(horizon_s=180.0)
    assert e.manage(never, bar(9, FLAT), out) == UNRESOLVED
    assert np.isnan(never[e.GROSS_BPS])


def market(n, seed, gaps=0.05, half_spread=np.nan):
    """Minutes of a random walk whose opens jump, some of them missing; half spreads up to `half_spread`."""
    rng = np.random.default_rng(seed)
    rows = np.full((n, BAR_WIDTH), np.nan)
    rows[:, OPEN_TIME] = 60.0 * np.arange(n)
    rows[:, CLOSE] = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, n)))
    rows[:, OPEN] = np.concatenate([[100.0], rows[:-1, CLOSE]]) * np.exp(rng.normal(0, 4e-4, n))
    body = np.sort(rows[:, [OPEN, CLOSE]], axis=1)
    rows[:, LOW] = body[:, 0] * (1 - np.abs(rng.normal(0, 5e-4, n)))
    rows[:, HIGH] = body[:, 1] * (1 + np.abs(rng.normal(0, 5e-4, n)))
    kept = rows[rng.random(n) >= gaps]
    kept[:, HALF_SPREAD] = half_spread * rng.random(len(kept))
    return kept


def random_decisions(bars, step_s, count, seed):
    """Decisions at closes of random bars: time, price, direction, ATR."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(len(bars), count, replace=False))
    sides, atr = rng.choice([-1, 1], count), rng.uniform(1e-3, 1e-2, count) * np.sqrt(step_s / 60.0)
    return bars[at, OPEN_TIME] + step_s, bars[at, CLOSE].copy(), sides, atr


def same_as_the_labels(bars, step_s, count):
    labels, horizon_s = PARAMS.labels, 16.0 * 15.0 * step_s
    decided = random_decisions(bars, step_s, count, seed=3)
    label = triple_barrier(bars, *decided, labels.target_atr, labels.stop_atr, decided[0] + horizon_s)
    plain = e.simulate_exits(bars, *decided, horizon_s, rules("plain"))
    over = label.barrier != UNRESOLVED
    assert set(label.barrier) == {TARGET, STOP, TIME, UNRESOLVED}
    np.testing.assert_array_equal(plain.barrier, label.barrier)
    for name in ("start_time", "exit_time", "gross_bps"):
        np.testing.assert_array_equal(getattr(plain, name)[over], getattr(label, name)[over], name)
    assert np.isnan(plain.gross_bps[~over]).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_plain_plan_is_the_label_exactly_on_random_paths(seed):
    same_as_the_labels(market(20_000, seed), 60.0, 4_000)


def test_the_plain_plan_is_the_label_exactly_where_quotes_were_recorded():
    same_as_the_labels(market(20_000, seed=5, half_spread=0.1), 60.0, 4_000)


@pytest.mark.skipif(not BTC.is_file(), reason=f"no recorded candles: {BTC}")
def test_the_plain_plan_is_the_label_exactly_on_recorded_bitcoin():
    now = datetime.now(UTC)
    same_as_the_labels(schemas.to_matrix(assess(read(BTC, now).frame, HOURS, now).clean), 3600.0, 4_000)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_trailing_stop_follows_the_closed_bars_and_never_loosens(direction):
    bars, out, moved = market(4_000, seed=9, gaps=0.0), np.empty(e.OUT_WIDTH), 0
    for start in range(0, 3_900, 50):
        position, price = np.empty(e.POSITION_WIDTH), bars[start - 1, CLOSE] if start else 100.0
        flat = rules("trailing", trailing_atr=2.0)
        flat[e.STOP_ATR], flat[e.TARGET_AT] = 2.0, 50.0
        assert e.plan(price, direction, 2e-3, 60.0 * start, 6e3, 60.0, flat, position)
        stop, best = position[e.STOP_PRICE], bars[start, OPEN]
        for row in bars[start:]:
            if e.manage(position, row, out) != e.STILL_OPEN:
                break
            best = max(best, row[HIGH]) if direction > 0 else min(best, row[LOW])
            stop = direction * max(direction * stop, direction * (best - direction * price * 2.0 * 2e-3))
            assert out[e.STOP_NOW] == pytest.approx(stop, rel=1e-12)
            moved += 1
        reached = row[LOW] <= stop if direction > 0 else row[HIGH] >= stop
        assert reached or position[e.BARRIER] == TIME
    assert moved > 500


def test_the_closed_parts_are_the_whole_position_and_add_up_to_its_return():
    bars, out = market(6_000, seed=11), np.empty(e.OUT_WIDTH)
    flat, ended = rules("ladder_trailing", legs=THREE), set()
    for k, (decided_at, price, side, atr) in enumerate(
        zip(*random_decisions(bars[:5_000], 60.0, 200, seed=4), strict=True)
    ):
        position, parts, gross = np.empty(e.POSITION_WIDTH), 0.0, 0.0
        assert e.plan(price, float(side), atr, decided_at, 1.4e4, 60.0, flat, position), k
        for row in bars[np.searchsorted(bars[:, OPEN_TIME], decided_at) :]:
            e.manage(position, row, out)
            prices, fractions = [*out[:3], out[e.REST]], [0.3, 0.3, 0.4, out[e.REST_FRACTION]]
            for at, fraction in zip(prices, fractions, strict=True):
                if np.isfinite(at):
                    parts, gross = parts + fraction, gross + fraction * side * (at / position[e.FILL] - 1.0) * 1e4
            if np.isfinite(position[e.EXIT_TIME]):
                break
        assert (position[e.REMAINING], parts) == (0.0, pytest.approx(1.0))
        assert position[e.GROSS_BPS] == pytest.approx(gross, abs=1e-9)
        ended.add((position[e.BARRIER], position[e.FILLED_LEGS]))
    assert {(TARGET, 3.0), (STOP, 0.0), (STOP, 1.0), (STOP, 2.0)} <= ended


def test_a_position_that_was_kept_and_restored_goes_on_the_same():
    story = [FLAT, UP, (101.1, 101.4, 100.5, 100.6), (100.5, 100.6, 100.3, 100.4)]
    through, saved = laid_out("ladder_trailing"), laid_out("ladder_trailing")
    lived(through, *story)
    lived(saved, *story[:2])
    restored, out = np.frombuffer(saved.tobytes()).copy(), np.empty(e.OUT_WIDTH)
    for minute in (2, 3):
        e.manage(restored, bar(minute, story[minute]), out)
    assert restored.tobytes() == through.tobytes()


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_missing_or_impossible_input_makes_no_plan_and_no_trade(at, value):
    inputs = [100.0, 1.0, 0.01, 0.0, 600.0, 60.0]
    inputs[at] = value
    position, out = np.zeros(e.POSITION_WIDTH), np.zeros(e.OUT_WIDTH)
    assert not e.plan(*inputs, rules("ladder"), position)
    assert e.manage(position, bar(0, FLAT), out) == e.NO_POSITION
    assert np.isnan(position).all()
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (e.STOP_ATR, np.nan),
        (e.STOP_ATR, 0.0),
        (e.STOP_ATR, 100.0),  # a stop at 0
        (e.TARGET_AT, np.nan),
        (e.TARGET_AT, 1.6),  # further out than the second
        (e.TARGET_AT + 2, 2.0),  # a leg without a share
        (e.SHARE_AT, 0.6),
        (e.SHARE_AT + 1, np.nan),
        (e.TRAILING_ATR, 0.0),
        (e.BREAK_EVEN_AFTER, np.nan),
    ],
)
def test_rules_that_are_not_whole_make_no_plan(at, value):
    flat, position = rules("ladder"), np.zeros(e.POSITION_WIDTH)
    flat[at] = value
    assert not e.plan(100.0, 1.0, 0.01, 0.0, 600.0, 60.0, flat, position)
    assert np.isnan(position).all()


@pytest.mark.parametrize(
    "row",
    [
        bar(1, (100, np.nan, 99.5, 100)),
        bar(1, (100, 99, 98, 98.5)),  # its open is above its high
        bar(1, (100, 101, -1, 100)),
        bar(0, UP),  # a second time
        bar(-1, UP),  # from before the decision
        bar(np.nan, UP),
    ],
)
def test_a_bar_that_cannot_be_read_moves_nothing_and_the_stop_stands(row):
    position, out = laid_out(), np.empty(e.OUT_WIDTH)
    lived(position, FLAT)
    before = position.tobytes()
    assert e.manage(position, row, out) == e.BAD_BAR
    assert position.tobytes() == before
    assert (out[e.STOP_NOW], out[e.REMAINING_NOW]) == (99.0, 1.0)


def test_a_bar_that_opened_before_the_decision_does_not_fill():
    position, out = np.empty(e.POSITION_WIDTH), np.empty(e.OUT_WIDTH)
    assert e.plan(100.0, 1.0, 0.01, 90.0, 600.0, 60.0, rules("plain"), position)
    assert e.manage(position, bar(1, FLAT), out) == e.BAD_BAR
    assert e.manage(position, bar(2, (99.8, 100, 99.7, 99.9)), out) == e.STILL_OPEN
    assert (position[e.FILL], position[e.FILL_TIME]) == (99.8, 120.0)


def test_the_stated_plan_is_the_labels():
    assert PARAMS.exits.plan == "plain"
    np.testing.assert_array_equal(
        e.flatten(PARAMS.exits, PARAMS.labels), [1.0, 1.5, np.nan, np.nan, 1.0, np.nan, np.nan, np.nan, 0.0]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"legs": [[1.5, 0.5], [1.0, 0.5]]}, "further out"),
        ({"legs": [[1.0, 0.5], [1.5, 0.4]]}, "sum 0.9"),
        ({"legs": [[1.0, 1.5], [1.5, -0.5]]}, "each above 0"),
        ({"legs": [[1.0, float("nan")], [1.5, 0.5]]}, "together 1"),
        ({"legs": [[0.5, 0.25], [1.0, 0.25], [1.5, 0.25], [2.0, 0.25]]}, "at most 3"),
        ({"break_even_after_leg": 2}, "leaves no position"),
        ({"trailing_atr": 0.0}, "greater than 0"),
        ({"plan": "hope"}, "ladder_trailing"),
    ],
)
def test_a_ladder_that_is_not_whole_is_refused_in_words(change, words):
    with pytest.raises(ValidationError, match=words):
        type(PARAMS.exits).model_validate({**PARAMS.exits.model_dump(), **change})


def test_lengths_that_differ_are_refused():
    one, two = np.ones(1), np.ones(2)
    with pytest.raises(BadShape, match="2 decisions"):
        e.simulate_exits(market(9, 1), two, one, two, two, 60.0, rules("plain"))
