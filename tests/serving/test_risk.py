"""R1, R2, R10, L7: sizes under every cap, limits that refuse on their own, and nothing computed from doubt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.labels.barriers import levels
from pipelines.settings import load_params
from serving import core
from serving.policy import flatten, reasons
from serving.risk import codes
from serving.risk.sizing import BEAR, BULL, HIGH_VOL, LOW_VOL, UNKNOWN_LIMIT, kelly, limit_row, position_size

PARAMS = load_params()
FLAT = flatten(PARAMS)
GOOD = {
    "ict.direction": 1, "ict.confidence": 0.8, "order_flow.direction": 1, "order_flow.confidence": 0.9, "regime": 0,
    "trend": 1, "event": 1, "tier": 1, "age_bars": 0, "breakers": 0, "gross": 0, "open_count": 0, "trades_today": 0,
    "daily_pnl": 0, "drawdown": 0, "atr": 0.004, "price": 100.0, "p": 0.6, "p_low": 0.55,
}  # fmt: skip
NEEDED = [name for name in GOOD if name not in ("regime", "trend", "p") and not name.endswith("direction")]


def row(**changes):
    values = np.full(core.ROW_WIDTH, np.nan)
    for name, value in {**GOOD, **changes}.items():
        values[core.ROW_FIELDS.index(name)] = value
    return values


def decide(values, flat=FLAT):
    out = np.empty(core.OUT_WIDTH)
    return core.decide_row(values, flat, out), out


def ict(value):
    return {"ict.confidence": value, "order_flow.confidence": value}


REFUSED = {
    codes.CANNOT_COMPUTE: {"atr": np.nan},
    codes.BREAKER_LATCHED: {"breakers": 4},
    codes.STALE_DATA: {"age_bars": 2.5},
    codes.DRAWDOWN_AT_LIMIT: {"drawdown": 0.08},
    codes.DAILY_LOSS_AT_LIMIT: {"daily_pnl": -0.02},
    codes.TIER_CLOSED: {"tier": 4},
    codes.NO_EVENT: {"event": 0},
    codes.MODEL_ABSTAINED: {"p": np.nan, "p_low": np.nan},
    codes.NO_VOICE: {"ict.direction": 0, "order_flow.direction": np.nan},
    codes.CONFLICT: {"event": -1},
    codes.CONFIDENCE_BELOW: ict(0.66),
    codes.TARGET_UNDER_COST: {"atr": 0.0006, "p": 0.9, "p_low": 0.8},
    codes.NO_EDGE_AFTER_COST: {"p": 0.449, "p_low": 0.42},
    codes.KELLY_ZERO: {"p_low": 0.39},
    codes.STOP_EXCEEDS_REGIME: {"atr": 0.021},
    codes.GROSS_EXCEEDS_LIMIT: {"gross": 0.61},
    codes.OPEN_COUNT_AT_LIMIT: {"open_count": 5},
    codes.TRADES_TODAY_AT_LIMIT: {"trades_today": 40},
}


def test_the_good_row_is_emitted():
    code, out = decide(row())
    assert (code, out[core.ACTION]) == (0, 1.0)


def test_the_table_of_refusals_is_whole():
    assert set(REFUSED) == set(codes.REFUSALS)
    assert [*codes.REFUSALS] == [1 << i for i in range(len(codes.REFUSALS))]
    assert all(getattr(codes, codes.name_of(bit)) == bit for bit in codes.REFUSALS)


@pytest.mark.parametrize("bit", codes.REFUSALS, ids=codes.name_of)
def test_every_refusal_is_reachable_alone_and_says_its_numbers(bit):
    values = row(**REFUSED[bit])
    code, out = decide(values)
    assert code == bit
    assert (out[core.ACTION], out[core.SIZE]) == (0.0, 0.0)
    (words,) = reasons(code, values, FLAT, out, "NOVEL:17.2>12.9")
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
    if name == "daily_pnl" and bad == -7.0:
        bad = -np.inf
    values = row(**{name: bad})
    code, out = decide(values)
    assert code & codes.CANNOT_COMPUTE
    assert (out[core.ACTION], out[core.SIZE]) == (0.0, 0.0)
    assert reasons(code, values, FLAT, out)[0] == f"CANNOT_COMPUTE: input={name}"


@pytest.mark.parametrize(
    "change", [{"regime": 1.5}, {"regime": 4}, {"tier": 1.5}, {"p_low": 0.61}, {"ict.direction": 2}]
)
def test_an_impossible_input_is_refused_by_name(change):
    code, out = decide(row(**change))
    assert code & codes.CANNOT_COMPUTE
    assert int(out[core.UNUSABLE_MASK]) == 1 << core.ROW_FIELDS.index(next(iter(change)))


def test_an_unknown_regime_gets_base_weights_and_the_smallest_caps():
    sure = {"p_low": 0.95, "p": 0.95, **ict(1.0)}
    code, out = decide(row(regime=np.nan, trend=np.nan, **sure))
    assert (code, out[core.MAX_STOP]) == (0, 0.01)
    assert out[core.SIZE] == min(limit.max_position for limit in PARAMS.risk.regime_limits.values())


def test_what_is_left_under_the_gross_limit_caps_the_size():
    _, out = decide(row(gross=0.45, p=0.95, p_low=0.95, **ict(1.0)))
    assert out[core.SIZE] == pytest.approx(0.05)
    assert out[core.CAP] == out[core.SIZE]


@pytest.mark.parametrize(("regime", "factor"), [(0, 1.0), (1, 0.8), (2, 0.5), (3, 0.8), (np.nan, 0.5)])
def test_each_regime_scales_kelly_by_its_multiplier_and_none_by_the_smallest(regime, factor):
    _, out = decide(row(regime=regime, p_low=0.5, **ict(0.8)))
    assert out[core.SIZE] == pytest.approx(0.25 * (0.5 * 1.5 - 0.5) / 1.5 * 0.8**2 * factor)


@pytest.mark.parametrize(
    ("regime", "trend", "expected"),
    [(0, 1, BULL), (0, -1, BEAR), (0, 0, UNKNOWN_LIMIT), (0, np.nan, UNKNOWN_LIMIT), (1, 1, LOW_VOL),
     (2, 1, HIGH_VOL), (3, -1, LOW_VOL), (np.nan, 1, UNKNOWN_LIMIT)],
)  # fmt: skip
def test_each_regime_has_its_row_of_limits(regime, trend, expected):
    assert limit_row(float(regime), float(trend)) == expected


def test_kelly_is_the_formula_and_never_negative():
    assert kelly(0.55, 1.5) == pytest.approx((0.55 * 1.5 - 0.45) / 1.5)
    assert kelly(0.4, 1.5) == pytest.approx(0.0, abs=1e-15)
    assert (kelly(0.1, 1.5), kelly(np.nan, 1.5)) == (0.0, 0.0)


@pytest.mark.parametrize("which", range(8))
def test_a_size_from_any_nan_is_zero(which):
    arguments = [0.9, 1.5, 0.9, 0.25, 1.0, 0.1, 0.15, 0.5]
    assert position_size(*arguments) == pytest.approx(0.1)
    arguments[which] = np.nan
    assert position_size(*arguments) == 0.0


def test_stop_and_target_are_the_ones_the_labels_use():
    for direction in (1, -1):
        sides = {"event": direction, "ict.direction": direction, "order_flow.direction": direction}
        _, out = decide(row(price=41234.5, **sides))
        target, stop = levels(np.array([41234.5]), np.array([direction]), np.array([0.004]), 1.5, 1.0)
        assert (out[core.TARGET], out[core.STOP]) == (target[0], stop[0])


def test_a_model_that_is_unsure_lowers_conviction_and_a_sure_one_never_raises_it():
    _, unsure = decide(row(p_low=0.42))
    _, sure = decide(row(p=0.95, p_low=0.9))
    assert unsure[core.CONVICTION] == pytest.approx(unsure[core.CONFIDENCE] * 0.42 / 0.45)
    assert sure[core.CONVICTION] == sure[core.CONFIDENCE]


def test_in_tier_three_only_the_traditional_voice_counts():
    tradition = {"traditional.direction": -1, "traditional.confidence": 0.75, "event": -1}
    code, out = decide(row(tier=3, **tradition))
    assert (code, out[core.CONFIDENCE], out[core.ACTION]) == (0, 0.75, -1.0)
    assert decide(row(tier=1, **tradition))[0] & codes.CONFLICT


unit = st.floats(0, 1)
sides = st.sampled_from([-1.0, 0.0, 1.0, np.nan])
plausible = st.fixed_dictionaries(
    {**{f"{voice}.direction": sides for voice in core.VOICES}, **{f"{voice}.confidence": unit for voice in core.VOICES},
     "regime": st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]), "trend": sides, "event": st.sampled_from([-1.0, 1.0]),
     "tier": st.sampled_from([1.0, 2.0, 3.0]), "gross": st.floats(0, 0.6), "atr": st.floats(0.001, 0.02), "p": unit,
     "p_low": unit}
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(plausible)
def test_a_size_is_never_negative_nor_above_any_cap(fields):
    code, out = decide(row(**fields))
    limit = limit_row(float(fields["regime"]), float(fields["trend"]))
    caps = (PARAMS.risk.kelly_cap, FLAT[core.MAX_POSITION_AT + limit], max(PARAMS.risk.max_gross - fields["gross"], 0))
    assert 0.0 <= out[core.SIZE] <= min(caps)
    assert (code == 0) == (out[core.SIZE] > 0) == (out[core.ACTION] != 0)


@settings(max_examples=300, deadline=None)
@given(unit, unit, unit, st.floats(0.4, 1), st.floats(0.4, 1))
def test_more_confidence_never_means_a_smaller_size(low, high, other, p, p_low):
    low, high = sorted((low, high))
    values = {"p": max(p, p_low), "p_low": min(p, p_low), "order_flow.confidence": other}
    small, large = (decide(row(**{**values, "ict.confidence": c}))[1][core.SIZE] for c in (low, high))
    assert small <= large


@settings(max_examples=400, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=core.ROW_WIDTH, max_size=core.ROW_WIDTH))
def test_garbage_is_refused_and_never_breaks_the_core(values):
    code, out = decide(np.array(values))
    assert code != 0
    assert (out[core.ACTION], out[core.SIZE]) == (0.0, 0.0)
