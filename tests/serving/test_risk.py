"""R1, R2, R10, L7: sizes under every cap, limits that refuse on their own, and nothing computed from doubt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipelines.contracts import BAR_WIDTH, CLOSE, HIGH, LOW, OPEN, OPEN_TIME, SCORE_NAMES
from pipelines.labels.barriers import TIME, levels, triple_barrier
from pipelines.labels.misses import miss_atr
from pipelines.settings import load_params
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import NOTHING_OPEN, flatten, layers_of, reasons
from serving.policy.thresholds import THRESHOLDS
from serving.risk import codes
from serving.risk.limits import BUDGETS, STAGES
from serving.risk.sizing import (
    BEAR,
    BULL,
    CAPS,
    HIGH_VOL,
    LOW_VOL,
    UNKNOWN_LIMIT,
    kelly,
    limit_row,
    smallest_cap,
    wanted_size,
)

PARAMS = load_params()
FLAT = flatten(PARAMS)
STRICT = flatten(PARAMS.model_copy(update={"thresholds": PARAMS.thresholds.model_copy(update={"require": THRESHOLDS})}))
GOOD = {
    "ict.direction": 1, "ict.confidence": 0.8, "order_flow.direction": 1, "order_flow.confidence": 0.9, "regime": 0,
    "trend": 1, "unicorn": 16, "confluence": 0.8, "phase": 3, "event": 1, "tier": 1, "age_bars": 0, "breakers": 0,
    "embargoed": 0,
    "disabled": 0,
    **NOTHING_OPEN, "es_unit": 0.03,
    "volatility": 0.003, "atr": 0.004, "price": 100.0, "cost_bps": 5.0, "stop_cost_bps": 5.0, "p": 0.6, "p_low": 0.55,
    "miss_bps": -30.0,
}  # fmt: skip
UNKNOWN_ALLOWED = ("regime", "trend", "unicorn", "confluence", "phase", "p")
NEEDED = [
    name for name in GOOD if name not in (*UNKNOWN_ALLOWED, "embargoed", "disabled") and not name.endswith("direction")
]
NEEDED += ["ict.factor", "order_flow.independence"]


def row(**changes):
    values = np.full(decision_kernel.ROW_WIDTH, np.nan)
    values[decision_kernel.FACTORS_AT : decision_kernel.STATE_AT] = 1.0
    for name, value in {**GOOD, **changes}.items():
        values[decision_kernel.ROW_FIELDS.index(name)] = value
    return values


def decide(values, flat=FLAT):
    out = np.empty(decision_kernel.OUT_WIDTH)
    return decision_kernel.decide_row(values, flat, out), out


def ict(value):
    return {"ict.confidence": value, "order_flow.confidence": value}


REFUSED = {
    codes.CANNOT_COMPUTE: {"atr": np.nan},
    codes.BREAKER_LATCHED: {"breakers": 4},
    codes.EMBARGO: {"embargoed": 1},
    codes.SIGNAL_DISABLED: {"disabled": 1},
    codes.STALE_DATA: {"age_bars": 2.5},
    codes.DRAWDOWN_AT_LIMIT: {"drawdown": 0.08},
    codes.DRAWDOWN_EXIT_ONLY: {"drawdown": 0.06},
    codes.DAILY_LOSS_AT_LIMIT: {"daily_pnl": -0.02},
    codes.TIER_CLOSED: {"tier": 4},
    codes.NO_EVENT: {"event": 0},
    codes.MODEL_ABSTAINED: {"p": np.nan, "p_low": np.nan},
    codes.NO_SIGNAL: {"ict.direction": 0, "order_flow.direction": np.nan},
    codes.CONFLICT: {"event": -1},
    codes.CONFIDENCE_BELOW: ict(0.66),
    codes.STRENGTH_BELOW: {"ict.confidence": 0.6, "order_flow.confidence": 0.95},
    codes.CONFLUENCE_BELOW: {"confluence": 0.59},
    codes.UNICORN_BELOW: {"unicorn": 14},
    codes.PHASE_DIFFERS: {"phase": 1},
    codes.NOT_VALIDATED: {
        "traditional.direction": -1, "traditional.confidence": 0.99, "cmt.direction": -1, "cmt.confidence": 0.7,
    },
    codes.TARGET_UNDER_COST: {"atr": 0.0006, "miss_bps": -4.5, "p": 0.9, "p_low": 0.8},
    codes.NO_EDGE_AFTER_COST: {"p_low": 0.5, "miss_bps": -80.0},
    codes.KELLY_ZERO: {"p_low": 0.4499},
    codes.STOP_EXCEEDS_REGIME: {"atr": 0.021},
    codes.GROSS_EXCEEDS_LIMIT: {"gross": 0.61},
    codes.STRATEGY_AT_LIMIT: {"strategy": 0.4},
    codes.MARKET_AT_LIMIT: {"market": 0.5},
    codes.ASSET_AT_LIMIT: {"asset": 0.3},
    codes.CORRELATED_AT_LIMIT: {"correlated": 0.41},
    codes.ES_AT_LIMIT: {"es": 0.015},
    codes.STRESS_AT_LIMIT: {"stress": 0.02},
    codes.OPEN_COUNT_AT_LIMIT: {"open_count": 5},
    codes.TRADES_TODAY_AT_LIMIT: {"trades_today": 40},
}  # fmt: skip
OF_THRESHOLDS = (codes.STRENGTH_BELOW, codes.CONFLUENCE_BELOW, codes.UNICORN_BELOW, codes.PHASE_DIFFERS)


def uncapped():
    """The parameters with every cap out of reach: only Kelly's rule decides the size."""
    risk = PARAMS.risk
    limits = {name: limit.model_copy(update={"max_position": 1e3}) for name, limit in risk.regime_limits.items()}
    budgets = risk.budgets.model_copy(update={f"max_{name}": 1e3 for name in BUDGETS})
    caps = {"kelly_cap": 1e3, "volatility_target": 1e3, "regime_limits": limits, "budgets": budgets}
    return flatten(PARAMS.model_copy(update={"risk": risk.model_copy(update=caps)}))


