"""Scores of signals: a planted return lies inside its interval; a signal without one loses the trading cost."""

import numpy as np
import pytest

from pipelines.costs import costs_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape
from pipelines.evaluation.intervals import LEAST_ROWS
from pipelines.evaluation.signals import score_sides, score_signals, write_page
from pipelines.settings import load_params
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.signal_registry import SIGNAL_REGISTRY, direction, onsets, signal_names

QUARTERS = Grid("15m")

PARAMS = load_params()
HORIZON = PARAMS.labels.horizon_bars
COSTS = costs_of(PARAMS.costs, "simulator", "spot")
COST = COSTS.round_trip_bps
PLANTED_BPS = 40.0


def market(seed, n=8000, every=24, planted_bps=PLANTED_BPS):
    """Return bars (n, 9) of a walk that drifts by `planted_bps` after each event, and the events' sides (n,)."""
    rng = np.random.default_rng(seed)
    side = np.zeros(n, np.int64)
    at = np.arange(every, n - HORIZON - 1, every)
    side[at] = rng.choice([-1, 1], len(at))
    moves = rng.normal(0.0, 10e-4, n)
    for i in at:
        moves[i + 1 : i + 1 + HORIZON] += side[i] * planted_bps * 1e-4 / HORIZON
    close = 100.0 * np.exp(np.cumsum(moves))
    opened = np.r_[100.0, close[:-1]]
    time = 1.7040672e9 + QUARTERS.step_s * np.arange(n)
    filler = np.full(n, 1.0)
    bars = np.column_stack(
        [time, opened, np.maximum(opened, close), np.minimum(opened, close), close, *[filler] * 3, np.full(n, np.nan)]
    )
    return np.ascontiguousarray(bars), side


def scored(bars, **sides):
    found = score_sides(sides, bars, bars, np.full(len(bars), 20e-4), (QUARTERS, QUARTERS), PARAMS, COSTS)
    return found, {score.signal: score for score in found.scores}


def test_a_planted_return_is_inside_its_interval_which_excludes_zero():
    bars, side = market(7)
    _, of = scored(bars, planted=side)
    gross, net = of["planted"].gross_bps, of["planted"].net_bps
    assert gross.low < PLANTED_BPS < gross.high
    assert 0.0 < net.low < net.value < net.high
    assert net.value == pytest.approx(gross.value - COST)
    assert net.cost_bps == COST


def test_noise_loses_the_trading_cost():
    bars, _ = market(8)
    noise = np.zeros(len(bars), np.int64)
    noise[::20] = np.random.default_rng(3).choice([-1, 1], len(noise[::20]))
    found, of = scored(bars, noise=noise)
    assert of["noise"].net_bps.low < -COST < of["noise"].net_bps.high
    assert found.above() == []


def test_intervals_cover_the_planted_return_about_as_often_as_stated():
    covered = []
    for seed in range(40):
        bars, side = market(100 + seed, n=3000)
        gross = scored(bars, planted=side)[1]["planted"].gross_bps
        covered.append(gross.low < PLANTED_BPS < gross.high)
    assert (
        np.mean(covered) >= 0.85
    )  # nominal 0.95: 40 markets and a bootstrap of some dozen blocks can fall short of it


def test_only_a_side_newly_taken_is_an_event_and_the_time_it_is_held_is_counted():
    side = np.zeros(400, np.int64)
    side[50:90], side[90:95] = 1, -1
    bars, _ = market(1, n=400)
    found, of = scored(bars, stance=side)
    assert onsets(side).tolist() == [50, 90]
    assert (of["stance"].onsets, of["stance"].share, of["stance"].long) == (2, 45 / 400, 0.5)
    assert of["stance"].per_week == pytest.approx(2 / found.weeks)


def test_hold_and_hit_follow_the_barriers_of_the_labels():
    bars, _ = market(1, n=200)
    rise = 100.0 * 1.0005 ** np.arange(200)
    bars[:, 1], bars[:, 4] = np.r_[100.0, rise[:-1]], rise
    bars[:, 2], bars[:, 3] = rise, bars[:, 1]
    side = np.zeros(200, np.int64)
    side[[20, 60, 100]] = [1, 1, -1]
    _, of = scored(bars, rising=side)  # 1.5 ATR of 20 bps = 30 bps up: six bars of 5; the stop of the short lies 20 off
    assert of["rising"].hit_rate.value == pytest.approx(2 / 3)
    assert of["rising"].hold_bars.value == pytest.approx((6 + 6 + 4) / 3)


def test_few_events_have_a_mean_but_no_interval_and_a_neutral_signal_has_neither():
    bars, side = market(7, n=600)
    assert 0 < (side != 0).sum() < LEAST_ROWS
    found, of = scored(bars, rare=side, neutral=np.zeros(600, np.int64))
    assert np.isfinite(of["rare"].net_bps.value)
    assert np.isnan(of["rare"].net_bps.low)
    assert (of["neutral"].onsets, of["neutral"].net_bps.n) == (0, 0)
    assert found.tested == 1
    assert found.to_dict()["scores"][1]["net_bps"]["value"] is None


def test_an_event_without_its_whole_horizon_is_left_out():
    bars, _ = market(5, n=300)
    side = np.zeros(300, np.int64)
    side[[100, 299 - HORIZON, 299]] = 1
    _, of = scored(bars, late=side)
    assert (of["late"].onsets, of["late"].gross_bps.n) == (3, 2)


def test_sides_of_another_length_are_refused():
    bars, side = market(5, n=300)
    with pytest.raises(BadShape, match="300 decision bars"):
        scored(bars, short=side[:-1])


def test_every_signal_belongs_to_one_row_and_one_category():
    rows = [name for row in SIGNAL_REGISTRY.values() for name in row.signals]
    produced = [name for names in PRODUCERS.values() for name in names]
    assert len(rows) == len(set(rows))
    assert sorted(rows) == sorted(produced) == sorted(signal_names())
    assert list(SIGNAL_REGISTRY)[:18] == [*(f"S{i}" for i in range(1, 18)), "D7"]  # then added ones


def test_the_catalogue_is_scored_and_drawn(tmp_path):
    bars, _ = market(11, n=1500)
    signals = SIGNALS.run(bars)
    found = score_signals(signals, bars, bars, np.full(len(bars), 20e-4), (QUARTERS, QUARTERS), PARAMS, COSTS)
    assert [score.signal for score in found.scores] == list(signal_names())
    assert found.scores[0].onsets == len(onsets(direction(signals, signal_names()[0])))
    page = write_page(tmp_path / "reports" / "signals.html", found, "TEST/USD").read_text()
    assert f"{found.tested} signals tested" in page
    assert "<script src" not in page
