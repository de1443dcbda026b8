"""Stress: stops with gaps by hand, losses that grow with size, absent scenarios with their reason."""

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from benchmarks.fixture import recording
from benchmarks.stress import MARKETS, hourly, together
from pipelines.contracts import BAR_WIDTH, CLOSE, HIGH, LOW, OPEN, OPEN_TIME
from pipelines.errors import BadShape, BadTimes, BadValues, UnknownName
from pipelines.evaluation.crises import CRISES, RESTING, bars_in_window, drawdowns, moves, replay_crisis
from pipelines.evaluation.stress import (
    IMPACT,
    MEAN_TO_FINAL_IMPACT,
    PATHS,
    SCENARIOS,
    _walk,
    daily,
    spells,
    stress,
    stress_all,
)
from pipelines.evaluation.stress_limits import (
    Allowed,
    Case,
    allowed,
    largest_allowed,
    reopened,
    stress_of_limits,
    verdict,
)
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult
from pipelines.settings import load_params

RISK = load_params().risk
HOUR, DAY = 3600.0, 86_400.0
DRAWS, SEED = 40, 7
NONE = np.nan


def held(*weights, stops=None, cost_bps=0.0):
    return Portfolio(np.array(weights, float), np.array(stops or [NONE] * len(weights)), cost_bps)


def bars(*rows, start=0.0):
    """Return (m, 1, 9) hourly bars of (open, high, low, close)."""
    made = np.full((len(rows), 1, BAR_WIDTH), np.nan)
    made[:, 0, OPEN_TIME] = start + HOUR * np.arange(len(rows))
    made[:, 0, 1:5] = rows
    return made