UNCAPPED = uncapped()


def test_the_good_row_is_emitted():
    code, out = decide(row())
    assert (code, out[decision_kernel.ACTION]) == (0, 1.0)


def test_the_table_of_refusals_is_whole():
    assert set(REFUSED) == set(codes.REFUSALS)
    assert [*codes.REFUSALS] == [1 << i for i in range(len(codes.REFUSALS))]
    assert all(getattr(codes, codes.name_of(bit)) == bit for bit in codes.REFUSALS)


@pytest.mark.parametrize("bit", codes.REFUSALS, ids=codes.name_of)
def test_every_refusal_is_reachable_alone_and_carries_its_numbers(bit):
    values, flat = row(**REFUSED[bit]), STRICT if bit in OF_THRESHOLDS else FLAT
    code, out = decide(values, flat)
    assert code == bit
    assert (out[decision_kernel.ACTION], out[decision_kernel.SIZE]) == (0.0, 0.0)
    (words,) = reasons(code, values, flat, out, "NOVEL:17.2>12.9")
    assert words.split(":")[0] == codes.name_of(bit)
    assert "nan" not in words


def test_a_refusal_reads_as_promised():
    values = row(gross=0.61, drawdown=0.09)
    code, out = decide(values)
    assert reasons(code, values, FLAT, out) == (
        "DRAWDOWN_AT_LIMIT: drawdown=0.0900, limit=0.0800, stay flat",
        "GROSS_EXCEEDS_LIMIT: gross=0.61, limit=0.50",
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -7.0])
@pytest.mark.parametrize("name", NEEDED)
def test_a_needed_input_that_is_no_number_is_refused_by_name(name, bad):
    if name in ("daily_pnl", "miss_bps") and bad == -7.0:
        bad = -np.inf
    values = row(**{name: bad})
    code, out = decide(values)
    assert code & codes.CANNOT_COMPUTE
    assert (out[decision_kernel.ACTION], out[decision_kernel.SIZE]) == (0.0, 0.0)
    assert reasons(code, values, FLAT, out)[0] == f"CANNOT_COMPUTE: input={name}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -7.0, 0.5])
def test_whether_a_bar_is_embargoed_is_never_taken_for_no(bad):
    values = row(embargoed=bad)
    code, out = decide(values)
    assert code == codes.EMBARGO
    assert (out[decision_kernel.ACTION], out[decision_kernel.SIZE], out[decision_kernel.UNUSABLE_MASK]) == (0, 0, 0)
    assert reasons(code, values, FLAT, out)[0].startswith("EMBARGO: ")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -7.0, 0.5])
