"""Outcomes of decisions: by hand, and equal to the training labels."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from pipelines.contracts import Decision, utc
from pipelines.costs import costs_of
from pipelines.data.calendars import CALENDARS
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape, BadTimes
from pipelines.labels.barriers import BARRIERS, UNRESOLVED, levels, triple_barrier
from pipelines.monitoring.outcomes import resolve
from pipelines.settings import load_params

MINUTES = Grid("1m")

T0 = 1_704_067_200.0
COST = replace(costs_of(load_params().costs, "simulator", "spot"), stop_slippage_bps=0.5)  # 5 bps a round trip


def decision(as_of: float, target: float | None, stop: float | None, minutes: int = 5, **other) -> Decision:
    at = utc(as_of)
    return replace(
        Decision(
            id=f"d{as_of:.0f}", symbol="S", as_of=at, known_at=at, ingested_at=at, action="NO_TRADE", direction=0,
            confidence=None, entry=100.0, stop=stop, take_profits=() if target is None else (target,), size=0.0,
            expiry=at + timedelta(minutes=minutes), edge_bps=None, p=None, regime=None, tier=3, arm="champion",
            event="e",
        ),
        **other,
    )  # fmt: skip


def bars(*rows: tuple[float, float, float, float]) -> np.ndarray:
    """Return one-minute bars from T0 of (open, high, low, close)."""
    return np.array([[T0 + 60 * i, *row, 1.0, 1.0, 0.5, np.nan] for i, row in enumerate(rows)])


def only(found):
    (one,) = found
    return one


def test_long_target_pays_from_the_open_after_the_decision_less_the_round_trip() -> None:
    one = only(resolve([decision(T0, 102, 99)], bars((100.5, 101, 100, 101), (101, 102.5, 100.5, 102)), MINUTES, COST))
    assert (one.label, one.barrier, one.resolved_at) == (1, "target", utc(T0 + 120))
    assert one.gross_bps == pytest.approx((102 / 100.5 - 1) * 1e4)
    assert one.net_bps == pytest.approx(one.gross_bps - 5.0)


def test_the_short_side_is_read_from_its_levels_not_from_the_vote() -> None:
    one = only(resolve([decision(T0, 98, 101, direction=1)], bars((100, 100.5, 97.5, 98)), MINUTES, COST))
    assert (one.label, one.barrier) == (1, "target")
    assert one.gross_bps == pytest.approx(200.0)


def test_a_bar_that_touches_both_counts_as_the_stop_and_a_gap_fills_at_its_open() -> None:
    both = only(resolve([decision(T0, 102, 99)], bars((100, 103, 98, 100)), MINUTES, COST))
    gap = only(resolve([decision(T0, 102, 99)], bars((100, 101, 99.5, 100), (97, 98, 96, 97)), MINUTES, COST))
    assert (both.label, both.barrier, both.gross_bps) == (0, "stop", pytest.approx(-100.0))
    assert gap.gross_bps == pytest.approx(-300.0)


def test_time_runs_out_at_the_last_close_before_expiry_and_not_a_bar_earlier() -> None:
    quiet = [(100.0, 100.5, 99.5, 100.2)] * 5
    assert resolve([decision(T0, 102, 99)], bars(*quiet[:4]), MINUTES, COST) == []
    one = only(resolve([decision(T0, 102, 99)], bars(*quiet), MINUTES, COST))
    assert (one.label, one.barrier, one.resolved_at) == (0, "time", utc(T0 + 300))
    assert one.gross_bps == pytest.approx(20.0)


def test_an_outcome_does_not_change_when_more_bars_arrive() -> None:
    path = [(100.0, 100.5, 99.5, 100.0)] * 3 + [(100.0, 102.5, 99.9, 102.0)]
    pending = [decision(T0, 102, 99)]
    assert resolve(pending, bars(*path), MINUTES, COST) == resolve(
        pending, bars(*path, (50, 200, 1, 60)), MINUTES, COST
    )


def test_a_decision_without_levels_or_without_a_bar_has_no_outcome() -> None:
    pending = [decision(T0, None, None), decision(T0, 102, 99, expiry=None), decision(T0 + 60, 102, 99)]
    assert resolve(pending, bars((100, 103, 98, 100)), MINUTES, COST) == []


def test_bars_that_begin_after_a_decision_are_refused() -> None:
    with pytest.raises(BadTimes, match="oldest pending decision"):
        resolve([decision(T0 - 60, 102, 99)], bars((100, 101, 99.5, 100)), MINUTES, COST)
    with pytest.raises(BadShape):
        resolve([], np.zeros((3, 4)), MINUTES, COST)


def test_a_stop_slips_and_a_perpetual_pays_its_funding() -> None:
    stopped = only(resolve([decision(T0, 102, 99)], bars((100, 100.5, 98.5, 99)), MINUTES, COST))
    assert (stopped.barrier, stopped.cost_bps) == ("stop", 5.5)
    quiet = [(100, 100.5, 99.5, 100)] * 6
    perpetual, at = costs_of(load_params().costs, "binance", "perpetual"), T0 + 60.0  # no funding time: T0 is midnight
    for rates, paid in (([[at, 3e-4]], 0.0), ([[T0, 3e-4]], 0.0), ([[T0 + 8 * 3600, 3e-4]], 0.0)):
        one = only(resolve([decision(T0, 102, 99)], bars(*quiet), MINUTES, perpetual, np.array(rates)))
        assert one.cost_bps == pytest.approx(11.0 + paid)
    before = bars(*quiet)
    before[:, 0] += 8 * 3600 - 120
    for target, stop, sign in ((102, 99, 1.0), (98, 101, -1.0)):
        held = decision(before[0, 0], target, stop)
        one = only(resolve([held], before, MINUTES, perpetual, np.array([[T0 + 8 * 3600 + 0.01, 3e-4]])))
        assert one.cost_bps == pytest.approx(11.0 + sign * 3.0)
        assert one.net_bps == pytest.approx(one.gross_bps - one.cost_bps)


def test_a_position_out_of_time_pays_the_funding_at_the_close_of_its_last_bar_and_a_stop_before_it_does_not() -> None:
    perpetual, at = costs_of(load_params().costs, "binance", "perpetual"), T0 + 8 * 3600.0
    quiet, rates = (100, 100.5, 99.5, 100), np.array([[at, 3e-4]])
    for last, barrier, paid in ((quiet, "time", 3.0), ((100, 100.5, 98.5, 99), "stop", perpetual.stop_slippage_bps)):
        held = bars(*[quiet] * 4, last)
        held[:, 0] += 8 * 3600 - 300  # the last bar closes at the funding time
        one = only(resolve([decision(held[0, 0], 102, 99)], held, MINUTES, perpetual, rates))
        assert (one.barrier, one.resolved_at) == (barrier, utc(at))
        assert one.cost_bps == pytest.approx(11.0 + paid)


def test_every_outcome_is_the_label_training_would_give() -> None:
    rng = np.random.default_rng(7)
    n = 4000
    close = 100 * np.exp(np.cumsum(1e-3 * rng.standard_normal(n)))
    opened = np.r_[100.0, close[:-1]]
    wick = 5e-4 * np.abs(rng.standard_normal((2, n)))
    half_spread = np.where(rng.random(n) < 0.2, np.nan, 0.03 * rng.random(n))  # some bars have quotes, some do not
    base = np.column_stack(
        [T0 + 60 * np.arange(n), opened, np.maximum(opened, close) * (1 + wick[0]),
         np.minimum(opened, close) * (1 - wick[1]), close, np.ones((n, 3)), half_spread]
    )  # fmt: skip
    at = np.sort(rng.choice(np.arange(10, n - 5), 300, replace=False))
    times, side, atr = base[at, 0] + 60, rng.choice([-1, 1], 300), rng.uniform(1e-3, 6e-3, 300)
    labels = triple_barrier(base, times, close[at], side, atr, 1.5, 1.0, times + 1800.0)
    targets, stops = levels(close[at], side, atr, 1.5, 1.0)
    decisions = [
        decision(t, target, stop, minutes=30, id=str(i))
        for i, (t, target, stop) in enumerate(zip(times, targets, stops, strict=True))
    ]
    found = {int(o.decision_id): o for o in resolve(decisions, base, MINUTES, COST)}
    assert set(found) == set(np.flatnonzero(labels.barrier != UNRESOLVED))
    assert set(labels.spread_known[labels.barrier != UNRESOLVED]) == {True, False}
    assert {o.barrier for o in found.values()} == {"target", "stop", "time"}
    for i, one in found.items():
        assert one.barrier == BARRIERS[labels.barrier[i]]
        assert one.label == labels.label[i]
        assert one.gross_bps == labels.gross_bps[i]


def test_an_outcome_is_known_when_its_bar_closes_also_the_short_last_one_of_a_session() -> None:
    opened = pd.Timestamp("2024-03-08 15:30", tz="America/New_York").timestamp()
    rows = bars((100, 102.5, 99.5, 102))
    rows[:, 0] = opened
    one = only(resolve([decision(opened, 102, 99)], rows, Grid("1h", CALENDARS["us-equity"]), COST))
    assert one.resolved_at == utc(opened + 1800.0)