def walk(n, k=1, sd=0.005, seed=3, start=0.0, step=HOUR):
    """Return (n, k, 9) bars of independent walks with volume."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, sd, (n, k)), axis=0))
    opened = np.concatenate([np.full((1, k), 100.0), close[:-1]])
    made = np.full((n, k, BAR_WIDTH), np.nan)
    made[:, :, OPEN_TIME] = start + step * np.arange(n)[:, None]
    made[:, :, 1], made[:, :, CLOSE], made[:, :, 5] = opened, close, rng.lognormal(5.0, 0.5, (n, k))
    made[:, :, 2], made[:, :, 3] = np.maximum(opened, close) * 1.001, np.minimum(opened, close) * 0.999
    return made


def market(k=1, days=400, **more):
    given = walk(24 * days, k)
    return MarketHistory(tuple("ABCD"[:k]), HOUR, given, more.pop("spread", np.full((len(given), k), np.nan)), **more)


@pytest.fixture(scope="module")
def one():
    window = CRISES["2020-03"]
    return market(crises=walk(31 * 24, sd=0.02, start=window.since.timestamp()), crises_market="made", equity=1e5)


@pytest.fixture(scope="module")
def two():
    return market(k=2, equity=1e5)


# ---- stops, by hand -----------------------------------------------------------------------------------------------


def test_a_stop_reached_inside_a_bar_is_filled_at_the_next_open_where_that_is_worse():
    found = replay_crisis(bars((100, 101, 99, 100), (100, 100, 97, 99), (96, 98, 95, 97)), held(0.5, stops=[0.02]))
    assert found.stopped[0] == 1
    assert found.slippage[0] == pytest.approx(0.02)  # stop 98, filled at 96
    assert found.worst == pytest.approx([1 - 0.5 * 0.01, 1 - 0.5 * 0.04, 1 - 0.5 * 0.04])


def test_a_stop_reached_inside_a_bar_is_never_filled_better_than_the_stop():
    found = replay_crisis(bars((100, 101, 97, 100), (104, 105, 103, 104)), held(0.5, stops=[0.02]))
    assert (found.stopped[0], found.slippage[0]) == (0, 0.0)
    assert found.close == pytest.approx([0.99, 0.99])


def test_an_order_resting_at_the_venue_is_filled_at_the_stop_unless_the_market_opens_beyond_it():
    inside_a_bar = bars((100, 101, 99, 100), (100, 100, 97, 99), (96, 98, 95, 97))
    assert replay_crisis(inside_a_bar, held(0.5, stops=[0.02]), resting=True).close[-1] == pytest.approx(0.99)
    beyond = bars((100, 100, 99, 99), (90, 95, 89, 95))
    assert replay_crisis(beyond, held(0.5, stops=[0.02]), resting=True).close[-1] == pytest.approx(0.95)


def test_a_bar_that_opens_beyond_the_stop_fills_at_that_open_and_not_at_the_stop():
    found = replay_crisis(bars((100, 100, 99, 99), (90, 95, 89, 95), (95, 99, 95, 99)), held(0.5, stops=[0.02]))
    assert found.stopped[0] == 1
    assert found.slippage[0] == pytest.approx(0.08)
    assert found.close == pytest.approx([0.995, 0.95, 0.95])  # 10 % of half, and out of the rebound


def test_a_short_is_the_mirror_of_a_long():
    found = replay_crisis(bars((100, 101, 99, 101), (110, 111, 105, 105)), held(-0.5, stops=[0.02]))
    assert found.slippage[0] == pytest.approx(0.08)
    assert found.close == pytest.approx([0.995, 0.95])


def test_in_the_last_bar_a_stop_is_filled_at_the_close_where_that_is_worse():
    found = replay_crisis(bars((100, 101, 90, 92)), held(1.0, stops=[0.02]))
    assert found.close == pytest.approx([0.92])


def test_without_a_stop_the_position_has_the_extreme_loss_and_the_rebound():
    found = replay_crisis(bars((100, 100, 50, 60), (60, 90, 60, 90)), held(0.5))
    assert found.worst == pytest.approx([0.75, 0.80])
    assert found.close == pytest.approx([0.80, 0.95])
    assert found.stopped[0] == -1


def test_entry_and_stop_are_both_paid_for():
    found = replay_crisis(bars((100, 100, 90, 98), (98, 99, 97, 98)), held(0.5, stops=[0.02], cost_bps=10.0))
    assert found.close[-1] == pytest.approx(1 - 0.5 * 0.02 - 0.5 * 0.001 - 0.5 * 0.001 * 0.98)


def test_drawdown_is_from_the_highest_close_of_equity_and_at_least_the_loss():
    found = replay_crisis(bars((100, 120, 100, 120), (120, 120, 90, 90)), held(1.0))
    assert drawdowns(found) == pytest.approx([0.0, 0.25])
    assert drawdowns(found).max() >= 1 - found.worst.min()


def test_moves_go_from_an_earlier_extreme_to_a_later_one():
    found = moves(bars((100, 110, 100, 105), (105, 106, 55, 60), (60, 77, 60, 70))[:, 0])
    assert found["fall"] == pytest.approx(-0.5)  # from 110 to 55
    assert found["rise"] == pytest.approx(0.4)  # from 55 to 77: the first bar's 100 to 110 is less
    assert (found["fall_hours"], found["rise_hours"]) == (1.0, 1.0)


def test_stops_of_the_bootstrap_pay_the_overshoot_of_a_step():
    returns, starts = np.array([[-0.05], [0.10], [0.10]]), np.array([0, 1])
    loss, drawdown = _walk(returns, starts, 2, np.array([0.5]), np.array([0.02]), 0.0)
    assert loss == pytest.approx([0.025, 0.0])  # out at -5 %, not at -2 %, and not in the rise after it
    assert drawdown == pytest.approx([0.025, 0.0])


# ---- what holds of every scenario ---------------------------------------------------------------------------------


def test_a_flat_portfolio_loses_nothing(one):
    for result in stress_all(held(0.0), one, DRAWS, SEED):
        assert result.absent or result.loss.value == 0.0, result.scenario
    assert sum(r.absent is None for r in stress_all(held(0.0), one, DRAWS, SEED)) == 4  # the other crises are absent


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("stop", [0.02, NONE])
@pytest.mark.parametrize("name", ["crisis:2020-03", "bootstrap", "correlation_breakdown", "liquidity_drought"])
def test_loss_grows_with_size(one, name, side, stop):
    losses = [stress(name, held(side * w, stops=[stop], cost_bps=2.5), one, DRAWS, SEED) for w in (0.1, 0.2, 0.5)]
    values = [r.loss.value for r in losses]
    assert 0.0 < values[0] < values[1] < values[2]
    falls = [r.drawdown.value for r in losses if r.drawdown]
    assert falls == sorted(falls)


def test_the_same_seed_gives_the_same_figures_on_one_machine(one):
    first, again = ([r.to_dict() for r in stress_all(held(0.3), one, DRAWS, SEED)] for _ in range(2))
    assert first == again


def test_every_estimate_has_its_interval_and_n(one):
    for name in ("bootstrap", "correlation_breakdown", "liquidity_drought"):
        loss = stress(name, held(0.3), one, DRAWS, SEED).loss
        assert loss.n > 0
        assert 0.0 < loss.low < loss.high, name


def test_an_unknown_scenario_is_refused_by_name(one):
    with pytest.raises(UnknownName, match="liquidity_drought"):
        stress("meteor", held(0.3), one, DRAWS, SEED)


# ---- one by one ---------------------------------------------------------------------------------------------------


def test_stops_lose_less_than_none_where_a_market_keeps_falling():
    window = CRISES["2020-03"]
    path = 100.0 * 0.999 ** np.arange(31 * 24 + 1)
    falling = bars(*zip(path[:-1], path[:-1], path[1:], path[1:], strict=True), start=window.since.timestamp())
    data = market(crises=falling)
    loss = {stop: stress("crisis:2020-03", held(0.5, stops=[stop]), data, 1, 1).loss.value for stop in (0.02, NONE)}
    assert loss[NONE] == pytest.approx(0.5 * (1 - 0.999 ** (31 * 24)))
    assert 0.5 * 0.02 <= loss[0.02] < 0.5 * 0.022
    assert loss[0.02] == pytest.approx(0.5 * (1 - 0.999**21))  # the 21st bar's low is beyond, the next open the same


def test_a_crisis_that_was_not_recorded_or_only_in_part_gives_the_reason(one):
    assert "--crises FILE" in stress("crisis:2020-03", held(0.1), market(), 1, 1).absent
    assert "hold 0 of its 744" in stress("crisis:2021-05", held(0.1), one, 1, 1).absent
    part = dataclasses.replace(one, crises=one.crises[:600])
    result = stress("crisis:2020-03", held(0.1), part, 1, 1)
    assert "hold 600 of its 744" in result.absent
    assert (result.loss, result.drawdown, result.figures) == (None, None, {})


def test_spells_are_inside_the_recording_and_evenly_spaced():
    assert spells(12, 10).tolist() == [0, 1, 2]
    many = spells(100_000, 240)
    assert (many[0], many[-1], len(many)) == (0, 100_000 - 240, PATHS)
    assert set(np.diff(many).tolist()) <= {24, 25}


def lasting(days, seed, spell_days=10, sd=0.0004):
    """Return hourly bars whose every ten days drift one way: dependence as long as the bootstrap's horizon."""
    rng = np.random.default_rng(seed)
    drift = np.repeat(rng.choice([-0.0008, 0.0008], days // spell_days), 24 * spell_days)
    data = market(days=days)
    close = 100.0 * np.exp(np.cumsum(drift + rng.normal(0.0, sd, len(drift))))
    made = data.bars[: len(drift)].copy()
    made[:, 0, CLOSE] = close
    made[:, 0, OPEN] = np.r_[100.0, close[:-1]]
    made[:, 0, HIGH], made[:, 0, LOW] = made[:, 0, [OPEN, CLOSE]].max(axis=1), made[:, 0, [OPEN, CLOSE]].min(axis=1)
    return dataclasses.replace(data, bars=made, spread=data.spread[: len(drift)])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dependence_of_one_horizon_survives_the_bootstrap(seed):
    """Blocks of n^(1/3) rows, as until release 0.5, find three quarters of this loss."""
    data, steps = lasting(1200, seed), 240
    paths = np.lib.stride_tricks.sliding_window_view(1.0 + data.returns[:, 0], steps)
    truth = np.quantile(np.maximum(1.0 - np.cumprod(paths, axis=1).min(axis=1), 0.0), 0.95)
    found = stress("bootstrap", held(1.0), data, DRAWS, SEED).figures["loss 95%"]
    assert truth == pytest.approx(1.0 - np.exp(-0.0008 * steps), rel=0.15)
    assert found.value == pytest.approx(truth, rel=0.02)
    assert found.low <= found.value <= found.high


def test_too_few_spells_of_the_horizon_give_the_reason():
    result = stress("bootstrap", held(1.0), market(days=299), DRAWS, SEED)
    assert "7,200 are needed" in result.absent


def test_the_bootstrap_of_independent_returns_finds_their_quantile():
    sd = 0.005 * np.sqrt(240)
    result = stress("bootstrap", held(1.0), market(days=1200), DRAWS, SEED)
    assert result.loss.value == pytest.approx(1 - np.exp(-2.576 * sd), rel=0.12)  # of the minimum: twice as likely
    assert result.figures["drawdown 99%"].value > result.loss.value
    assert result.figures["loss 95%"].value < result.loss.value
    assert result.loss.low < result.loss.value < result.loss.high


@pytest.mark.parametrize("weights", [(0.3, 0.2), (0.3, -0.2), (-0.5, 0.0), (-0.1, -0.4)])
def test_a_breakdown_is_never_milder_than_independence_or_the_recorded_correlations(two, weights):
    result = stress("correlation_breakdown", held(*weights), two, DRAWS, SEED)
    assert result.loss.value >= result.figures["loss if independent"].value > 0.0
    assert result.loss.value >= result.figures["loss at the correlations recorded"].value


def test_parts_of_a_breakdown_add_up(two):
    parts = [stress("correlation_breakdown", held(*w), two, DRAWS, SEED).loss.value for w in ((0.3, 0.0), (0.0, -0.2))]
    whole = stress("correlation_breakdown", held(0.3, -0.2), two, DRAWS, SEED).loss.value
    assert whole == pytest.approx(sum(parts))


def test_days_are_calendar_days():
    data = market(days=3)
    moved, realised, traded = daily(data)
    close = data.bars[:, 0, CLOSE]
    assert moved[1, 0] == pytest.approx(close[47] / close[23] - 1.0)
    assert realised[2, 0] == pytest.approx(np.sqrt((np.diff(np.log(close))[47:71] ** 2).sum()), rel=0.02)
    assert traded[0, 0] == pytest.approx((data.bars[:24, 0, 5] * close[:24]).sum())


def test_a_drought_costs_the_square_root_impact_and_more_if_the_spread_widens(one):
    _, realised, traded = daily(one)
    thin = np.quantile(realised / np.sqrt(traded), 0.99)
    expected = 0.4 * (2.5e-4 + MEAN_TO_FINAL_IMPACT * IMPACT * thin * np.sqrt(0.4 * 1e5))
    result = stress("liquidity_drought", held(0.4, cost_bps=2.5), one, DRAWS, SEED)
    assert result.loss.value == pytest.approx(expected)
    assert "no spread was recorded" in result.detail
    wide = np.where(np.arange(len(one.bars)) % 50 == 0, 40e-4, 10e-4)[:, None]  # 2 % of the time 40 bps, else 10
    widened = stress("liquidity_drought", held(0.4, cost_bps=2.5), dataclasses.replace(one, spread=wide), DRAWS, SEED)
    assert widened.loss.value - result.loss.value == pytest.approx(0.4 * 15e-4)


def test_a_drought_without_volume_or_equity_gives_the_reason(one):
    dry = one.bars.copy()
    dry[:, :, 5] = np.nan
    assert stress("liquidity_drought", held(0.1), dataclasses.replace(one, bars=dry), 1, 1).absent.startswith(
        "no volume"
    )
    assert "--equity" in stress("liquidity_drought", held(0.1), market(), 1, 1).absent


def test_a_history_too_short_gives_reasons_and_no_figure():
    for result in stress_all(held(0.3), market(days=20, equity=1e5), DRAWS, SEED):
        assert result.absent, result.scenario
        assert result.loss is None


def test_invalid_input_is_refused_with_the_remedy():
    with pytest.raises(BadShape, match="expected"):
        Portfolio(np.array([0.1]), np.array([NONE, NONE]), 0.0)
    with pytest.raises(BadValues, match="NaN for none"):
        held(0.1, stops=[-0.02])
    with pytest.raises(BadValues, match=r"quality\.assess"):
        MarketHistory(("A",), HOUR, bars((1, 1, 0, 1)), np.full((1, 1), np.nan))
    with pytest.raises(BadTimes, match="ascending"):
        MarketHistory(("A",), HOUR, bars((1, 1, 1, 1), (1, 1, 1, 1))[::-1], np.full((2, 1), np.nan))


# ---- what the limits allow ----------------------------------------------------------------------------------------


def test_the_largest_allowed_portfolio_is_under_every_cap():
    rows = {row.row: row for row in allowed(RISK, 1)}
    assert set(rows) == {*RISK.regime_limits, "unknown"}
    for name, row in rows.items():
        assert row.gross <= min(RISK.budgets.max_gross, RISK.budgets.max_asset)
        assert row.gross <= RISK.max_open * RISK.kelly_cap + 1e-12
        if name != "unknown":
            assert row.gross <= RISK.max_open * RISK.regime_limits[name].max_position + 1e-12
    assert rows["unknown"].gross == min(row.gross for row in rows.values())
    assert largest_allowed(RISK, 1).gross == max(row.gross for row in rows.values())
    assert largest_allowed(RISK, 1).gross < largest_allowed(RISK, 2).gross <= RISK.budgets.max_gross


def test_limits_are_stressed_long_and_short_the_largest_first_and_also_without_stops(one):
    cases = stress_of_limits(one, RISK, 2.5, DRAWS, SEED)
    assert [(case.side, case.stopped) for case in cases[:4]] == [
        ("long", True), ("short", True), ("long", False), ("short", False),
    ]  # fmt: skip
    assert len(cases) == 2 * len(allowed(RISK, 1)) + 2
    names = [*SCENARIOS, *(f"reopened:{name}" for name in CRISES)]
    assert all([r.scenario for r in case.results] == names for case in cases)
    assert len(verdict(cases, RISK.max_drawdown)) == 4


def test_a_broken_drawdown_limit_is_named_with_its_figure():
    window = CRISES["2020-03"]
    path = 100.0 * 0.999 ** np.arange(31 * 24 + 1)
    falling = bars(*zip(path[:-1], path[:-1], path[1:], path[1:], strict=True), start=window.since.timestamp())
    cases = stress_of_limits(market(days=20, crises=falling), RISK, 0.0, 1, 1)
    by_case = dict(zip([(case.side, case.stopped) for case in cases], cases, strict=False))
    assert set(by_case["long", False].breaches(0.08)) == {"crisis:2020-03"}
    assert by_case["short", False].breaches(0.08) == {}
    assert "breaks the drawdown limit of 8% in crisis:2020-03" in " ".join(verdict(cases, 0.08))


def test_reopening_after_every_stop_is_ended_by_the_account_limits():
    window = CRISES["2020-03"]
    path = 100.0 * 0.998 ** np.arange(31 * 24 + 1)
    falling = bars(*zip(path[:-1], path[:-1], path[1:], path[1:], strict=True), start=window.since.timestamp())
    result = reopened("2020-03", held(0.5, stops=[0.02]), market(days=20, crises=falling), RISK)
    loss_of_a_stop = 0.5 * (1 - 0.998**11)  # 11 bars to a stop
    lost, opened = 0.0, 0
    for stage, upto in ((1.0, "reduce"), (RISK.stages.reduce.size, "half"), (RISK.stages.half.size, "exit_only")):
        while lost < getattr(RISK.stages, upto).at * RISK.max_drawdown:
            lost, opened = 1 - (1 - lost) * (1 - stage * loss_of_a_stop), opened + 1
    assert result.figures["times opened"].value == opened
    assert result.drawdown.value == pytest.approx(lost)
    assert result.loss.value == pytest.approx(result.drawdown.value)  # nothing was ever gained
    assert 0.75 * RISK.max_drawdown < result.loss.value < RISK.max_drawdown


def test_nothing_is_opened_on_a_day_that_lost_its_limit():
    window = CRISES["2020-03"]
    crash = np.full(31 * 24 + 1, 90.0)
    crash[0] = 100.0
    falling = bars(*zip(crash[:-1], crash[:-1], crash[1:], crash[1:], strict=True), start=window.since.timestamp())
    result = reopened("2020-03", held(0.5, stops=[0.02]), market(days=20, crises=falling), RISK)
    assert result.loss.value == pytest.approx(0.05)  # 10 % of half; the limit of a day is 2 %
    assert result.figures["times opened"].value == 2  # at once, and on the second day
    assert result.path[:24] == pytest.approx(0.05)


def test_an_absent_scenario_breaks_no_limit_and_is_counted_as_unknown():
    case = Case(Allowed("bull", 0.5, 0.02), "long", True, (StressResult("bootstrap", "how", absent="too short"),))
    assert case.breaches(0.0) == {}
    assert verdict([case], 0.08) == [
        "long 50%, stop 2.0%: under the limit of 8%; 0 scenarios of 1 that could be computed"
    ]


# ---- as recorded --------------------------------------------------------------------------------------------------

BTC = recording(MARKETS["BTC/USDT"])


@pytest.fixture(scope="module")
def btc():
    if not BTC.is_file():
        pytest.skip(f"no {BTC}: the recorded candles are not part of the repository")
    found = together(["BTC/USDT"], {"BTC/USDT": hourly(MARKETS["BTC/USDT"], datetime(2025, 7, 1, tzinfo=UTC))})
    return dataclasses.replace(found, crises=found.bars)


@pytest.mark.parametrize("name", CRISES)
def test_the_recorded_crises_are_complete_and_their_falls_bound_the_loss(btc, name):
    window_bars = bars_in_window(btc, CRISES[name])
    assert not isinstance(window_bars, str)
    fall = -moves(window_bars[:, 0])["fall"]
    assert 0.2 < fall < 0.7
    free = stress(f"crisis:{name}", held(0.5), btc, 1, 1)
    assert free.loss.value == pytest.approx(0.5 * fall, rel=0.05)  # entries are at opens, the fall is from a high
    assert free.loss.value <= 0.5 * fall
    stopped = stress(f"crisis:{name}", held(0.5, stops=[0.025]), btc, 1, 1)
    assert 0.5 * 0.025 <= stopped.figures[RESTING].value <= stopped.loss.value < free.loss.value