def test_whether_a_signal_is_disabled_is_never_taken_for_no(bad):
    code, out = decide(row(disabled=bad))
    assert (code, out[decision_kernel.ACTION], out[decision_kernel.SIZE]) == (codes.SIGNAL_DISABLED, 0, 0)
    assert decide(row(disabled=bad, event=0.0))[0] == codes.NO_EVENT


@pytest.mark.parametrize(
    "change",
    [{"regime": 1.5}, {"regime": 4}, {"tier": 1.5}, {"p_low": 0.61}, {"ict.direction": 2}, {"unicorn": 22},
     {"confluence": 1.1}, {"phase": 4}, {"phase": 0.5}, {"miss_bps": 60.0}],
)  # fmt: skip
def test_an_impossible_input_is_refused_by_name(change):
    code, out = decide(row(**change))
    assert code & codes.CANNOT_COMPUTE
    assert int(out[decision_kernel.UNUSABLE_MASK]) == 1 << decision_kernel.ROW_FIELDS.index(next(iter(change)))


def test_an_unknown_regime_gets_base_weights_and_the_smallest_caps():
    sure = {"p_low": 0.95, "p": 0.95, **ict(1.0)}
    code, out = decide(row(regime=np.nan, trend=np.nan, **sure))
    assert (code, out[decision_kernel.MAX_STOP]) == (0, 0.01)
    assert out[decision_kernel.SIZE] == min(limit.max_position for limit in PARAMS.risk.regime_limits.values())


def test_the_rest_under_the_gross_limit_caps_the_size():
    _, out = decide(row(gross=0.45, p=0.95, p_low=0.95, **ict(1.0)))
    assert out[decision_kernel.SIZE] == pytest.approx(0.05)
    assert (out[decision_kernel.CAP], CAPS[int(out[decision_kernel.CAP_OF])]) == (out[decision_kernel.SIZE], "gross")


@pytest.mark.parametrize(("regime", "factor"), [(0, 1.0), (1, 0.8), (2, 0.5), (3, 0.8), (np.nan, 0.5)])
def test_each_regime_scales_kelly_by_its_multiplier_and_none_by_the_smallest(regime, factor):
    _, out = decide(row(regime=regime, p_low=0.5, **ict(0.8)), UNCAPPED)
    # 55 bps to win, 45 to lose: 1/11 of equity at risk, and a position of that over .45 % of price
    assert out[decision_kernel.KELLY] == pytest.approx(1 / 11)
    assert out[decision_kernel.SIZE] == pytest.approx(0.25 / 11 * 0.8**2 * factor / 0.0045)


@pytest.mark.parametrize(
    ("regime", "trend", "expected"),
    [(0, 1, BULL), (0, -1, BEAR), (0, 0, UNKNOWN_LIMIT), (0, np.nan, UNKNOWN_LIMIT), (1, 1, LOW_VOL),
     (2, 1, HIGH_VOL), (3, -1, LOW_VOL), (np.nan, 1, UNKNOWN_LIMIT)],
)  # fmt: skip
def test_each_regime_has_its_row_of_limits(regime, trend, expected):
    assert limit_row(float(regime), float(trend)) == expected


def test_kelly_is_the_formula_and_never_negative():
    assert kelly(0.55, 0.0055, 0.0045) == pytest.approx(0.55 - 0.45 * 9 / 11)
    assert kelly(0.6, 1.0, 1.0) == pytest.approx(0.2)  # Thorp's even bet: 2p − 1
    assert kelly(0.45, 0.0055, 0.0045) == pytest.approx(0.0, abs=1e-15)
    assert (kelly(0.1, 0.0055, 0.0045), kelly(np.nan, 0.0055, 0.0045)) == (0.0, 0.0)


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.01), (-0.001, 0.01), (0.01, 0.0), (np.nan, 0.01), (0.01, np.nan)])
def test_a_target_within_its_cost_is_no_bet_however_sure(gain, loss):
    assert kelly(1.0, gain, loss) == 0.0
    assert wanted_size(1.0, gain, loss, 1.0, 0.25, 1.0, 0.0) == 0.0


def test_kelly_on_its_net_odds_grows_wealth_fastest_of_all_fractions():
    """Thorp 2006, eq. for the growth rate: p·log(1 + f·gain/loss) + (1 − p)·log(1 − f) is largest at Kelly's f."""
    at_risk = np.linspace(0.0, 0.9, 9001)
    for p, gain, loss in ((0.55, 0.0055, 0.0045), (0.5, 0.0085, 0.0045), (0.7, 0.002, 0.003)):
        growth = p * np.log1p(at_risk * gain / loss) + (1 - p) * np.log1p(-at_risk)
        assert at_risk[growth.argmax()] == pytest.approx(kelly(p, gain, loss), abs=1e-4)


def test_nothing_is_sized_under_its_net_break_even_where_the_gross_odds_did():
    """560 trades with a lower bound around .45: the rule of 0.5.0, gross odds, sized those between .40 and .45."""
    rng = np.random.default_rng(8)
    p_low = rng.uniform(0.36, 0.6, 560)
    atr = rng.uniform(0.002, 0.008, 560)
    sized, due, before = np.zeros((3, 560), dtype=bool)
    for i in range(560):
        code, out = decide(row(p=min(p_low[i] + 0.15, 1.0), p_low=p_low[i], atr=atr[i], miss_bps=-7500 * atr[i]))
        assert code in (0, codes.KELLY_ZERO)
        sized[i] = out[decision_kernel.SIZE] > 0.0
        due[i] = p_low[i] > (atr[i] * 1e4 + 5) / (2.5 * atr[i] * 1e4)
        before[i] = (p_low[i] * 1.5 - (1.0 - p_low[i])) / 1.5 > 0.0
    assert (sized == due).all()
    assert (before & ~due).sum() > 60


@pytest.mark.parametrize("sizing", [0.0, 1.0])
@pytest.mark.parametrize("which", range(6))
def test_a_size_from_any_nan_is_zero(which, sizing):
    arguments = [0.9, 0.0055, 0.0045, 0.9, 0.25, 1.0]
    assert wanted_size(*arguments, sizing) > 0.1
    arguments[which] = np.nan
    assert wanted_size(*arguments, sizing) == 0.0


def test_the_smallest_cap_holds_whichever_it_is_and_an_unknown_one_leaves_nothing():
    for which in range(len(CAPS)):
        caps = np.full(len(CAPS), 0.1)
        caps[which] = 0.04
        assert smallest_cap(caps) == (0.04, which)
        caps[which] = -0.2
        assert smallest_cap(caps) == (0.0, which)
        caps[which] = np.nan
        assert smallest_cap(caps) == (0.0, -1)


def test_confidence_counts_squared_or_as_the_documents_multiplier_and_never_above_the_cap():
    plain = 0.25 / 11 / 0.0045
    assert wanted_size(0.5, 0.0055, 0.0045, 0.8, 0.25, 1.0, 0.0) == pytest.approx(plain * 0.64)
    assert wanted_size(0.5, 0.0055, 0.0045, 0.8, 0.25, 1.0, 1.0) == pytest.approx(plain * 1.2)
    risk = PARAMS.risk.model_copy(update={"sizing": "confidence"})
    flat = flatten(PARAMS.model_copy(update={"risk": risk}))
    assert decide(row(p=0.99, p_low=0.99, **ict(1.0)), flat)[1][decision_kernel.SIZE] == PARAMS.risk.kelly_cap


def test_a_wilder_market_gets_a_smaller_position():
    _, out = decide(row(volatility=0.02, p=0.95, p_low=0.95, **ict(1.0)))
    assert out[decision_kernel.SIZE] == pytest.approx(PARAMS.risk.volatility_target / (0.02 * 4))
    assert CAPS[int(out[decision_kernel.CAP_OF])] == "volatility"


@pytest.mark.parametrize("name", BUDGETS)
def test_a_position_takes_the_rest_of_every_budget(name):
    limit, unit = getattr(PARAMS.risk.budgets, f"max_{name}"), 0.03 if name in ("es", "stress") else 1.0
    code, out = decide(row(**{name: limit - 0.01 * unit}, p=0.95, p_low=0.95, **ict(1.0)))
    assert (code, out[decision_kernel.SIZE]) == (0, pytest.approx(0.01))
    assert CAPS[int(out[decision_kernel.CAP_OF])] == name


@pytest.mark.parametrize(("share", "stage", "left"), [
    (0.0, "normal", 1.0), (0.2499, "normal", 1.0), (0.25, "reduce", 0.75), (0.4999, "reduce", 0.75), (0.5, "half", 0.5),
    (0.75, "exit_only", 0.0), (0.9999, "exit_only", 0.0), (1.0, "flat", 0.0), (3.0, "flat", 0.0),
])  # fmt: skip
def test_each_stage_of_the_drawdown_leaves_less(share, stage, left):
    _, whole = decide(row())
    assert whole[decision_kernel.SIZE] == PARAMS.risk.kelly_cap
    code, out = decide(row(drawdown=share * PARAMS.risk.max_drawdown))
    assert STAGES[int(out[decision_kernel.STAGE])] == stage
    assert out[decision_kernel.SIZE] == pytest.approx(left * whole[decision_kernel.SIZE])
    assert (code == 0) == (left > 0)


def test_layers_with_a_value_are_weighted_and_one_without_leaves_the_mean():
    against = {"traditional.direction": -1, "traditional.confidence": 0.5}
    _, out = decide(row(**against, p=0.4, p_low=0.35))
    layers = layers_of(out)
    assert layers["traditional"] == pytest.approx(0.25)
    assert layers["correlation"] == pytest.approx(1.0)
    assert layers["ai"] == pytest.approx(norm.cdf((0.4 - 35 / 90) / (0.05 / 1.959963984540054)))
    assert out[decision_kernel.VALIDATION] == pytest.approx(0.4 * 0.25 + 0.4 * layers["ai"] + 0.2)
    _, out = decide(row(p=0.4, p_low=0.35))
    assert "traditional" not in layers_of(out)
    assert out[decision_kernel.VALIDATION] == pytest.approx((0.4 * layers["ai"] + 0.2) / 0.6)


def test_learned_factors_move_weight_between_categories_and_nothing_else():
    moved = {"ict.factor": 0.0, "order_flow.factor": 2.0}
    _, out = decide(row(**moved))
    assert out[decision_kernel.CONFIDENCE] == pytest.approx(0.9)
    assert np.isnan(out[decision_kernel.SHARES_AT + 1])


def test_scores_that_agree_vote_as_fewer_and_leave_the_mean_confidence_unchanged():
    split = {"cmt.direction": -1, "cmt.confidence": 0.8, "cmt.factor": 1.0, "cmt.independence": 1.0}
    _, apart = decide(row(**split))
    _, alike = decide(row(**split, **{"ict.independence": 0.5, "order_flow.independence": 0.5}))
    assert alike[decision_kernel.CONFIDENCE] == apart[decision_kernel.CONFIDENCE]
    assert apart[decision_kernel.DIRECTION] == 1.0
    assert alike[decision_kernel.DIRECTION] == -1.0


def test_every_refusal_belongs_to_one_of_the_seven_layers():
    assert list(codes.LAYERS) == ["data", "model", "signal", "position", "portfolio", "drawdown", "system"]
    assert sorted(bit for bits in codes.LAYERS.values() for bit in bits) == sorted(codes.REFUSALS)


@pytest.mark.parametrize("bit", codes.REFUSALS, ids=codes.name_of)
def test_the_trail_names_the_layer_that_refused(bit):
    layers = codes.trail(decide(row(**REFUSED[bit]), STRICT if bit in OF_THRESHOLDS else FLAT)[0])
    assert list(layers) == list(codes.LAYERS)
    (layer,) = (name for name, bits in codes.LAYERS.items() if bit in bits)
    assert {name: what for name, what in layers.items() if what.startswith("refused")} == {
        layer: f"refused: {codes.name_of(bit)}"
    }


def test_the_trail_names_the_layers_that_were_not_reached():
    layers = codes.trail(codes.NO_EVENT)
    assert (layers["model"], layers["position"], layers["portfolio"]) == ("not reached: NO_EVENT",) * 2 + ("passed",)
    assert codes.trail(codes.CANNOT_COMPUTE)["position"] == "not reached: CANNOT_COMPUTE"
    assert set(codes.trail(0).values()) == {"passed"}


def test_stop_and_target_are_the_ones_the_labels_use():
    for direction in (1, -1):
        sides = {"event": direction, "ict.direction": direction, "order_flow.direction": direction}
        _, out = decide(row(price=41234.5, **sides))
        target, stop = levels(np.array([41234.5]), np.array([direction]), np.array([0.004]), 1.5, 1.0)
        assert (out[decision_kernel.TARGET], out[decision_kernel.STOP]) == (target[0], stop[0])


def test_a_model_that_is_unsure_lowers_the_size_to_nothing_and_never_touches_the_confidence():
    sizes, confidences = zip(
        *((out[decision_kernel.SIZE], out[decision_kernel.CONFIDENCE])
          for _, out in (decide(row(p_low=low), UNCAPPED) for low in (0.4499, 0.4501, 0.5, 0.6))),
        strict=True,
    )  # fmt: skip
    assert sizes[0] == 0.0
    assert list(sizes) == sorted(set(sizes))
    assert len(set(confidences)) == 1


def test_a_confidence_sizing_has_the_same_break_even():
    risk = PARAMS.risk.model_copy(update={"sizing": "confidence"})
    flat = flatten(PARAMS.model_copy(update={"risk": risk}))
    assert [decide(row(p_low=low), flat)[0] for low in (0.4499, 0.4501)] == [codes.KELLY_ZERO, 0]


@pytest.mark.parametrize(("miss_bps", "p"), [(-40.0, 0.45), (-30.0, 35 / 90), (-20.0, 25 / 80), (5.0, 0.0)])
def test_the_break_even_is_where_target_and_miss_pay_the_cost(miss_bps, p):
    _, out = decide(row(miss_bps=miss_bps))
    assert out[decision_kernel.BREAK_EVEN_P] == pytest.approx(p)
    assert out[decision_kernel.NET_BREAK_EVEN_P] == pytest.approx(0.45)  # a size counts the whole stop all the same


def test_the_size_and_its_break_even_bear_what_the_stop_slips():
    """55 to win against 45 to lose; with 5 bps of slippage 50 to lose: 50/105 where it was .45, over a loss of .5 %."""
    for slipped, even, loss in ((5.0, 0.45, 0.0045), (10.0, 50 / 105, 0.0050)):
        outs = [decide(row(stop_cost_bps=slipped, p_low=even + by), UNCAPPED) for by in (-1e-4, 1e-4, 0.05)]
        assert [code for code, _ in outs] == [codes.KELLY_ZERO, 0, 0]
        _, out = outs[2]
        at_risk = kelly(even + 0.05, 0.0055, loss)
        assert out[decision_kernel.NET_BREAK_EVEN_P] == pytest.approx(even)
        assert out[decision_kernel.KELLY] == pytest.approx(at_risk)
        assert out[decision_kernel.EDGE_BPS] == pytest.approx(0.6 * 60 - 0.4 * 30 - 5)  # a miss has its own estimate
        expected = wanted_size(even + 0.05, 0.0055, loss, out[decision_kernel.CONFIDENCE], 0.25, 1.0, 0.0)
        assert out[decision_kernel.SIZE] == pytest.approx(expected)


def simulated_trades(n, life=120, atr=0.004, seed=5):
    """(drift (n,), outcome) of n long trades, one after the other, on minutes whose drift has one of five strengths."""
    rng = np.random.default_rng(seed)
    drift = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], n) * 1e-5
    path = 100.0 * np.exp(np.cumsum(drift[:, None] + rng.normal(0.0, 6e-4, (n, life)), axis=1))
    opened = np.column_stack([np.full(n, 100.0), path[:, :-1]])
    bars = np.full((n * life, BAR_WIDTH), np.nan)
    bars[:, OPEN_TIME], bars[:, OPEN], bars[:, CLOSE] = 60.0 * np.arange(len(bars)), opened.ravel(), path.ravel()
    bars[:, HIGH], bars[:, LOW] = bars[:, [OPEN, CLOSE]].max(axis=1), bars[:, [OPEN, CLOSE]].min(axis=1)
    known, side = 60.0 * life * np.arange(n), np.ones(n, dtype=np.int64)
    return drift, triple_barrier(bars, known, np.full(n, 100.0), side, np.full(n, atr), 1.5, 1.0, known + 60.0 * life)


def test_the_edge_is_the_mean_net_return_of_simulated_trades_with_a_known_probability():
    """One half of the trades gives what a miss returns and how often each drift hits; the other half is the outcome."""
    n, atr = 12_000, 0.004
    drift, outcome = simulated_trades(n)
    train, later = np.arange(n) % 2 == 0, np.arange(n) % 2 == 1
    assert 0.1 < (outcome.barrier == TIME).mean() < 0.3
    p = np.array([outcome.label[train & (drift == each)].mean() for each in np.unique(drift)])
    missed = miss_atr(outcome.label[train], outcome.gross_bps[train], np.full(n // 2, atr), np.ones(n // 2))
    outs = [decide(row(p=each, p_low=each, atr=atr, miss_bps=missed * atr * 1e4))[1] for each in p]
    of = np.searchsorted(np.unique(drift), drift[later])
    edge = np.array([out[decision_kernel.EDGE_BPS] for out in outs])[of]
    net = outcome.gross_bps[later] - 5.0
    error = net.std() / np.sqrt(len(net))
    assert abs(edge.mean() - net.mean()) < 3.0 * error
    assert np.corrcoef(edge, net)[0, 1] > 0.05  # it ranks the drifts, too
    whole_stop = (p * 1.5 - (1.0 - p))[of] * atr * 1e4 - 5.0  # the rule of 0.5.0
    assert net.mean() - whole_stop.mean() > 8.0 * error


def test_in_tier_three_only_the_traditional_score_counts():
    tradition = {"traditional.direction": -1, "traditional.confidence": 0.75, "event": -1}
    code, out = decide(row(tier=3, **tradition))
    assert (code, out[decision_kernel.CONFIDENCE], out[decision_kernel.ACTION]) == (0, 0.75, -1.0)
    assert decide(row(tier=1, **tradition))[0] & codes.CONFLICT


unit = st.floats(0, 1)
sides = st.sampled_from([-1.0, 0.0, 1.0, np.nan])
plausible = st.fixed_dictionaries(
    {**{f"{name}.direction": sides for name in SCORE_NAMES}, **{f"{name}.confidence": unit for name in SCORE_NAMES},
     "regime": st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]), "trend": sides, "event": st.sampled_from([-1.0, 1.0]),
     "tier": st.sampled_from([1.0, 2.0, 3.0]), "gross": st.floats(0, 0.6), "asset": st.floats(0, 0.4),
     "correlated": st.floats(0, 0.5), "es": st.floats(0, 0.02), "stress": st.floats(0, 0.03),
     "es_unit": st.floats(0.001, 0.2), "volatility": st.floats(0.0005, 0.05), "drawdown": st.floats(0, 0.1),
     "atr": st.floats(0.001, 0.02), "p": unit, "p_low": unit}
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(plausible)
def test_a_size_is_never_negative_nor_above_any_cap(fields):
    code, out = decide(row(**fields))
    limit = limit_row(float(fields["regime"]), float(fields["trend"]))
    caps = [PARAMS.risk.kelly_cap, FLAT[decision_kernel.MAX_POSITION_AT + limit]]
    caps += [PARAMS.risk.volatility_target / (fields["volatility"] * 4)]
    for name in BUDGETS:
        unit = fields["es_unit"] if name in ("es", "stress") else 1.0
        caps.append(max(getattr(PARAMS.risk.budgets, f"max_{name}") - fields.get(name, 0.0), 0.0) / unit)
    assert 0.0 <= out[decision_kernel.SIZE] <= min(caps)
    if code == 0:
        assert fields["p_low"] > (fields["atr"] * 1e4 + 5) / (2.5 * fields["atr"] * 1e4) - 1e-9
    assert (code == 0) == (out[decision_kernel.SIZE] > 0) == (out[decision_kernel.ACTION] != 0)


@settings(max_examples=300, deadline=None)
@given(unit, unit, unit, st.floats(0.4, 1), st.floats(0.4, 1))
def test_more_confidence_never_means_a_smaller_size(low, high, other, p, p_low):
    low, high = sorted((low, high))
    values = {"p": max(p, p_low), "p_low": min(p, p_low), "order_flow.confidence": other}
    small, large = (decide(row(**{**values, "ict.confidence": c}))[1][decision_kernel.SIZE] for c in (low, high))
    assert small <= large


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.floats(allow_nan=True, allow_infinity=True),
        min_size=decision_kernel.ROW_WIDTH,
        max_size=decision_kernel.ROW_WIDTH,
    )
)
def test_garbage_is_refused_and_never_breaks_the_kernel(values):
    code, out = decide(np.array(values))
    assert code != 0
    assert (out[decision_kernel.ACTION], out[decision_kernel.SIZE]) == (0.0, 0.0)
